"""Temporary directories that are removed in any case: at the end, or by the next build after a `kill -9`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "utsuwa-build-"


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """Create a directory for the block, and remove those whose process is gone."""
    place = tempfile.gettempdir()
    _sweep(place)
    # It gets its name once it is locked, so that no other build takes it for one of a process that is gone.
    fresh = tempfile.mkdtemp(prefix="utsuwa-new-")
    path = os.path.join(place, PREFIX + os.path.basename(fresh).removeprefix("utsuwa-new-"))
    locked = _lock(fresh)
    try:
        os.rename(fresh, path)
        os.chmod(path, 0o711)  # apt downloads as a user of its own
        yield path
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)
        if locked is not None:
            os.close(locked)


def _sweep(place: str) -> None:
    for entry in os.scandir(place):
        if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
            continue
        if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            continue
        locked = _lock(entry.path)
        if locked is not None:
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(locked)


def _lock(path: str) -> int | None:
    """Return a descriptor that holds the lock of a directory, None if another process has it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # it is gone
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
