"""Space on the file systems of running containers. Blocking."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Space:
    """The space on a file system in bytes."""

    size: int
    free: int
    available: int
    """What others than the host's root can use of `free`."""
    kind: str
    """The type of the file system, such as `ext4`; empty if the host has not mounted it."""


def types_by_device(mountinfo: Path = _MOUNTS) -> dict[int, str]:
    """Return the types of all mounted file systems by device number, as in `st_dev`."""
    found = {}
    for line in mountinfo.read_bytes().splitlines():
        before, separator, after = line.partition(b" - ")
        fields = before.split(b" ", 3)
        if separator and len(fields) > 2:
            major, _, minor = fields[2].partition(b":")
            found[os.makedev(int(major), int(minor))] = after.partition(b" ")[0].decode("ascii", "replace")
    return found


def root_space(pid: int, types: Mapping[int, str]) -> Space:
    """Return the space on the root file system of a process, with a result of `types_by_device`.

    No path is resolved inside of its mount namespace. Raises ProcessLookupError if the process has ended.
    """
    root = Path(f"/proc/{pid}/root")
    try:
        disk, device = os.statvfs(root), root.stat().st_dev
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"No process {pid}") from None
    return Space(
        size=disk.f_blocks * disk.f_frsize,
        free=disk.f_bfree * disk.f_frsize,
        available=disk.f_bavail * disk.f_frsize,
        kind=types.get(device, ""),
    )
