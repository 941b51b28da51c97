"""Read-only loop devices for image files, detached automatically when unmounted."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.host import syscalls

_ATTEMPTS = 50


def mount_squashfs(file: Path, target: Path) -> None:
    """Mount a squashfs file read-only; the loop device is detached when it is unmounted. Blocking.

    Raises OSError if the kernel rejects the file system, HostError if no loop device is available.
    """
    device, fd = _attach(file)
    try:
        syscalls.mount(device, target, "squashfs", syscalls.MS_RDONLY)
    finally:
        os.close(fd)  # the mount keeps the device; if mounting failed, this detaches it


def _attach(file: Path) -> tuple[str, int]:
    """Attach `file` to a loop device; return its path and a descriptor that keeps it attached."""
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for _ in range(_ATTEMPTS):
            device = f"/dev/loop{_free_number()}"
            fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _configure(fd, backing, file)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # otherwise another process was quicker to use this device
                    raise
                continue
            return device, fd
    except OSError as error:
        raise HostError(f"Cannot set up a loop device for {file}: {error}") from error
    finally:
        os.close(backing)
    raise HostError(f"Cannot set up a loop device for {file}: every free device was taken by another process")


def _free_number() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, syscalls.LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def _configure(fd: int, backing: int, file: Path) -> None:
    config = syscalls.LoopConfig()
    config.fd = backing
    config.lo_flags = syscalls.LO_FLAGS_READ_ONLY | syscalls.LO_FLAGS_AUTOCLEAR
    config.lo_file_name = os.fsencode(file)[-63:]
    fcntl.ioctl(fd, syscalls.LOOP_CONFIGURE, bytes(config))
