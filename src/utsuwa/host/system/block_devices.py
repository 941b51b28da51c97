"""Block devices below files: which one the kernel sends a file system's requests to. Blocking."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from utsuwa.host.mounts.mounts import parse_mountinfo

_SYS = Path("/sys/dev/block")


def below(fd: int) -> str | None:
    """Return `major:minor` of the whole disk below an open file or directory, or of an open block device.

    None if there is none: on file systems in memory or of the network.
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return _whole(status.st_rdev)
    if os.major(status.st_dev):
        return _whole(status.st_dev)
    return _of_mount(fd)


def _of_mount(fd: int) -> str | None:
    """File systems such as btrfs have numbers of their own: their mount names the device."""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    wanted = next(int(line.split()[1]) for line in info.splitlines() if line.startswith("mnt_id:"))
    for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_bytes()):
        if mount.id == wanted and mount.source.startswith("/dev/"):
            try:
                status = Path(mount.source).stat()
            except OSError:
                return None
            return _whole(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None
    return None


def _whole(number: int) -> str:
    """Return the disk of a partition, as the kernel limits whole disks only."""
    name = f"{os.major(number)}:{os.minor(number)}"
    folder = _SYS / name
    if (folder / "partition").exists():
        return (folder.resolve().parent / "dev").read_text().strip()
    return name
