"""Uploads: new content for a file, which changes only when all of it has arrived.

Until then, the content is in a file without a name (O_TMPFILE) in the same directory, which the kernel
removes with its last descriptor, whatever ends this process. On file systems that have none (FUSE, NFS,
vfat), it has a temporary name; what a killed process left is removed by the next upload to that directory.

A new file gets its name at the end. An existing one keeps its inode, and so its other names, its owner, and
programs that have it open: the content is copied into it. This module also runs in the helper.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
from functools import partial

from utsuwa.host import syscalls
from utsuwa.host.files.confined import claim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from utsuwa.host.files.confined import ConfinedTree

_PREFIX = ".utsuwa-upload-"
_ATTEMPTS = 10
"""Maximum number of times that others create or remove the file just before this process does."""
_BLOCK = 512
"""The unit of `st_blocks`, in bytes."""
_STEP = 64 * 1024 * 1024
_READ = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""What file systems say that have no files without a name."""
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class Upload:
    """The content of one file, written to `fd`, until `commit` or `abandon`. Failures are OSError."""

    def __init__(
        self, tree: ConfinedTree, path: str, *, append: bool, mode: int, owner: tuple[int, int]
    ) -> None:
        """A new file gets mode and owner, an existing one must be a regular file."""
        self._tree = tree
        self._path = path
        self._append = append
        self._temporary: _Unnamed | _Named | None = None
        folder, name, exists = tree.place(path)
        try:
            existing = tree.open(path, os.O_WRONLY) if exists else -1
        except BaseException:
            os.close(folder)
            raise
        try:
            self._temporary = _temporary(folder, name, mode, owner)
            self.fd = self._temporary.fd
        except OSError as error:
            # Nothing can be created beside the file, in a read-only directory for example.
            if existing < 0 or error.errno in _FULL:
                raise
            self.fd = tree.open(path, os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC))
        finally:
            if existing >= 0:
                os.close(existing)

    def commit(self, cannot_hang: Callable[[int], bool]) -> None:
        """Give the file its content, and close it.

        `cannot_hang` tells of a descriptor whether its file system is one that always answers; the caller's
        death does not interrupt a copy to it.
        """
        try:
            if self._temporary is not None:
                self._commit(self._temporary, cannot_hang)
        finally:
            self.abandon()

    def _commit(self, temporary: _Unnamed | _Named, cannot_hang: Callable[[int], bool]) -> None:
        for _ in range(_ATTEMPTS):
            try:
                temporary.publish()
                return
            except FileExistsError:
                pass
            try:
                target = self._tree.open(self._path, os.O_WRONLY)
            except FileNotFoundError:  # removed just now, or a symlink to nothing has taken the place
                temporary.move(*self._tree.place(self._path)[:2])
                continue
            try:
                size = os.fstat(self.fd).st_size
                protected = cannot_hang(target)
                overwrite(target, size, self._copy_to, append=self._append, protected=protected)
            finally:
                os.close(target)
            return
        raise OSError(errno.EBUSY, "the file keeps being created and removed", self._path)

    def _copy_to(self, target: int, start: int) -> None:
        _copy(self.fd, target, start)

    def abandon(self) -> None:
        """Close the file; what was written is gone unless it was committed."""
        if self.fd < 0:
            return
        if self._temporary is not None:
            self._temporary.close()
        else:
            os.close(self.fd)
        self.fd = -1


def _temporary(folder: int, name: str, mode: int, owner: tuple[int, int]) -> _Unnamed | _Named:
    """Create the file that gets the content; the directory belongs to it then, and is closed on failure."""
    kinds = (_Unnamed, _Named)
    try:
        for kind in kinds:
            try:
                return kind(folder, name, mode, owner)
            except OSError as error:
                if kind is _Named or error.errno not in _NO_UNNAMED:
                    raise
        raise AssertionError
    except BaseException:
        os.close(folder)
        raise


class _Unnamed:
    """A file without a name, which is gone when it is closed before `publish`."""

    def __init__(self, folder: int, name: str, mode: int, owner: tuple[int, int]) -> None:
        self._folder, self._name, self._mode = folder, name, mode
        self.fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode & 0o777, dir_fd=folder)
        try:
            claim(self.fd, mode, owner)
        except OSError:
            os.close(self.fd)
            raise

    def publish(self) -> None:
        """Raises FileExistsError."""
        _complete_mode(self.fd, self._mode)
        os.link(f"/proc/self/fd/{self.fd}", self._name, dst_dir_fd=self._folder)

    def move(self, folder: int, name: str) -> None:
        """Have `publish` use another place."""
        os.close(self._folder)
        self._folder, self._name = folder, name

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._folder)


