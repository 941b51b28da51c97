"""The files in an instance's log directory: listed, opened and removed by name.

liblxc writes its logs there, and recorded output of commands is in `exec-output`. Names are external, so only
known ones are accepted, and symlinks are not followed.
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
    """A file to which a command writes one of its streams."""

    name: str
    fd: int


async def names(folder: Path) -> list[str]:
    """Return the names of the logs, sorted; none if the instance has never been started."""
    return await asyncio.to_thread(_names, folder, _LOG)


async def output_names(folder: Path) -> list[str]:
    """Return the names of the recorded outputs of commands, sorted."""
    return await asyncio.to_thread(_names, folder / OUTPUT_FOLDER, _OUTPUT)


async def open_log(folder: Path, name: str) -> io.BufferedReader:
    """Open a log, which the caller must close. Raises InvalidRequest for invalid names, NotFound."""
    return await asyncio.to_thread(_open, folder, _checked(name, _LOG))


async def open_output(folder: Path, name: str) -> io.BufferedReader:
    return await asyncio.to_thread(_open, folder / OUTPUT_FOLDER, _checked(name, _OUTPUT))


async def delete_log(folder: Path, name: str) -> None:
    """Remove an old log. Raises InvalidRequest for one that is in use or an invalid name, NotFound."""
    _checked(name, _LOG)
    if not name.endswith(".old"):
        raise InvalidRequest(f"{name} cannot be deleted: the instance uses it")
    await asyncio.to_thread(_delete, folder, name)


async def delete_output(folder: Path, name: str) -> None:
    await asyncio.to_thread(_delete, folder / OUTPUT_FOLDER, _checked(name, _OUTPUT))


async def create_outputs(folder: Path, operation_id: str) -> list[Output]:
    """Create the files for stdout and stderr of an operation's command, open for writing."""
    return await asyncio.to_thread(_create_outputs, folder, operation_id)


async def finish_outputs(outputs: Sequence[Output]) -> None:
    """Restore owner and mode of the files, which liblxc passes to the command's user, and close them."""
    await asyncio.to_thread(_finish_outputs, outputs)


async def truncate(folder: Path, name: str) -> None:
    """Truncate a log that may be open for appending, if it exists."""
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
    """Open a regular file of the directory. Raises NotFound, InvalidRequest, HostError."""
    try:
        with _opened(folder) as parent:
            fd = syscalls.openat2(parent, name, flags | os.O_NONBLOCK | os.O_NOCTTY, resolve=_RESOLVE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound(f"The log file {name!r} does not exist") from error
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
        raise NotFound(f"The log file {name!r} does not exist") from error


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
