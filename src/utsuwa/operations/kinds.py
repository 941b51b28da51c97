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


_INSTANCE = ("instances", "containers")

INSTANCE_CREATE = Kind("Creating instance", _INSTANCE, Entitlement.CAN_CREATE)
INSTANCE_UPDATE = Kind("Updating instance", _INSTANCE, Entitlement.CAN_EDIT)
INSTANCE_RENAME = Kind("Renaming instance", _INSTANCE, Entitlement.CAN_EDIT)
INSTANCE_DELETE = Kind("Deleting instance", _INSTANCE, Entitlement.CAN_DELETE)

_STATE = ("instances",)

INSTANCE_START = Kind("Starting instance", _STATE, Entitlement.CAN_UPDATE_STATE)
INSTANCE_STOP = Kind("Stopping instance", _STATE, Entitlement.CAN_UPDATE_STATE, cancellable=True)
INSTANCE_RESTART = Kind("Restarting instance", _STATE, Entitlement.CAN_UPDATE_STATE, cancellable=True)
INSTANCE_FREEZE = Kind("Freezing instance", _STATE, Entitlement.CAN_UPDATE_STATE)
INSTANCE_UNFREEZE = Kind("Unfreezing instance", _STATE, Entitlement.CAN_UPDATE_STATE)

COMMAND_EXEC = Kind("Executing command", _INSTANCE, Entitlement.CAN_EXEC)
CONSOLE_SHOW = Kind("Showing console", _INSTANCE, Entitlement.CAN_ACCESS_CONSOLE)

IMAGE_DOWNLOAD = Kind("Downloading image", (), Entitlement.CAN_CREATE)
IMAGE_DELETE = Kind("Deleting image", ("images",), Entitlement.CAN_DELETE)
