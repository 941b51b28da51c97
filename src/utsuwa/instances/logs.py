"""The files in an instance's folder of logs: listed, opened and removed by name.

liblxc writes there, and what commands said is recorded in `exec-output`. Names come from outside, so
only known ones are taken, and no symlink is followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidRequest, NotFound
from utsuwa.host import syscalls

OUTPUT_FOLDER = "exec-output"

_LOG = re.compile(r"(?:lxc\.(?:log|conf)|console\.log)(?:\.old)?\Z")
_OUTPUT = re.compile(r"exec_[0-9a-f-]{36}\.(?:stdout|stderr)\Z")
_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True)
class Output:
    """A file that a command writes one of its streams to."""

    name: str
    fd: int


async def names(folder: Path) -> list[str]:
    """The logs that may be read, by name; none where the instance was never started."""
    return await asyncio.to_thread(_names, folder, _LOG)


async def output_names(folder: Path) -> list[str]:
    """The recorded outputs of commands."""
    return await asyncio.to_thread(_names, folder / OUTPUT_FOLDER, _OUTPUT)


async def open_log(folder: Path, name: str) -> io.BufferedReader:
    """An open log, the caller's to close. InvalidRequest for names that no log has, NotFound."""
    return await asyncio.to_thread(_open, folder, _checked(name, _LOG))


async def open_output(folder: Path, name: str) -> io.BufferedReader:
    return await asyncio.to_thread(_open, folder / OUTPUT_FOLDER, _checked(name, _OUTPUT))


async def delete_log(folder: Path, name: str) -> None:
    """Remove an old log; the ones in use are refused."""
    _checked(name, _LOG)
    if not name.endswith(".old"):
        raise InvalidRequest(f"{name} may not be deleted: the instance uses it")
    await asyncio.to_thread(_delete, folder, name)


async def delete_output(folder: Path, name: str) -> None:
    await asyncio.to_thread(_delete, folder / OUTPUT_FOLDER, _checked(name, _OUTPUT))


async def create_outputs(folder: Path, operation_id: str) -> list[Output]:
    """Files for the stdout and the stderr of an operation's command, open for writing."""
    return await asyncio.to_thread(_create_outputs, folder, operation_id)


async def finish_outputs(outputs: Sequence[Output]) -> None:
    """Close the files; liblxc hands what a command writes to over to it, so they are taken back."""
    await asyncio.to_thread(_finish_outputs, outputs)


async def truncate(folder: Path, name: str) -> None:
    """Empty a log that something may be appending to; does nothing where it is not there."""
    await asyncio.to_thread(_truncate, folder, _checked(name, _LOG))


def _checked(name: str, pattern: re.Pattern[str]) -> str:
    if not pattern.match(name):
        raise InvalidRequest(f"Log file name {name[:80]!r} is not valid")
    return name


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if pattern.match(entry.name))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_file(folder: Path, name: str, flags: int) -> int:
    """A regular file of the folder; raises NotFound or InvalidRequest."""
    try:
        with _opened(folder) as parent:
            fd = syscalls.openat2(parent, name, flags | os.O_NONBLOCK | os.O_NOCTTY, resolve=_RESOLVE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound(f"The log file {name!r} is not there") from error
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise InvalidRequest(f"{name!r} is not a regular file") from error
        raise HostError(f"The log file {name!r} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidRequest(f"{name!r} is not a regular file")
    return fd


def _open(folder: Path, name: str) -> io.BufferedReader:
    return os.fdopen(_open_file(folder, name, os.O_RDONLY), "rb")


def _delete(folder: Path, name: str) -> None:
    try:
        with _opened(folder) as parent:
            os.unlink(name, dir_fd=parent)
    except FileNotFoundError as error:
        raise NotFound(f"The log file {name!r} is not there") from error


def _truncate(folder: Path, name: str) -> None:
    with contextlib.suppress(NotFound):
        fd = _open_file(folder, name, os.O_WRONLY)
        try:
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)


def _create_outputs(folder: Path, operation_id: str) -> list[Output]:
    outputs: list[Output] = []
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        (folder / OUTPUT_FOLDER).mkdir(mode=0o700, exist_ok=True)
        with _opened(folder / OUTPUT_FOLDER) as parent:
            for stream in ("stdout", "stderr"):
                name = f"exec_{operation_id}.{stream}"
                outputs.append(Output(name, os.open(name, flags, 0o600, dir_fd=parent)))
    except OSError as error:
        for output in outputs:
            os.close(output.fd)
        raise HostError(f"The command's output cannot be recorded: {error.strerror}") from error
    return outputs


def _finish_outputs(outputs: Sequence[Output]) -> None:
    for output in outputs:
        os.fchown(output.fd, os.geteuid(), os.getegid())
        os.fchmod(output.fd, 0o600)
        os.close(output.fd)
