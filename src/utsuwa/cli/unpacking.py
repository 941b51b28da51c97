"""Unpacking an archive of a server below a local directory, and nowhere else, whatever the server sends."""

from __future__ import annotations

import os
import stat

from utsuwa.cli.errors import CommandFailed
from utsuwa.core.tar import FAILED, SKIPPED
from utsuwa.core.tarstream import DIRECTORY, FILE, LINK, SYMLINK, BadArchive, TarStream, checked_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from utsuwa.core.tarstream import Member

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def unpack(
    chunks: Iterable[bytes], target: str, show: Callable[[Member, int], None], skip: Callable[[str], None]
) -> None:
    """Unpack an archive; `target` is an existing directory.

    `show` is called with each member and how much of it is there, `skip` with what the server has left out.
    Symlinks that are here already are replaced, and not followed. Raises BadArchive, OSError, and
    CommandFailed with what the server could not read.
    """
    root = os.open(target, _OPEN_FOLDER)
    unpacking = _Unpacking(root, show, skip)
    stream = TarStream(unpacking, extended=True)
    try:
        for chunk in chunks:
            stream.feed(memoryview(chunk))
        if not stream.ended:
            raise BadArchive("the archive is cut off")
        unpacking.complete()
    finally:
        unpacking.close()


class _Folder:
    """An open directory; its mode is set when all that is in it is there."""

    def __init__(self, name: str, fd: int, mode: int | None) -> None:
        self.name = name
        self.fd = fd
        self.mode = mode

    def complete(self) -> None:
        if self.mode is not None:
            os.fchmod(self.fd, self.mode)


class _Unpacking:
    """The sink of the archive. It has those directories open that lead to the last member."""

    def __init__(self, root: int, show: Callable[[Member, int], None], skip: Callable[[str], None]) -> None:
        self._folders = [_Folder("", root, None)]
        self._show = show
        self._skip = skip
        self._member: Member | None = None
        self._file = -1
        self._done = 0

    def member(self, member: Member) -> None:
        self._member, self._done = member, 0
        self._show(member, 0)
        if not member.path:
            self._folders[0].mode = member.mode
            return
        folder, name = self._parent(member.path)
        if member.type == DIRECTORY:
            _make_directory(name, folder)
            self._enter(name, member.mode)
        elif member.type == SYMLINK:
            _remove_link(name, folder)
            os.symlink(member.target, name, dir_fd=folder)
        elif member.type == LINK:
            self._link(member, name, folder)
        else:
            _remove_link(name, folder, hard=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW
            self._file = os.open(name, flags, 0o600, dir_fd=folder)

    def content(self, data: memoryview) -> None:
        assert self._member is not None
        self._done += len(data)
        while data:
            data = data[os.write(self._file, data) :]
        self._show(self._member, self._done)

    def end(self) -> None:
        member = self._member
        if self._file >= 0 and member is not None and member.type == FILE:
            if stat.S_ISREG(os.fstat(self._file).st_mode):
                os.fchmod(self._file, member.mode & 0o777)
            self._close_file()

    def comment(self, text: str) -> None:
        if text.startswith(FAILED):
            raise CommandFailed(text.removeprefix(FAILED))
        if text.startswith(SKIPPED):
            self._skip(text.removeprefix(SKIPPED))

    def complete(self) -> None:
        """All is there."""
        while self._folders:
            self._leave()

    def close(self) -> None:
        """Close what is open, also after a failure; the modes of directories are not set then."""
        self._close_file()
        while self._folders:
            os.close(self._folders.pop().fd)

    def _parent(self, path: str) -> tuple[int, str]:
        """Return the directory that a member is in, and its name there. Symlinks do not lead there."""
        *parts, name = path.split("/")
        common = 0
        for folder, part in zip(self._folders[1:], parts, strict=False):
            if folder.name != part:
                break
            common += 1
        while len(self._folders) > 1 + common:
            self._leave()
        for part in parts[common:]:
            self._enter(part, None)
        return self._folders[-1].fd, name

    def _enter(self, name: str, mode: int | None) -> None:
        fd = os.open(name, _OPEN_FOLDER, dir_fd=self._folders[-1].fd)
        self._folders.append(_Folder(name, fd, mode))

    def _leave(self) -> None:
        folder = self._folders.pop()
        try:
            folder.complete()
        finally:
            os.close(folder.fd)

    def _link(self, member: Member, name: str, folder: int) -> None:
        """Create another name of a file that is there already, below the same directory."""
        *parts, first = checked_path(member.target).split("/")
        source = os.dup(self._folders[0].fd)
        try:
            for part in parts:
                above, source = source, os.open(part, _OPEN_FOLDER, dir_fd=source)
                os.close(above)
            if not stat.S_ISREG(os.stat(first, dir_fd=source, follow_symlinks=False).st_mode):
                raise BadArchive("a hard link to something else than a file")
            try:
                os.link(first, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                os.unlink(name, dir_fd=folder)
                os.link(first, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(source)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _make_directory(name: str, folder: int) -> None:
    """Create a directory, to which nothing but this command's user may write meanwhile."""
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        if _remove_link(name, folder):
            os.mkdir(name, 0o700, dir_fd=folder)


def _remove_link(name: str, folder: int, *, hard: bool = False) -> bool:
    """Remove a symlink, or a `hard` link to a file that has other names; return whether there was one."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    is_link = stat.S_ISLNK(found.st_mode) or (hard and stat.S_ISREG(found.st_mode) and found.st_nlink > 1)
    if is_link:
        os.unlink(name, dir_fd=folder)
    return is_link
