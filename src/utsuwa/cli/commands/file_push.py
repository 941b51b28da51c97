"""`utsuwa file push`."""

from __future__ import annotations

import os
import stat
import sys

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.output import progress
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.cli.remote_files import Owner, RemoteFiles, given_owner, parse, shown
from utsuwa.client.http import FileBody
from utsuwa.core import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_CHUNK = 256 * 1024
_LARGE = 1024 * 1024
"""Size of files that are sent by the kernel, as large as they are at the beginning."""
_STDIN = "-"
_STDIN_MODE = 0o600

SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    *sources, target = arguments
    files, path = parse(session, target)
    owner = given_owner(flags)
    into = path.endswith("/") or path.rsplit("/", 1)[-1] in (".", "..")
    if flags.on("recursive"):
        if owner.uid is not None or owner.gid is not None or owner.mode is not None:
            raise UsageError("Can't supply uid/gid/mode in recursive mode")
        if flags.on("create-dirs"):
            files.make_directories(path, Owner())
        archive = files.takes_archives()
        for source in sources:
            _Tree(session, files, archive=archive).push(os.path.normpath(source), path)
        files.settle()
        return
    if len(sources) > 1 and not into:
        raise UsageError("Missing target directory: with several files, the target ends with /")
    if flags.on("create-dirs"):
        directory = path if into else path.rpartition("/")[0]
        files.make_directories(directory, Owner(owner.uid, owner.gid))
    for source in sources:
        if source == _STDIN and into:
            raise UsageError("Name the file that standard input is to be written to")
        _push_one(session, files, source, f"{path}/{os.path.basename(source)}" if into else path, owner)
    files.settle()


def _push_one(session: Session, files: RemoteFiles, source: str, path: str, owner: Owner) -> None:
    """Push a file; owner and mode are those of the local file, unless they are given."""
    if source == _STDIN:
        mode = _STDIN_MODE if owner.mode is None else owner.mode
        files.push(path, iter(lambda: sys.stdin.buffer.read(_CHUNK), b""), Owner(owner.uid, owner.gid, mode))
        return
    fd = _open(source)
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise CommandFailed(f"{shown(source)} is a directory: use --recursive")
        filled = Owner(
            found.st_uid if owner.uid is None else owner.uid,
            found.st_gid if owner.gid is None else owner.gid,
            found.st_mode & 0o777 if owner.mode is None else owner.mode,
        )
        _send(session, files, source, path, fd, found.st_size, filled)
    finally:
        os.close(fd)


def _open(source: str, flags: int = 0) -> int:
    try:
        return os.open(source, os.O_RDONLY | flags)
    except OSError as error:
        raise CommandFailed(f"Cannot read {shown(source)}: {error.strerror}") from error


def _send(
    session: Session, files: RemoteFiles, source: str, path: str, fd: int, size: int, owner: Owner
) -> None:
    first = os.read(fd, _CHUNK)
    if len(first) < _CHUNK and len(first) >= size:
        files.push_ahead(path, first, owner)
        return

    label = f"Pushing {shown(source)} to {shown(path)}"
    if size >= _LARGE:
        line = progress.Line(session.shows_progress)
        try:
            body = FileBody(fd, size, lambda done: line.show(f"{label}: {done * 100 // size}%"))
            files.push(path, body, owner)
        finally:
            line.clear()
        return

    def chunks() -> Iterator[bytes]:
        chunk = first
        while chunk:
            yield chunk
            chunk = os.read(fd, _CHUNK)

    files.push(path, progress.counted(chunks(), size, label, show=session.shows_progress), owner)


