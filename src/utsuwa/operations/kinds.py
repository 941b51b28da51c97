"""The kinds of background operations, one record each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What an operation is called, what it concerns, and whether it can be cancelled."""

    text: str
    """The description that clients show, in LXD's words."""
    entities: tuple[str, ...]
    """The collections, as in URLs, that list the objects concerned; empty for none."""
    cancellable: bool = False
    """Whether clients can cancel it, as long as its work has not come to a point of no return."""


_INSTANCE = ("instances", "containers")

INSTANCE_CREATE = Kind("Creating instance", _INSTANCE)
INSTANCE_UPDATE = Kind("Updating instance", _INSTANCE)
INSTANCE_RENAME = Kind("Renaming instance", _INSTANCE)
INSTANCE_DELETE = Kind("Deleting instance", _INSTANCE)

_STATE = ("instances",)

INSTANCE_START = Kind("Starting instance", _STATE)
INSTANCE_STOP = Kind("Stopping instance", _STATE, cancellable=True)
INSTANCE_RESTART = Kind("Restarting instance", _STATE, cancellable=True)
INSTANCE_FREEZE = Kind("Freezing instance", _STATE)
INSTANCE_UNFREEZE = Kind("Unfreezing instance", _STATE)

COMMAND_EXEC = Kind("Executing command", _INSTANCE)
CONSOLE_SHOW = Kind("Showing console", _INSTANCE)

IMAGE_DOWNLOAD = Kind("Downloading image", ())
IMAGE_DELETE = Kind("Deleting image", ("images",))
