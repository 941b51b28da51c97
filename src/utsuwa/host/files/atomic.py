"""Small files of the daemon, written atomically and with their final mode."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from utsuwa.core.errors import TooLarge
from utsuwa.host import syscalls


def replace_file(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace the file `path` atomically; its directory must belong to the daemon alone. Blocking.

    Readers see either the old or the new text. Raises OSError.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
    fresh.replace(path)


def read_below(folder: Path, name: str, limit: int) -> bytes | None:
    """Read the regular file `name` below `folder`, without following symlinks; None if it does not exist.

    Blocking. Raises OSError for symlinks and other types of files, TooLarge for more than `limit` bytes.
    """
    try:
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
            descriptor = syscalls.openat2(root, name, os.O_RDONLY | os.O_NONBLOCK, resolve=resolve)
        finally:
            os.close(root)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLarge(f"{name} is larger than {limit} bytes")
    return data