class _Tree:
    """A recursive push of one source; the last name of the source is created below the target."""

    def __init__(self, session: Session, files: RemoteFiles, *, archive: bool) -> None:
        """With `archive`, all of it is one request, otherwise each file is one."""
        self._session = session
        self._files = files
        self._archive = archive
        self._line = progress.Line(session.shows_progress)

    def push(self, source: str, target: str) -> None:
        name = os.path.basename(source)
        if name in (".", ".."):
            name = ""
        try:
            if self._archive:
                self._files.push_archive(target, _joined(self._members(source, name)))
            else:
                self._push(source, f"{target.rstrip('/')}/{name}" if name else target)
        finally:
            self._line.clear()

    def _members(self, source: str, path: str) -> Iterator[bytes]:
        """Yield the archive of whatever there is; symlinks are not followed."""
        yield from self._member(source, path)
        yield tar.END

    def _member(self, source: str, path: str) -> Iterator[bytes]:
        found = self._look(source)
        ids, mode = (found.st_uid, found.st_gid), found.st_mode & 0o777
        if stat.S_ISDIR(found.st_mode):
            yield tar.header(path, tar.DIRECTORY, mode, ids)
            for name in _names(source):
                yield from self._member(os.path.join(source, name), f"{path}/{name}" if path else name)
        elif stat.S_ISLNK(found.st_mode):
            yield tar.header(path, tar.SYMLINK, mode, ids, target=os.readlink(source))
        elif stat.S_ISREG(found.st_mode):
            fd = _open(source, os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                size = os.fstat(fd).st_size
                yield tar.header(path, tar.FILE, mode, ids, size=size)
                yield from self._content(source, path, fd, size)
                yield tar.padding(size)
            finally:
                os.close(fd)
        else:
            self._skip(source, found)

    def _content(self, source: str, path: str, fd: int, size: int) -> Iterator[bytes]:
        """Yield as many bytes as the header says; what is appended meanwhile is left out."""
        if size < _CHUNK:
            chunks = iter((os.read(fd, size),))
        else:
            label = f"Pushing {shown(source)} to {shown(path)}"
            read = iter(lambda: os.read(fd, _CHUNK), b"")
            chunks = progress.counted(read, size, label, show=self._session.shows_progress)
        left = size
        for chunk in chunks:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return
        if left > 0:
            raise CommandFailed(f"{shown(source)} has become shorter while it was read")

    def _push(self, source: str, path: str) -> None:
        """Push whatever there is; symlinks are not followed."""
        found = self._look(source)
        owner = Owner(found.st_uid, found.st_gid, found.st_mode & 0o777)
        if stat.S_ISDIR(found.st_mode):
            self._files.make_directory(path, owner)
            for name in _names(source):
                self._push(os.path.join(source, name), f"{path.rstrip('/')}/{name}")
        elif stat.S_ISLNK(found.st_mode):
            self._files.make_symlink(path, os.readlink(source), owner)
        elif stat.S_ISREG(found.st_mode):
            fd = _open(source, os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                _send(self._session, self._files, source, path, fd, found.st_size, owner)
            finally:
                os.close(fd)
        else:
            self._skip(source, found)

    def _look(self, source: str) -> os.stat_result:
        try:
            found = os.lstat(source)
        except OSError as error:
            raise CommandFailed(f"Cannot read {shown(source)}: {error.strerror}") from error
        self._line.show(f"Pushing {shown(source)}")
        return found

    def _skip(self, source: str, found: os.stat_result) -> None:
        kind = SPECIAL.get(stat.S_IFMT(found.st_mode), "a special file")
        self._line.clear()
        self._session.warn(f"Skipped {shown(source)}: {kind}")


def _names(source: str) -> list[str]:
    try:
        return sorted(os.listdir(source))
    except OSError as error:
        raise CommandFailed(f"Cannot read {shown(source)}: {error.strerror}") from error


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join small pieces to chunks, so that few system calls send them."""
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= _CHUNK:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


COMMAND = Command(
    "push",
    "Push files into instances",
    _run,
    args="<source path>... [<remote>:]<instance>/<path>",
    flags=(
        Flag("create-dirs", "Create any directories necessary", "p"),
        Flag("gid", "Set the file's gid on push", kind=TEXT, default="-1"),
        Flag("mode", "Set the file's permissions on push (octal)", kind=TEXT),
        Flag("recursive", "Recursively transfer files", "r"),
        Flag("uid", "Set the file's uid on push", kind=TEXT, default="-1"),
    ),
    details="""\
The source `-` is standard input. Owner and mode are those of the local file, unless they are given. Symlinks
stay symlinks in recursive mode; devices, FIFOs and sockets are skipped.""",
    example=("utsuwa file push /etc/hosts web/etc/hosts", "Push /etc/hosts into the instance."),
)
