"""The lock of a state directory: its daemon holds a lock on a file that contains its pid."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths

_PATIENCE = 1.0


@contextlib.contextmanager
def state_lock(paths: StatePaths) -> Iterator[None]:
    """Hold the lock of the state directory. Raises HostError if another daemon holds it."""
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _locked(fd):
            found = os.pread(fd, 20, 0).decode(errors="replace").strip()
            raise HostError(
                f"Another daemon (pid {found or 'unknown'}) uses {paths.root}: "
                "stop it, or set another directory in UTSUWA_DIR"
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    """Lock, retrying for a while, as subcommands hold the lock briefly to check it."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)


def holder(paths: StatePaths) -> int | None:
    """Return the pid of the daemon on the state directory, or None. Raises HostError."""
    try:
        fd = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"Cannot read {paths.lock} ({error.strerror}): run this as root") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 20, 0).decode(errors="replace").strip()
        return int(pid) if pid.isdecimal() else None
    else:
        return None
    finally:
        os.close(fd)
