"""Who holds a state folder: the daemon on it keeps a lock on a file that names it."""

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
    """Hold the state folder; HostError where another daemon has it."""
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _locked(fd):
            found = os.pread(fd, 20, 0).decode(errors="replace").strip()
            raise HostError(
                f"Another daemon (pid {found or 'unknown'}) uses {paths.root}: "
                "stop it, or give another folder in UTSUWA_DIR"
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    """A subcommand that only looks holds the lock for a moment: wait it out."""
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
    """The pid of the daemon that has the state folder, None where none has it. Raises HostError."""
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
