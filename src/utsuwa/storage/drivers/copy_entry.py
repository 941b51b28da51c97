"""Copies single files with all attributes, hard links among them, and holes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from utsuwa.host.files.shift import Shift, shifted_attribute

_FICLONE = 0x40049409
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)
_CHUNK = 1 << 24
_ZEROS = bytes(1 << 16)


class EntryCopier:
    """Copies files; names of the same file become names of the same copy. Raises OSError."""

    def __init__(
        self,
        without: frozenset[str] = frozenset(),
        shift: Shift | None = None,
        *,
        zeros_as_holes: bool = False,
    ) -> None:
        """`without` are the extended attributes that are not copied; owners are changed by `shift`.

        With `zeros_as_holes`, blocks of zeros take no space in the copy: a journal is mostly that, and the
        kernel does not tell it from data once it has been read.
        """
        self._without = without
        self._shift = shift
        self._copy_range = _copy_without_zeros if zeros_as_holes else _send
        self._copies: dict[tuple[int, int], Path] = {}

    def copy(self, source: Path, target: Path, status: os.stat_result) -> None:
        """Copy anything but a directory; `status` is that of the source."""
        inode = (status.st_dev, status.st_ino)
        if inode in self._copies:
            os.link(self._copies[inode], target, follow_symlinks=False)
            return
        if stat.S_ISREG(status.st_mode):
            _copy_content(source, target, status.st_size, self._copy_range)
        elif stat.S_ISLNK(status.st_mode):
            target.symlink_to(os.readlink(source))  # noqa: PTH115 - exactly as it is written
        else:
            os.mknod(target, status.st_mode, status.st_rdev)
        self.copy_attributes(source, target, status)
        self.note(status, target)

    def copy_of(self, status: os.stat_result) -> Path | None:
        """Return the copy of a file that has several names, if there is one already."""
        return self._copies.get((status.st_dev, status.st_ino))

    def note(self, status: os.stat_result, target: Path) -> None:
        """Have other names of a file become names of `target`."""
        if status.st_nlink > 1:
            self._copies[status.st_dev, status.st_ino] = target

    def copy_attributes(self, source: Path, target: Path, status: os.stat_result) -> None:
        """Copy owner, mode, extended attributes and times; of a directory, times change with its content."""
        os.chown(target, *self.owner(status), follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            target.chmod(stat.S_IMODE(status.st_mode))
        wanted, there = self.attributes(source), self.attributes(target)
        for name in there.keys() - wanted.keys():  # a new file may have got the default ACL of its directory
            os.removexattr(target, name, follow_symlinks=False)
        for name, value in wanted.items():
            if there.get(name) != value:
                os.setxattr(target, name, value, follow_symlinks=False)
        copy_times(target, status)

    def owner(self, status: os.stat_result) -> tuple[int, int]:
        """Return owner and group of the copy of a file."""
        if self._shift is None:
            return status.st_uid, status.st_gid
        return self._shift.uid(status.st_uid), self._shift.gid(status.st_gid)

    def attributes(self, path: Path) -> dict[str, bytes]:
        """Return the extended attributes of the copy of a file; none where the file system has none."""
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return {}
        found = {n: os.getxattr(path, n, follow_symlinks=False) for n in names if n not in self._without}
        if self._shift is None:
            return found
        return {name: shifted_attribute(name, value, self._shift) for name, value in found.items()}


def copy_times(target: Path, status: os.stat_result) -> None:
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


_CopyRange = Callable[[int, int, int, int], bool]
"""Copies from a descriptor to another one what is between two positions; False if the file is shorter."""


def _copy_content(source: Path, target: Path, size: int, copy_range: _CopyRange) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if size and not _cloned(reading, writing):
                _copy_data(reading, writing, size, copy_range)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _cloned(reading: int, writing: int) -> bool:
    """Share the blocks; return False if the file system does not support that."""
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True


def _copy_data(reading: int, writing: int, size: int, copy_range: _CopyRange) -> None:
    """Copy what is not a hole."""
    os.ftruncate(writing, size)
    position = 0
    while position < size:
        try:
            position = os.lseek(reading, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # the rest is a hole
            raise
        end = min(os.lseek(reading, position, os.SEEK_HOLE), size)
        if not copy_range(reading, writing, position, end):
            return
        position = end


def _send(reading: int, writing: int, position: int, end: int) -> bool:
    os.lseek(writing, position, os.SEEK_SET)
    while position < end:
        count = os.sendfile(writing, reading, position, min(_CHUNK, end - position))
        if not count:
            return False
        position += count
    return True


def _copy_without_zeros(reading: int, writing: int, position: int, end: int) -> bool:
    while position < end:
        data = os.pread(reading, min(len(_ZEROS), end - position), position)
        if not data:
            return False
        if data != _ZEROS[: len(data)]:
            rest = data
            while rest:
                rest = rest[os.pwrite(writing, rest, position + len(data) - len(rest)) :]
        position += len(data)
    return True
