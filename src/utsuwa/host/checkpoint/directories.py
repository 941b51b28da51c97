"""Looking up the directories of a container, so that the kernel knows the paths of those that are watched."""

from __future__ import annotations

import os

_MAX = 200_000
"""Maximum number of directories; more are not looked up."""


def look_up(init_pid: int) -> None:
    """Look up the directories of a container's root file system. Blocking.

    An overlay gives no handle for a watched directory whose path has left the kernel's cache.
    """
    try:
        root = os.open(f"/proc/{init_pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        device = os.fstat(root).st_dev
        for seen, (_path, folders, _files, descriptor) in enumerate(os.fwalk(".", dir_fd=root)):
            if seen == _MAX:
                return
            folders[:] = [name for name in folders if _device_of(name, descriptor) == device]
    finally:
        os.close(root)


def _device_of(name: str, folder: int) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_dev  # noqa: PTH116 - below a descriptor
    except OSError:
        return -1
