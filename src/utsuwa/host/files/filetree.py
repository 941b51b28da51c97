"""Access from the host to files of a container, confined to its root.

The kernel resolves paths as if the tree were the root (`openat2` with RESOLVE_IN_ROOT and no magic
links): absolute symlinks and `..` stay inside, mounts are crossed. Only regular files are opened, after
checking the file type, so that no FIFO or device blocks the caller.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Self, TypeVar

from utsuwa.core.errors import HostError, InvalidRequest, NotFound, OutOfSpace, TooLarge
from utsuwa.core.idmap import IdMap
from utsuwa.host import syscalls
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.processes.run import run_blocking

T = TypeVar("T")

_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_ATTEMPTS = 100
"""Maximum number of retries of a lookup that raced with a rename (EAGAIN)."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL = 200
"""Largest number of entries that are removed in this process; starting a program takes longer."""
_DEEP = 50
"""Maximum depth of directories, each of which needs an open descriptor."""


class FileTree:
    """The tree below `root`: a mounted rootfs, or `/proc/<init>/root`. Blocking; a context manager.

    `idmap` is the id map of the tree's mount: ids in arguments are the container's. Paths are relative to the
    root, or absolute as seen inside. Raises NotFound, InvalidRequest (not a regular file), TooLarge,
    OutOfSpace or HostError.
    """

    def __init__(self, root: Path, idmap: IdMap) -> None:
        self._idmap = idmap
        try:
            self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _translated(error, str(root)) from error

    def close(self) -> None:
        os.close(self._root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exists(self, path: str) -> bool:
        """Return whether the path exists, following symlinks."""
        try:
            os.close(self._open(path, os.O_PATH))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _translated(error, path) from error
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
                self._make_parents(path)
            self._write(path, data, mode, owner)

        self._inside(path, work)

    def make_folder(self, path: str) -> None:
        """Create a directory and its missing parents (0755, owned by the container's root)."""

        def work() -> None:
            self._make_parents(f"{path}/inside")

        self._inside(path, work)

    def _inside(self, path: str, work: Callable[[], T]) -> T:
        try:
            return as_container_root(self._idmap, work)
        except OSError as error:
            raise _translated(error, path) from error

    def _open(self, path: str, flags: int, mode: int = 0) -> int:
        for _ in range(_ATTEMPTS):
            try:
                return syscalls.openat2(self._root, path or "/", flags, mode=mode, resolve=_RESOLVE)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
        raise OSError(errno.EAGAIN, "directories in the path keep being renamed", path)

    def _open_regular(self, path: str, flags: int) -> int:
        """Check the file type first, then open the same inode."""
        looked = self._open(path, os.O_PATH)
        try:
            if not stat.S_ISREG(os.fstat(looked).st_mode):
                raise InvalidRequest(f"{path} is not a regular file")
            return os.open(f"/proc/self/fd/{looked}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(looked)

    def _read(self, path: str, limit: int) -> bytes:
        with os.fdopen(self._open_regular(path, os.O_RDONLY), "rb", buffering=0) as file:
            parts, size = [], 0
            while part := file.read(min(1 << 20, limit + 1 - size)):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise TooLarge(f"{path} is larger than {limit} bytes")
            return b"".join(parts)

    def _write(self, path: str, data: bytes, mode: int, owner: tuple[int, int]) -> None:
        try:
            fd = self._open_regular(path, os.O_WRONLY | os.O_TRUNC)
        except FileNotFoundError:
            # A dangling symlink is followed too: its target is created, inside the tree.
            fd = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o600)
            with os.fdopen(fd, "wb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise InvalidRequest(f"{path} is not a regular file") from None
                file.write(data)
                os.fchown(fd, *owner)
                os.fchmod(fd, mode)
            return
        with os.fdopen(fd, "wb") as file:
            file.write(data)

    def _make_parents(self, path: str) -> None:
        for folder in reversed(PurePosixPath(path).parents):
            if folder in (PurePosixPath("/"), PurePosixPath(".")):
                continue
            try:
                os.close(self._open(str(folder), os.O_PATH | os.O_DIRECTORY))
            except FileNotFoundError:
                self._make_folder(folder)

    def _make_folder(self, folder: PurePosixPath) -> None:
        above = self._open(str(folder.parent), os.O_PATH | os.O_DIRECTORY)
        try:
            os.mkdir(folder.name, 0o755, dir_fd=above)
            os.chmod(folder.name, 0o755, dir_fd=above)  # regardless of the umask
        finally:
            os.close(above)


def remove_tree(path: Path) -> None:
    """Remove a directory of the daemon and its content; does nothing if it does not exist.

    Symlinks are removed, not followed; other file systems are not entered. Raises ProcessFailed.
    """
    try:
        if _removed(path):
            return
    except OSError:
        pass  # `rm` reports the reason, and continues with the rest
    run_blocking(["rm", "-rf", "--one-file-system", "--", str(path.absolute())], timeout=3600)


def _removed(path: Path) -> bool:
    """Remove a small tree in this process; return False if it is too large for that."""
    try:
        folder = os.open(path, _FOLDER)
    except FileNotFoundError:
        return True
    try:
        if not _emptied(folder, os.fstat(folder).st_dev, [_SMALL], 0):
            return False
    finally:
        os.close(folder)
    path.rmdir()
    return True


def _emptied(folder: int, device: int, left: list[int], depth: int) -> bool:
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
        below = os.open(name, _FOLDER, dir_fd=folder)
        try:
            if os.fstat(below).st_dev != device or not _emptied(below, device, left, depth + 1):
                return False
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=folder)
    return True


def _translated(error: OSError, path: str) -> Exception:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return NotFound(f"{path} does not exist")
        case errno.ENOSPC | errno.EDQUOT:
            return OutOfSpace(f"No space left while writing {path}")
        case errno.EISDIR | errno.ENXIO | errno.ELOOP:
            return InvalidRequest(f"{path} is not a regular file")
        case _:
            return HostError(f"Cannot access {path}: {error.strerror}")
