"""Records of `/1.0/instances/<name>/checkpoint`: whether the running state can be saved."""

from __future__ import annotations

import msgspec


class CheckpointObstacle(msgspec.Struct, kw_only=True):
    """One thing that stands in the way; `pid` is that inside, 0 if it is not about a process."""

    reason: str
    remedy: str
    pid: int = 0
    process: str = ""
    unit: str = ""
    passing: bool = False
    """Whether it passes by itself, or is healed when the state is saved."""


class InstanceCheckpoint(msgspec.Struct, kw_only=True):
    """`possible` is false if any obstacle does not pass by itself."""

    possible: bool
    criu: str
    """The version of CRIU that would be used, empty if there is none."""
    obstacles: list[CheckpointObstacle]