class _Named:
    """A file with a temporary name; its lock tells that its process is alive."""

    def __init__(self, folder: int, name: str, mode: int, owner: tuple[int, int]) -> None:
        self._folder, self._target, self._name, self._mode = folder, folder, name, mode
        self._sweep()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            self._temporary = f"{_PREFIX}{os.urandom(8).hex()}"
            self.fd = os.open(self._temporary, flags, 0o600, dir_fd=folder)
            if self._is_kept():
                break
            os.close(self.fd)
        try:
            claim(self.fd, mode, owner)
        except OSError:
            os.close(self.fd)
            os.unlink(self._temporary, dir_fd=folder)
            raise

    def _is_kept(self) -> bool:
        """Lock the file; return False if the sweep of another process came first."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks, where nothing is swept either
            return True
        return os.fstat(self.fd).st_nlink > 0

    def publish(self) -> None:
        """Raises FileExistsError."""
        _complete_mode(self.fd, self._mode)
        old, folder, name = self._temporary, self._target, self._name
        try:
            syscalls.renameat2(self._folder, old, folder, name, replace=False)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.link(old, name, src_dir_fd=self._folder, dst_dir_fd=folder, follow_symlinks=False)

    def move(self, folder: int, name: str) -> None:
        """Have `publish` use another place."""
        if self._target != self._folder:
            os.close(self._target)
        self._target, self._name = folder, name

    def close(self) -> None:
        os.close(self.fd)
        with contextlib.suppress(OSError):  # it may have been renamed
            os.unlink(self._temporary, dir_fd=self._folder)
        for folder in {self._folder, self._target}:
            os.close(folder)

    def _sweep(self) -> None:
        """Remove the files of processes that were killed: nobody holds their locks any more."""
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            left = [name for name in os.listdir(folder) if name.startswith(_PREFIX)]
        finally:
            os.close(folder)
        for name in left:
            with contextlib.suppress(OSError):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(name, flags, dir_fd=self._folder)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=self._folder)
                finally:
                    os.close(fd)


def _complete_mode(fd: int, mode: int) -> None:
    """Set the bits set-user-ID and set-group-ID again, which the kernel removes when content is written."""
    if mode & (stat.S_ISUID | stat.S_ISGID):
        os.fchmod(fd, mode)


def put(
    tree: ConfinedTree,
    path: str,
    content: memoryview,
    *,
    append: bool,
    mode: int,
    owner: tuple[int, int],
    cannot_hang: Callable[[int], bool],
) -> None:
    """Write a file whose whole content is there, as by an `Upload`; `cannot_hang` as for `Upload.commit`."""
    for _ in range(_ATTEMPTS):
        folder, name, exists = tree.place(path)
        if not exists:
            temporary = _temporary(folder, name, mode, owner)
            try:
                write_all(temporary.fd, content, 0)
                temporary.publish()
                return
            except FileExistsError:
                continue
            finally:
                temporary.close()
        os.close(folder)
        try:
            target = tree.open(path, os.O_WRONLY)
        except FileNotFoundError:
            continue
        try:
            write = partial(_write_at, content)
            overwrite(target, len(content), write, append=append, protected=cannot_hang(target))
            return
        finally:
            os.close(target)
    raise OSError(errno.EBUSY, "the file keeps being created and removed", path)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _write_at(data: memoryview, fd: int, offset: int) -> None:
    write_all(fd, data, offset)


def overwrite(
    target: int, size: int, write: Callable[[int, int], None], *, append: bool, protected: bool
) -> None:
    """Replace the content of an open file by `size` bytes, or append them.

    `write` gets the descriptor, and the offset at which it is to write them. The space is reserved before, so
    that a full disk does not cost the old content.
    """
    found = os.fstat(target)
    old = found.st_size
    start = old if append else 0
    with _uninterrupted() if protected else contextlib.nullcontext():
        try:
            if start + size > found.st_blocks * _BLOCK:
                syscalls.reserve(target, start, size)
        except OSError:
            os.ftruncate(target, old)  # releases what could be reserved
            raise
        try:
            write(target, start)
        except OSError:
            if append:
                os.ftruncate(target, old)
            raise
        if not append and old > size:
            os.ftruncate(target, size)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back the signal by which the kernel kills this process when its caller goes away."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGIO,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _copy(source: int, target: int, start: int) -> None:
    """Copy a whole file to an offset, sharing its blocks if the file system can."""
    done, size = 0, os.fstat(source).st_size
    try:
        while done < size:
            count = os.copy_file_range(source, target, min(_STEP, size - done), done, start + done)
            if not count:
                break
            done += count
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
    while data := os.pread(source, _READ, done):
        write_all(target, memoryview(data), start + done)
        done += len(data)
