"""The one place that starts programs: argument lists only, closed stdin, a rebuilt environment.

Every program is the leader of a session of its own, so that ending it ends what it started too.
Failures are `ProcessFailed` with argv, exit code and stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import ProcessFailed
from utsuwa.host import pipes

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for a program that is stopped before its end."""
OUTPUT_LIMIT = 64 * 1024 * 1024
"""Bytes of output that are kept of one stream; a program that says more is stopped."""

_PACKAGES = {
    "apparmor_parser": "apparmor",
    "btrfs": "btrfs-progs",
    "criu": "criu",
    "dnsmasq": "dnsmasq-base",
    "lxc-start": "lxc",
    "lxc-stop": "lxc",
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mount": "mount",
    "nft": "nftables",
    "rsync": "rsync",
    "tc": "iproute2",
    "tar": "tar",
    "unsquashfs": "squashfs-tools",
    "xz": "xz-utils",
    "zstd": "zstd",
}


@dataclass(frozen=True)
class Completed:
    """A program that ended with an accepted exit code; `code` is -N where signal N ended it."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    accept: Container[int] = (0,),
    timeout: float = 60,  # noqa: ASYNC109 - ends the program, which asyncio.timeout cannot
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdout_fd: int | None = None,
) -> Completed:
    """Run a program to its end without blocking the event loop.

    `env` is added to the rebuilt environment (None takes a variable out); `stdout_fd` receives stdout
    in place of the result. Cancelled or past `timeout` seconds, the program is ended (SIGTERM, then
    SIGKILL) and reaped.
    Raises ProcessFailed, for a missing program as well.
    """
    process = _start(argv, stdin is not None, env, cwd, pass_fds, stdout_fd)
    try:
        pidfd = os.pidfd_open(process.pid)
    except BaseException:
        _kill_and_reap(process)
        raise
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await _communicate(process, stdin)
            await pipes.readable(pidfd)
        process.wait()
    except TimeoutError as error:
        raise ProcessFailed(argv, None, f"did not end within {timeout:g} seconds") from error
    except OverflowError as error:
        raise ProcessFailed(argv, None, f"wrote more than {OUTPUT_LIMIT} bytes") from error
    finally:
        await _end(process, pidfd)
    return _judge(argv, process.returncode, stdout, stderr, accept)


def run_blocking(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    accept: Container[int] = (0,),
    timeout: float = 60,
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdout_fd: int | None = None,
) -> Completed:
    """`run` for code that runs in a worker thread."""
    process = _start(argv, stdin is not None, env, cwd, pass_fds, stdout_fd)
    with process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise ProcessFailed(argv, None, f"did not end within {timeout:g} seconds") from error
        finally:
            if process.returncode is None:
                _kill_and_reap(process)
    return _judge(argv, process.returncode, stdout or b"", stderr, accept)


class Spawned:
    """A program that runs beside the daemon until it ends or is killed; `close` when done with it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self._pidfd = os.pidfd_open(process.pid)

    async def wait(self) -> int:
        """Its exit code, -N where signal N ended it."""
        if self._process.returncode is None:
            await pipes.readable(self._pidfd)
        return self._process.wait()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the program and what it started."""
        if self._process.returncode is None:
            _kill_group(self._process, number)

    def close(self) -> None:
        """Kill it where it still runs, and reap it."""
        if self._process.returncode is None:
            _kill_and_reap(self._process)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    output_fd: int | None = None,
) -> Spawned:
    """Start a program that is to run on; both outputs go to `output_fd`, by default to the daemon's stderr.

    It does not end with the daemon by itself. Raises ProcessFailed where it cannot be started.
    """
    output = sys.stderr.fileno() if output_fd is None else output_fd
    return Spawned(_popen(argv, subprocess.DEVNULL, output, output, env, cwd, pass_fds))


def environment(extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The environment that programs get: nothing of the daemon's own."""
    merged: dict[str, str | None] = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", **(extra or {})}
    return {name: value for name, value in merged.items() if value is not None}


def _start(
    argv: Sequence[str],
    with_stdin: bool,
    env: Mapping[str, str | None] | None,
    cwd: Path | None,
    pass_fds: Sequence[int],
    stdout_fd: int | None,
) -> subprocess.Popen[bytes]:
    stdin = subprocess.PIPE if with_stdin else subprocess.DEVNULL
    stdout = subprocess.PIPE if stdout_fd is None else stdout_fd
    return _popen(argv, stdin, stdout, subprocess.PIPE, env, cwd, pass_fds)


def _popen(
    argv: Sequence[str],
    stdin: int,
    stdout: int,
    stderr: int,
    env: Mapping[str, str | None] | None,
    cwd: Path | None,
    pass_fds: Sequence[int],
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise ProcessFailed(argv, None, _why_not_started(argv[0], cwd, error)) from error


def _why_not_started(program: str, cwd: Path | None, error: OSError) -> str:
    if cwd is not None and not cwd.is_dir():
        return f"the folder {cwd} is not there"
    if error.errno != errno.ENOENT:
        return f"cannot be started: {error.strerror}"
    package = _PACKAGES.get(Path(program).name)
    return f"not found; install Debian's package {package!r}" if package else "not found"


def _judge(argv: Sequence[str], code: int, stdout: bytes, stderr: bytes, accept: Container[int]) -> Completed:
    if code not in accept:
        raise ProcessFailed(argv, code, stderr.decode(errors="replace"))
    return Completed(tuple(argv), code, stdout, stderr)


async def _communicate(process: subprocess.Popen[bytes], stdin: bytes | None) -> tuple[bytes, bytes]:
    try:
        async with asyncio.TaskGroup() as group:
            if process.stdin is not None:
                group.create_task(_write(process.stdin.fileno(), process, stdin or b""))
            out = group.create_task(_read(process.stdout.fileno())) if process.stdout else None
            assert process.stderr is not None
            err = group.create_task(_read(process.stderr.fileno()))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return (out.result() if out else b""), err.result()


async def _read(fd: int) -> bytes:
    """Everything up to the end of a pipe; raises OverflowError past the limit."""
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    size = 0
    while part := await pipes.read(fd):
        parts.append(part)
        size += len(part)
        if size > OUTPUT_LIMIT:
            raise OverflowError
    return b"".join(parts)


async def _write(fd: int, process: subprocess.Popen[bytes], data: bytes) -> None:
    """Write all of `data` and close the pipe; a program that does not want it may close it first."""
    os.set_blocking(fd, False)
    try:
        await pipes.write(fd, data)
    except BrokenPipeError:
        pass
    finally:
        assert process.stdin is not None
        process.stdin.close()


async def _end(process: subprocess.Popen[bytes], pidfd: int) -> None:
    """Stop what still runs and close everything; never leaves a zombie."""
    try:
        if process.returncode is None:
            _kill_group(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await pipes.readable(pidfd)
    finally:
        if process.returncode is None:
            _kill_and_reap(process)
        os.close(pidfd)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _kill_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _kill_and_reap(process: subprocess.Popen[bytes]) -> None:
    _kill_group(process, signal.SIGKILL)
    process.wait()
