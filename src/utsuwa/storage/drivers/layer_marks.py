"""What a layer contains that an archive of its files does not: the marks of overlayfs, and sockets.

As a document: entries one after the other, each of three fields that end with a zero byte: the path, the kind
and a value. What comes from another server is checked, and applied without following symlinks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidRequest
from utsuwa.host import syscalls

_OPAQUE, _REDIRECT = "trusted.overlay.opaque", "trusted.overlay.redirect"
_KINDS = {b"o": _OPAQUE, b"r": _REDIRECT}
_SOCKET = b"s"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PATH = 4096
_MAX_DEPTH = 1000
"""Maximum number of directories that are open at a time: a guest can nest them without an end."""
_MAX_ID = 2**32 - 2


@dataclass(frozen=True)
class Mark:
    """`value` is that of an attribute; of a socket, its mode, owner, group and time in nanoseconds."""

    path: bytes
    kind: bytes
    value: bytes


def collect(tree: Path) -> bytes:
    """Return the document of a frozen layer. Blocking."""
    return b"".join(b"%s\0%s\0%s\0" % (mark.path, mark.kind, mark.value) for mark in _marks(tree))


def _marks(tree: Path) -> Iterator[Mark]:
    """Yield the marks of all directories, which are all that is opened, and of the sockets in them."""
    waiting = [_Folder(".", os.open(tree, _FOLDER))]
    try:
        while waiting:
            folder = waiting[-1]
            if folder.below is None:
                folder.below = []
                for mark in _marks_in(folder, folder.below):
                    at = b"/".join(os.fsencode(above.name) for above in waiting[1:]) or b"."
                    yield replace(mark, path=at + b"/" + mark.path if mark.path else at)
            elif folder.below:
                if len(waiting) > _MAX_DEPTH:
                    raise HostError(
                        f"there are directories in {tree} that are more than {_MAX_DEPTH} levels deep"
                    )
                name = folder.below.pop()
                waiting.append(_Folder(name, os.open(name, _FOLDER, dir_fd=folder.fd)))
            else:
                os.close(waiting.pop().fd)
    finally:
        for folder in waiting:
            os.close(folder.fd)


@dataclass
class _Folder:
    """An open directory. `below` are the names of those in it that are still to be looked at, once known."""

    name: str
    fd: int
    below: list[str] | None = None


def _marks_in(folder: _Folder, below: list[str]) -> Iterator[Mark]:
    """Yield the marks of a directory and of sockets in it, by paths from there; add the directories in it."""
    there = os.listxattr(folder.fd)
    for kind, name in _KINDS.items():
        if name in there:
            yield Mark(b"", kind, os.getxattr(folder.fd, name))
    sockets = []
    with os.scandir(folder.fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            elif _is_socket(entry):
                sockets.append(entry.name)
    for name in sockets:
        status = os.lstat(name, dir_fd=folder.fd)
        mode = stat.S_IMODE(status.st_mode)
        values = (mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        yield Mark(os.fsencode(name), _SOCKET, b" ".join(b"%d" % value for value in values))


def _is_socket(entry: os.DirEntry[str]) -> bool:
    """Return whether what is not a directory is a socket, at best without looking at its inode."""
    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
        return False
    return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)


def parse(document: bytes) -> list[Mark]:
    """Raises InvalidRequest for a document that `collect` cannot have made."""
    fields = document.split(b"\0")
    if fields.pop() or len(fields) % 3:
        raise _invalid()
    return [_checked(Mark(*fields[at : at + 3])) for at in range(0, len(fields), 3)]


def _checked(mark: Mark) -> Mark:
    parts = mark.path.split(b"/")
    if not mark.path or len(mark.path) > _MAX_PATH or b".." in parts or b"" in parts:
        raise _invalid()
    if mark.kind == b"o":
        valid = mark.value == b"y"
    elif mark.kind == b"r":
        valid = _is_redirect(mark.value)
    else:
        valid = mark.kind == _SOCKET and _is_description(mark.value) and parts[-1] != b"."
    if not valid:
        raise _invalid()
    return mark


def _is_redirect(value: bytes) -> bool:
    """Return whether a directory may be elsewhere in lower layers: a name, or a path from their root."""
    parts = value.removeprefix(b"/").split(b"/")
    if len(value) > _MAX_PATH or any(part in (b"", b".", b"..") for part in parts):
        return False
    return len(parts) == 1 or value.startswith(b"/")


def _is_description(value: bytes) -> bool:
    fields = value.split(b" ")
    if len(fields) != 4 or not all(field.isdigit() and len(field) < 20 for field in fields):
        return False
    mode, uid, gid, _ = map(int, fields)
    return mode <= 0o7777 and uid <= _MAX_ID and gid <= _MAX_ID


def apply(tree: Path, marks: list[Mark]) -> None:
    """Give a new layer what belongs to it. Blocking. Raises InvalidRequest if it has no such directory."""
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for mark in marks:
            if mark.kind == _SOCKET:
                folder, _, name = mark.path.rpartition(b"/")
                with _opened(root, folder or b".") as fd:
                    _make_socket(fd, name, mark.value)
            else:
                with _opened(root, mark.path) as fd:
                    os.setxattr(fd, _KINDS[mark.kind], mark.value)
    except OSError as error:
        raise InvalidRequest(f"The other server describes a layer wrongly: {error.strerror}") from error
    finally:
        os.close(root)


@contextmanager
def _opened(root: int, path: bytes) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV
    fd = syscalls.openat2(root, os.fsdecode(path), flags, resolve=resolve)
    try:
        yield fd
    finally:
        os.close(fd)


def _make_socket(folder: int, name: bytes, value: bytes) -> None:
    mode, uid, gid, modified = map(int, value.split(b" "))
    status = os.fstat(folder)
    os.mknod(name, stat.S_IFSOCK | 0o600, dir_fd=folder)
    os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
    os.chmod(name, mode, dir_fd=folder)  # a new socket: nothing else changes the layer
    os.utime(name, ns=(modified, modified), dir_fd=folder, follow_symlinks=False)
    os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))


def _invalid() -> InvalidRequest:
    return InvalidRequest("The other server describes a layer wrongly")
