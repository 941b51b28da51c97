"""Brings a tree up to date with another one: what is the same already is not written.

A file is the same if its size, time of modification, mode, owners, attributes and content are. Contents are
not read if the inode and the kernel's time of its last change (ctime) are the same too: both trees show a
file of a layer that they share. That the copy's ctime is later proves nothing: the source may be another
snapshot than that from which the copy was made, and programs in the copy change its ctime as well.

Files are replaced, never written to or given other attributes, as others may share them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.files.shift import Shift
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.drivers.copy_entry import EntryCopier, copy_times

_CHUNK = 1 << 20

_Inode = tuple[int, int]


def sync_tree(
    source: Path, target: Path, stopper: Stopper, *, like: Path | None = None, shift: Shift | None = None
) -> None:
    """Have `target` become equal to `source`, with all attributes, hard links and holes.

    Nothing may change either of them meanwhile. With `like`, an older copy that is no longer used, `target`
    is created, and what is the same becomes names of the files there. Owners are changed by `shift`. File
    systems that are mounted in the source are left out. Raises OSError, and ProcessFailed if `stopper` is
    stopped.
    """
    _Sync(source, target, target if like is None else like, stopper, shift).run()


class _Sync:
    def __init__(self, source: Path, target: Path, old: Path, stopper: Stopper, shift: Shift | None) -> None:
        self._roots = (source, target, old)
        self._device = source.lstat().st_dev
        self._in_place = old == target
        self._stopper = stopper
        self._copier = EntryCopier(shift=shift)
        self._claimed: dict[_Inode, _Inode] = {}
        """By the old files that are kept, the files of the source that they are."""

    def run(self) -> None:
        waiting = [self._roots]
        made: list[tuple[Path, os.stat_result]] = []
        while waiting:
            source, target, old = waiting.pop()
            status = source.lstat()
            self._folder(source, target, status)
            made.append((target, status))
            names = _names(source) if status.st_dev == self._device else set()
            if self._in_place:
                for name in _names(target) - names:
                    _remove(target / name)
            for name in names:
                if self._stopper.stopped:
                    raise ProcessFailed(["refresh files"], None, "was stopped before its end")
                paths = (source / name, target / name, old / name)
                if self._entry(*paths):
                    waiting.append(paths)
        for path, status in reversed(made):
            if path.lstat().st_mtime_ns != status.st_mtime_ns:
                copy_times(path, status)

    def _folder(self, source: Path, target: Path, status: os.stat_result) -> None:
        if self._in_place:
            now = _lstat(target)
            if now is not None and stat.S_ISDIR(now.st_mode):
                if not self._has_attributes(source, status, target, now):
                    self._copier.copy_attributes(source, target, status)
                return
            if now is not None:
                target.unlink()
        target.mkdir(mode=0o700)
        self._copier.copy_attributes(source, target, status)

    def _entry(self, source: Path, target: Path, old: Path) -> bool:
        """Bring anything but a directory up to date; return whether it is a directory."""
        status, was = source.lstat(), _lstat(old)
        if stat.S_ISDIR(status.st_mode):
            return True
        copy = self._copier.copy_of(status)
        if copy is not None:
            self._link(copy, target, was)
        elif not (was is not None and self._kept(source, status, target, old, was)):
            if self._in_place:
                _remove(target)
            self._copier.copy(source, target, status)
        return False

    def _link(self, copy: Path, target: Path, was: os.stat_result | None) -> None:
        """Have a file be another name of a file that is up to date."""
        if self._in_place and was is not None:
            if _inode(was) == _inode(copy.lstat()):
                return
            _remove(target)
        os.link(copy, target, follow_symlinks=False)

    def _kept(
        self, source: Path, status: os.stat_result, target: Path, old: Path, was: os.stat_result
    ) -> bool:
        """Keep the old file if it is the same, and not a name of a file that is another one by now."""
        if not self._is_same(source, status, old, was):
            return False
        if self._claimed.setdefault(_inode(was), _inode(status)) != _inode(status):
            return False
        if not self._in_place:
            try:
                os.link(old, target, follow_symlinks=False)
            except OSError:  # another file system, or too many names
                return False
        self._copier.note(status, target)
        return True

    def _is_same(self, source: Path, status: os.stat_result, old: Path, was: os.stat_result) -> bool:
        if status.st_mtime_ns != was.st_mtime_ns or not self._has_attributes(source, status, old, was):
            return False
        if stat.S_ISLNK(status.st_mode):
            return source.readlink() == old.readlink()
        if not stat.S_ISREG(status.st_mode):
            return status.st_rdev == was.st_rdev
        if status.st_size != was.st_size:
            return False
        return _is_shared(status, was) or _same_content(source, old)

    def _has_attributes(self, source: Path, status: os.stat_result, old: Path, was: os.stat_result) -> bool:
        return (
            status.st_mode == was.st_mode
            and self._copier.owner(status) == (was.st_uid, was.st_gid)
            and self._copier.attributes(source) == EntryCopier().attributes(old)
        )


def _names(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _inode(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _is_shared(status: os.stat_result, was: os.stat_result) -> bool:
    """Return whether two files of the same size and times are one, seen through two overlays.

    Archives such as squashfs have no ctime, and show the time of modification as such: the next version of
    an image may have the same ones, and the same inode numbers.
    """
    has_ctime = status.st_ctime_ns != status.st_mtime_ns
    return has_ctime and status.st_ino == was.st_ino and status.st_ctime_ns == was.st_ctime_ns


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        remove_tree(path)


def _same_content(first: Path, second: Path) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with (
        os.fdopen(os.open(first, flags), "rb", buffering=0) as one,
        os.fdopen(os.open(second, flags), "rb", buffering=0) as other,
    ):
        while (part := one.read(_CHUNK)) == other.read(_CHUNK):
            if not part:
                return True
    return False
