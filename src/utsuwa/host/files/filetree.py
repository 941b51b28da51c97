"""The daemon's own access to files of a container that is not running, and removal of its own directories."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from utsuwa.core.errors import (
    AlreadyExists,
    Busy,
    Forbidden,
    HostError,
    InvalidRequest,
    NotFound,
    OutOfSpace,
    TooLarge,
    UtsuwaError,
)
from utsuwa.core.idmap import IdMap
from utsuwa.host import syscalls
from utsuwa.host.files.confined import ConfinedTree
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.processes.run import run_blocking

T = TypeVar("T")

_INVALID = frozenset(
    {
        errno.EINVAL,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENOTEMPTY,
        errno.EXDEV,
        errno.EMLINK,
        errno.EFBIG,
        errno.ENOTSUP,
        errno.ELOOP,
    }
)
"""What a request itself is the reason for."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL = 200
"""Largest number of entries that are removed in this process; starting a program takes longer."""
_DEEP = 50
"""Maximum depth of directories, each of which needs an open descriptor."""


class FileTree:
    """The tree below `root`, a mounted rootfs, as the daemon itself uses it. Blocking; a context manager.

    `idmap` is the id map of the tree's mount: ids in arguments are the container's. Paths are relative to the
    root, or absolute as seen inside. Raises NotFound, InvalidRequest (not a regular file), TooLarge,
    OutOfSpace or HostError.
    """

    def __init__(self, root: Path, idmap: IdMap) -> None:
        self._idmap = idmap
        try:
            self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise translated(error, str(root)) from error
        self._tree = ConfinedTree(self._root)
        self._owner = (idmap.host_uid(0), idmap.host_gid(0))

    def close(self) -> None:
        os.close(self._root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exists(self, path: str) -> bool:
        """Return whether the path exists, following symlinks."""
        try:
            self._tree.stat(path, follow=True)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise translated(error, path) from error
        return True

    def read(self, path: str, limit: int) -> bytes:
        """Return the content of a file of at most `limit` bytes."""
        return self._inside(path, lambda: self._read(path, limit))

    def write(
        self, path: str, data: bytes, *, mode: int = 0o644, uid: int = 0, gid: int = 0, parents: bool = False
    ) -> None:
        """Write `data` to the file. A new file gets `mode` and `owner`; an existing one keeps its own.

        With `parents`, missing directories are created (0755, owned by the container's root).
        """
        owner = (self._idmap.host_uid(uid), self._idmap.host_gid(gid))

        def work() -> None:
            if parents:
                self._tree.make_directories(path.rpartition("/")[0], self._owner)
            fd, _ = self._tree.create(path, os.O_WRONLY | os.O_TRUNC, mode, owner)
            with os.fdopen(fd, "wb") as file:
                file.write(data)

        self._inside(path, work)

    def make_mount_point(self, path: str, *, is_folder: bool) -> str:
        """Create what a directory or another file can be mounted on, with missing parents (0755, owned by the
        container's root), and return its absolute path in the tree, in which symlinks are resolved.

        Raises InvalidRequest if it is of the other kind.
        """

        def work() -> str:
            found = self._tree.mount_point(path, is_folder=is_folder, owner=self._owner)
            try:
                return self._path_of(found)
            finally:
                os.close(found)

        return self._inside(path, work)

    def _path_of(self, fd: int) -> str:
        root, path = (Path(f"/proc/self/fd/{number}").readlink() for number in (self._root, fd))
        return str("/" / path.relative_to(root))

    def _inside(self, path: str, work: Callable[[], T]) -> T:
        try:
            return as_container_root(self._idmap, work)
        except OSError as error:
            raise translated(error, path) from error

    def _read(self, path: str, limit: int) -> bytes:
        with os.fdopen(self._tree.open(path, os.O_RDONLY), "rb", buffering=0) as file:
            parts, size = [], 0
            while part := file.read(min(1 << 20, limit + 1 - size)):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise TooLarge(f"{path} is larger than {limit} bytes")
            return b"".join(parts)


def remove_tree(path: Path) -> None:
    """Remove a directory of the daemon and its content; does nothing if it does not exist.

    Symlinks are removed, not followed; other file systems are not entered. Raises ProcessFailed.
    """
    # Otherwise `rm` reports the reason, and continues with the rest.
    if not remove_small_tree(path):
        run_blocking(["rm", "-rf", "--one-file-system", "--", str(path.absolute())], timeout=3600)


def remove_small_tree(path: Path) -> bool:
    """Remove a directory of the daemon with few entries and no mounts; True also if it does not exist.

    Returns False, with a part of it removed, if it is larger or something cannot be removed. What is mounted
    in it, bind mounts of the same file system included, is left as it is.
    """
    try:
        folder = os.open(path, _FOLDER)
    except OSError as error:
        return error.errno == errno.ENOENT
    try:
        if not _emptied(folder, [_SMALL], 0):
            return False
        path.rmdir()
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def _emptied(folder: int, left: list[int], depth: int) -> bool:
    """Empty a directory of at most `left` entries; return False if that is left to `rm`."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    left[0] -= len(found)
    if left[0] < 0 or depth > _DEEP:
        return False
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
            continue
        below = syscalls.openat2(folder, name, _FOLDER, resolve=syscalls.RESOLVE_NO_XDEV)
        try:
            if not _emptied(below, left, depth + 1):
                return False
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=folder)
    return True


def translated(error: OSError, path: str) -> UtsuwaError:
    """Return the error for a caller who asked for `path`."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return NotFound(f"{path} does not exist")
        case errno.EEXIST:
            return AlreadyExists(f"{path} already exists")
        case errno.ENOSPC | errno.EDQUOT:
            return OutOfSpace(f"No space left while writing {path}")
        case errno.EAGAIN | errno.ETXTBSY | errno.EBUSY:
            return Busy(f"{path} is in use: {error.strerror}")
        case errno.EPERM | errno.EACCES | errno.EROFS:
            return Forbidden(f"{path} cannot be accessed: {error.strerror}")
        case number if number in _INVALID:
            return InvalidRequest(f"{path}: {error.strerror}")
        case _:
            return HostError(f"Cannot access {path}: {error.strerror}")
