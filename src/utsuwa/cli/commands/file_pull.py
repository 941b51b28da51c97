"""`utsuwa file pull`."""

from __future__ import annotations

import os
import posixpath
import stat
import sys

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.output import progress
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import Flag
from utsuwa.cli.remote_files import BAD_REQUEST, File, RemoteFiles, parse, shown
from utsuwa.cli.unpacking import unpack
from utsuwa.client.errors import ApiError, BadAnswer
from utsuwa.core.tarstream import BadArchive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.core.tarstream import Member

_STDOUT = "-"
_LARGE = 1024 * 1024
"""Size of files whose progress is shown."""


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    *sources, target = arguments
    if not sources:
        raise UsageError("Name the files to pull and the target")
    found = [parse(session, source) for source in sources]
    if target == _STDOUT:
        for files, path in found:
            _write_out(files, path)
        return
    into = target.endswith("/") or len(found) > 1 or os.path.isdir(target)
    _make_local_directories(target if into else os.path.dirname(target), parents=flags.on("create-dirs"))
    pulling = _Pull(session, recursive=flags.on("recursive"))
    for files, path in found:
        name = posixpath.basename(posixpath.normpath(path))
        pulling.pull(files, path, name, target, into=into)


def _make_local_directories(path: str, *, parents: bool) -> None:
    if not path or os.path.isdir(path):
        return
    try:
        os.makedirs(path) if parents else os.mkdir(path)
    except OSError as error:
        hint = "" if parents else ": use --create-dirs"
        raise CommandFailed(f"Cannot create {shown(path)}: {error.strerror}{hint}") from error


def _write_out(files: RemoteFiles, path: str) -> None:
    """Write a file to standard output; symlinks are followed."""
    file = files.followed(path)
    sys.stdout.flush()
    for chunk in file.chunks():
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


class _Pull:
    """Writes files of instances below a local directory, whatever a server names them."""

    def __init__(self, session: Session, *, recursive: bool) -> None:
        self._session = session
        self._recursive = recursive
        self._line = progress.Line(session.shows_progress)

    def pull(self, files: RemoteFiles, path: str, name: str, target: str, *, into: bool) -> None:
        """Write what is at the path to the target, or `into` it.

        A directory is always put into the target, which is created: a repeated command has the same result.
        """
        file = files.get(path, archive=self._recursive)
        if file.type == "directory" and not self._recursive:
            file.content()
            raise CommandFailed("Can't pull a directory without --recursive")
        try:
            if file.type in ("archive", "directory"):
                os.makedirs(target, exist_ok=True)
                into = True
            if into and name:
                target = os.path.join(target, name)
            if file.type == "archive":
                self._unpack(files, file, path, target)
            elif file.type == "directory":
                self._write_directory(files, files.names(file, path), file.mode, path, target)
            else:
                self._write(file, path, target)
        except OSError as error:
            raise CommandFailed(
                f"Cannot write {shown(error.filename or target)}: {error.strerror}"
            ) from error
        finally:
            self._line.clear()

    def _unpack(self, files: RemoteFiles, file: File, path: str, target: str) -> None:
        def show(member: Member, done: int) -> None:
            percent = f": {done * 100 // member.size}%" if member.size >= _LARGE else ""
            inner = f"{path.rstrip('/')}/{member.path}"
            self._line.show(f"Pulling {shown(inner)}{percent}")

        def skip(what: str) -> None:
            self._line.clear()
            self._session.warn(f"Skipped {shown(what)}")

        _make_directory(target)
        try:
            unpack(file.chunks(), target, show, skip)
            file.content()  # what follows the end of the archive: nothing
        except BaseException as error:
            files.server.close()  # nobody will read the rest
            if isinstance(error, BadArchive):
                raise BadAnswer(f"The server sent an archive that cannot be unpacked: {error}") from error
            raise

    def _write_directory(
        self, files: RemoteFiles, names: list[str], mode: int, path: str, target: str
    ) -> None:
        """Write the files and then the directories in a directory: the former are requested ahead."""
        _make_directory(target)
        paths = [f"{path.rstrip('/')}/{name}" for name in names]
        targets = [os.path.join(target, name) for name in names]
        directories: list[tuple[list[str], int, str, str]] = []
        for inner, below, file in zip(paths, targets, files.get_each(paths), strict=True):
            if isinstance(file, ApiError):
                self._skip(file)
            elif file.type == "directory":
                directories.append((files.names(file, inner), file.mode, inner, below))
            else:
                self._write(file, inner, below)
        for directory in directories:
            self._write_directory(files, *directory)
        os.chmod(target, mode)

    def _write(self, file: File, path: str, target: str) -> None:
        self._line.show(f"Pulling {shown(path)}")
        if file.type == "symlink":
            link = file.target()
            _remove_link(target)
            os.symlink(link, target)
        else:
            self._write_file(file, path, target)

    def _skip(self, error: ApiError) -> None:
        """Leave out a special file. Raises any other error."""
        if error.code != BAD_REQUEST:
            raise error
        self._line.clear()
        self._session.warn(f"Skipped {error.message}")

    def _write_file(self, file: File, path: str, target: str) -> None:
        if self._recursive:
            _remove_link(target)  # do not write to where it leads
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o600)
        label = f"Pulling {shown(path)}"
        with open(fd, "wb") as local:
            show = self._session.shows_progress
            for chunk in progress.counted(file.chunks(), file.size, label, show=show):
                local.write(chunk)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.fchmod(fd, file.mode & 0o777)


def _make_directory(path: str) -> None:
    """Create a directory, to which nothing but this command's user may write meanwhile."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if os.path.islink(path):
            os.unlink(path)
            os.mkdir(path, 0o700)
        elif not os.path.isdir(path):
            raise


def _remove_link(path: str) -> None:
    if os.path.islink(path):
        os.unlink(path)


COMMAND = Command(
    "pull",
    "Pull files from instances",
    _run,
    args="[<remote>:]<instance>/<path>... <target path>",
    complete=("instances",),
    flags=(
        Flag("create-dirs", "Create any directories necessary", "p"),
        Flag("recursive", "Recursively transfer files", "r"),
    ),
    details="""\
The target `-` is standard output, for which symlinks are followed. Otherwise they stay symlinks. Devices,
FIFOs and sockets are skipped in recursive mode.""",
    example=("utsuwa file pull web/etc/hosts .", "Pull /etc/hosts into the current directory."),
)
