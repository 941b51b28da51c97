"""Looking up the files of a container, so that the kernel knows the paths of those that are watched."""

from __future__ import annotations

import os
from pathlib import Path

from utsuwa.host.mounts.mounts import parse_mountinfo

_MAX = 200_000
"""Maximum number of directories; more are not looked up."""
_WATCHED = frozenset(("overlay", "ext4", "xfs", "btrfs", "cgroup2"))
"""The types of file systems that know a watched file by its path in the kernel's cache only."""


def look_up(init_pid: int) -> None:
    """Look up all files of a container's root file system and cgroups. Blocking.

    CRIU does not find the path of a watched file that has left the kernel's cache. systemd watches cgroups.
    """
    folder = Path(f"/proc/{init_pid}")
    try:
        mounts = parse_mountinfo((folder / "mountinfo").read_bytes())
    except OSError:
        return
    for mount in mounts:
        if mount.fstype in _WATCHED and (mount.fstype == "cgroup2" or str(mount.target) == "/"):
            _look_up_below(f"{folder}/root{mount.target}")


def _look_up_below(path: str) -> None:
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        device = os.fstat(root).st_dev
        for seen, (_path, folders, files, descriptor) in enumerate(os.fwalk(".", dir_fd=root)):
            if seen == _MAX:
                return
            folders[:] = [name for name in folders if _device_of(name, descriptor) == device]
            for name in files:
                _device_of(name, descriptor)
    finally:
        os.close(root)


def _device_of(name: str, folder: int) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_dev  # noqa: PTH116 - below a descriptor
    except OSError:
        return -1
