"""The kinds of background operations, one record each."""

from __future__ import annotations

from dataclasses import dataclass

from utsuwa.core.entitlements import Entitlement


@dataclass(frozen=True)
class Kind:
    """The description of a kind of operation, the objects it concerns, and who may cancel it."""

    text: str
    """The description that clients show, in LXD's words."""
    entities: tuple[str, ...]
    """The collections, as in URLs, that list the objects concerned; empty for none."""
    entitlement: Entitlement
    """The entitlement required to start and to cancel it."""
    cancellable: bool = False
    """Whether clients can cancel it, until it reaches a point of no return."""
    class_: str = "task"
    """Its class in the API; that of operations with websockets is `websocket`."""
    flat: bool = False
    """Whether the secrets of its websockets are the metadata itself, and not its field `fds`."""
    heartbeat: float | None = None
    """Seconds without a message after which the other side of its websockets is asked whether it is still
    there; if it does not answer within half of that, they are lost. For those that wait long."""


_INSTANCE = ("instances", "containers")

INSTANCE_CREATE = Kind("Creating instance", _INSTANCE, Entitlement.CAN_CREATE)
INSTANCE_UPDATE = Kind("Updating instance", _INSTANCE, Entitlement.CAN_EDIT)
INSTANCE_REBUILD = Kind("Rebuilding instance", _INSTANCE, Entitlement.CAN_EDIT)
INSTANCE_RENAME = Kind("Renaming instance", _INSTANCE, Entitlement.CAN_EDIT)
INSTANCE_MIGRATE = Kind("Migrating instance", _INSTANCE, Entitlement.CAN_EDIT)
INSTANCE_SEND = Kind("Sending instance", _INSTANCE, Entitlement.CAN_EDIT, cancellable=True, flat=True)
INSTANCE_RECEIVE = Kind("Receiving instance", _INSTANCE, Entitlement.CAN_CREATE, cancellable=True, flat=True)
INSTANCE_SETTLE = Kind(
    "Waiting for the result of a move",
    _INSTANCE,
    Entitlement.CAN_EDIT,
    cancellable=True,
    flat=True,
    heartbeat=30,
)
INSTANCE_DELETE = Kind("Deleting instance", _INSTANCE, Entitlement.CAN_DELETE)

SNAPSHOT_CREATE = Kind("Snapshotting instance", _INSTANCE, Entitlement.CAN_MANAGE_SNAPSHOTS)
SNAPSHOT_UPDATE = Kind("Updating snapshot", _INSTANCE, Entitlement.CAN_MANAGE_SNAPSHOTS)
SNAPSHOT_RENAME = Kind("Renaming snapshot", _INSTANCE, Entitlement.CAN_MANAGE_SNAPSHOTS)
SNAPSHOT_DELETE = Kind("Deleting snapshot", _INSTANCE, Entitlement.CAN_MANAGE_SNAPSHOTS)
SNAPSHOT_RESTORE = Kind("Restoring snapshot", _INSTANCE, Entitlement.CAN_MANAGE_SNAPSHOTS)

_STATE = ("instances",)

INSTANCE_START = Kind("Starting instance", _STATE, Entitlement.CAN_UPDATE_STATE)
INSTANCE_STOP = Kind("Stopping instance", _STATE, Entitlement.CAN_UPDATE_STATE, cancellable=True)
INSTANCE_RESTART = Kind("Restarting instance", _STATE, Entitlement.CAN_UPDATE_STATE, cancellable=True)
INSTANCE_FREEZE = Kind("Freezing instance", _STATE, Entitlement.CAN_UPDATE_STATE)
INSTANCE_UNFREEZE = Kind("Unfreezing instance", _STATE, Entitlement.CAN_UPDATE_STATE)

COMMAND_EXEC = Kind("Executing command", _INSTANCE, Entitlement.CAN_EXEC)
CONSOLE_SHOW = Kind("Showing console", _INSTANCE, Entitlement.CAN_ACCESS_CONSOLE)

IMAGE_DOWNLOAD = Kind("Downloading image", (), Entitlement.CAN_CREATE, cancellable=True)
IMAGE_REFRESH = Kind("Refreshing image", ("images",), Entitlement.CAN_EDIT, cancellable=True)
IMAGE_SECRET = Kind(
    "Image download token", ("images",), Entitlement.CAN_EDIT, cancellable=True, class_="token"
)
IMAGE_PUSH = Kind("Pushing image", ("images",), Entitlement.CAN_EDIT, cancellable=True)
IMAGE_DELETE = Kind("Deleting image", ("images",), Entitlement.CAN_DELETE)

JOIN_TOKEN = Kind(
    "Waiting for the client of a token", (), Entitlement.CAN_CREATE, cancellable=True, class_="token"
)

PROJECT_RENAME = Kind("Renaming project", (), Entitlement.CAN_EDIT)

_VOLUME = ("storage_volumes",)

VOLUME_COPY = Kind("Copying storage volume", _VOLUME, Entitlement.CAN_CREATE)
VOLUME_MOVE = Kind("Moving storage volume", _VOLUME, Entitlement.CAN_EDIT)
VOLUME_SEND = Kind("Migrating storage volume", _VOLUME, Entitlement.CAN_EDIT, cancellable=True, flat=True)
VOLUME_RECEIVE = Kind("Creating storage volume", _VOLUME, Entitlement.CAN_CREATE, cancellable=True, flat=True)
VOLUME_SNAPSHOT_CREATE = Kind("Creating storage volume snapshot", _VOLUME, Entitlement.CAN_MANAGE_SNAPSHOTS)
VOLUME_SNAPSHOT_RENAME = Kind("Renaming storage volume snapshot", _VOLUME, Entitlement.CAN_MANAGE_SNAPSHOTS)
VOLUME_SNAPSHOT_DELETE = Kind("Deleting storage volume snapshot", _VOLUME, Entitlement.CAN_MANAGE_SNAPSHOTS)
