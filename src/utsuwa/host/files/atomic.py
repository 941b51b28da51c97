"""Small files of the daemon, written atomically and with their final mode."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from utsuwa.core.errors import TooLarge
from utsuwa.host import syscalls

_FRESH = ".new"
"""The name of a file that is being written, beside what readers see; one that a crash left is overwritten."""


def replace_file(path: Path, text: str, mode: int = 0o600, *, sync: bool = False) -> None:
    """Replace the file `path` atomically; its directory must belong to the daemon alone. Blocking.

    Readers see either the old or the new text. With `sync`, the new one survives a loss of power. Raises
    OSError.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
        if sync:
            file.flush()
            os.fsync(descriptor)
    fresh.replace(path)
    if sync:
        sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file, if it exists, such that it stays removed after a loss of power. Blocking."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a directory survive a loss of power. Blocking. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_below(folder: Path, name: str, limit: int) -> bytes | None:
    """Read the regular file `name` below `folder`, without following symlinks; None if it does not exist.

    Blocking. Raises OSError for symlinks and other types of files, TooLarge for more than `limit` bytes.
    """
    try:
        with _below(folder, name, os.O_RDONLY | os.O_NONBLOCK) as (_, descriptor):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    if len(data) > limit:
        raise TooLarge(f"{name} is larger than {limit} bytes")
    return data


def names_below(folder: Path, name: str) -> list[str]:
    """Return the sorted names of the regular files in the directory `name` below `folder`.

    Symlinks are not followed; none if the directory does not exist. Blocking. Raises OSError.
    """
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY
        with _below(folder, name, flags) as (_, descriptor), os.scandir(descriptor) as entries:
            return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return []


def replace_below(folder: Path, name: str, data: bytes) -> None:
    """Create or replace the file `name` below `folder` (0644) atomically, without following symlinks.

    Parent directories (0755) are created, at most one level. Blocking. Raises OSError.
    """
    above, _, last = name.rpartition("/")
    if above:
        (folder / above).mkdir(mode=0o755, exist_ok=True)
    with _below(folder, above or ".", os.O_PATH | os.O_DIRECTORY) as (root, parent):
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            fresh = os.open(_FRESH, flags, 0o644, dir_fd=root)
            with os.fdopen(fresh, "wb") as file:
                os.fchmod(fresh, 0o644)
                file.write(data)
                file.flush()
                os.fsync(fresh)
            os.rename(_FRESH, last, src_dir_fd=root, dst_dir_fd=parent)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_FRESH, dir_fd=root)
            raise


def remove_below(folder: Path, name: str) -> None:
    """Remove a file in a directory below `folder`, without following symlinks. Blocking. Raises OSError."""
    above, _, last = name.rpartition("/")
    with _below(folder, above, os.O_PATH | os.O_DIRECTORY) as (_, parent):
        os.unlink(last, dir_fd=parent)


@contextlib.contextmanager
def _below(folder: Path, name: str, flags: int) -> Iterator[tuple[int, int]]:
    """Open `folder` and what `name` is below it, without following symlinks."""
    root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
        descriptor = syscalls.openat2(root, name, flags, resolve=resolve)
        try:
            yield root, descriptor
        finally:
            os.close(descriptor)
    finally:
        os.close(root)
