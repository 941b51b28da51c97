"""The only module that starts programs: argument lists only, closed stdin, a clean environment.

Every program becomes a session leader, so that killing it kills its children too. Failures raise
`ProcessFailed` with argv, exit code and stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

from utsuwa.core.errors import ProcessFailed
from utsuwa.core.threads import Workers
from utsuwa.host.processes import pipes, spawning
from utsuwa.host.processes.stopper import Stopper

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for a program that is stopped early."""
OUTPUT_LIMIT = 64 * 1024 * 1024
"""Maximum output per stream in bytes; a program that writes more is stopped."""

_PACKAGES = {
    "apparmor_parser": "apparmor",
    "blkid": "util-linux",
    "btrfs": "btrfs-progs",
    "bzip2": "bzip2",
    "criu": "criu",
    "dnsmasq": "dnsmasq-base",
    "gzip": "gzip",
    "lz4": "lz4",
    "lxc-start": "lxc",
    "lxc-stop": "lxc",
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "modprobe": "kmod",
    "mount": "mount",
    "nft": "nftables",
    "pigz": "pigz",
    "rsync": "rsync",
    "tc": "iproute2",
    "tar": "tar",
    "unsquashfs": "squashfs-tools",
    "xz": "xz-utils",
    "zstd": "zstd",
}


@dataclass(frozen=True)
class Completed:
    """A program that ended with an accepted exit code; `code` is -N if killed by signal N."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Return stdout as text; invalid UTF-8 is replaced."""
        return self.stdout.decode(errors="replace")


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    stdin_fd: int | None = None,
    accept: Container[int] = (0,),
    timeout: float | None = 60,  # noqa: ASYNC109 - stops the program, which asyncio.timeout cannot
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdout_fd: int | None = None,
    stopper: Stopper | None = None,
    started: Callable[[], None] | None = None,
) -> Completed:
    """Run a program to completion without blocking the event loop.

    `env` is added to the clean environment (None removes a variable); `stdin_fd` is read in place of `stdin`,
    `stdout_fd` receives stdout instead of the result; `started` is called when the program has both, so that
    the caller can close them. If cancelled or after `timeout` seconds, the program is
    killed (SIGTERM, SIGKILL) and reaped. Raises ProcessFailed, also for a missing program, and if `stopper`
    has stopped it.
    """
    start = partial(_start_child, argv, stdin is not None, env, cwd, pass_fds, stdin_fd, stdout_fd)
    child = await _started(start)
    try:
        pidfd = os.pidfd_open(child.pid)
    except BaseException:
        child.kill()
        child.close()
        raise
    try:
        if started is not None:
            started()
        with stopper.watch(child) if stopper else contextlib.nullcontext():
            async with asyncio.timeout(timeout):
                stdout, stderr = await _communicate(child, stdin)
                await pipes.readable(pidfd)
        code = child.wait()
    except TimeoutError as error:
        raise ProcessFailed(argv, None, f"did not end within {timeout:g} seconds") from error
    except OverflowError as error:
        raise ProcessFailed(argv, None, f"wrote more than {OUTPUT_LIMIT} bytes") from error
    finally:
        await _end(child, pidfd)
    if stopper is not None and stopper.stopped:
        raise ProcessFailed(argv, code, "was stopped before its end")
    return _judge(argv, code, stdout, stderr, accept)


class Options(TypedDict, total=False):
    """The options of `run`."""

    stdin: bytes | None
    stdin_fd: int | None
    accept: Container[int]
    timeout: float | None
    env: Mapping[str, str | None] | None
    cwd: Path | None
    pass_fds: Sequence[int]
    stdout_fd: int | None
    stopper: Stopper | None


def run_blocking(argv: Sequence[str], **options: Unpack[Options]) -> Completed:
    """`run` for worker threads, which are not cancelled: `stopper` can stop the program."""
    return asyncio.run(run(argv, **options))


class Child:
    """A program, with the daemon's ends of its pipes."""

    def __init__(
        self, pid: int, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
    ) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.code: int | None = None

    def wait(self) -> int:
        """Reap it and return its exit code, -N if killed by signal N."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the program and its children."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill and reap it."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def close_stdin(self) -> None:
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None

    def close(self) -> None:
        self.close_stdin()
        for descriptor in (self.stdout, self.stderr):
            if descriptor is not None:
                os.close(descriptor)


async def _started(start: Callable[[], Child]) -> Child:
    """Start a program in another thread: it takes milliseconds on a busy machine, until it is loaded."""
    if threading.current_thread() is not threading.main_thread():  # `run_blocking`
        return start()
    children: list[Child] = []
    try:
        await _starters.run(lambda: children.append(start()))
    except BaseException:
        for child in children:
            child.kill()
            child.close()
        raise
    return children[0]


_starters = Workers(4, "programs")


def _start_child(
    argv: Sequence[str],
    with_stdin: bool,
    env: Mapping[str, str | None] | None,
    cwd: Path | None,
    pass_fds: Sequence[int],
    stdin_fd: int | None,
    stdout_fd: int | None,
) -> Child:
    """Start a program with pipes, unless descriptors are given."""
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        stdin = None
        if with_stdin:
            their_stdin, stdin = _pipe(theirs, ours)
        else:
            their_stdin = _nothing(theirs) if stdin_fd is None else stdin_fd
        stdout, their_stdout = _pipe(ours, theirs) if stdout_fd is None else (None, stdout_fd)
        stderr, their_stderr = _pipe(ours, theirs)
        pid = start_program(argv, env, (their_stdin, their_stdout, their_stderr), cwd, pass_fds)
        ours.pop_all()
    return Child(pid, stdin, stdout, stderr)


def _nothing(stack: contextlib.ExitStack) -> int:
    """Open an empty stdin, which the stack closes."""
    descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """Create a pipe whose ends are each closed by one stack."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    reader.callback(os.close, reading)
    writer.callback(os.close, writing)
    return reading, writing


class Spawned:
    """A long-running program, which runs until it ends or is killed; call `close` when done with it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._child = Child(pid)
        self._pidfd = os.pidfd_open(pid)

    async def wait(self) -> int:
        """Wait for it and return its exit code, -N if killed by signal N."""
        if self._child.code is None:
            await pipes.readable(self._pidfd)
        return self._child.wait()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the program and its children."""
        self._child.send_signal(number)

    def close(self) -> None:
        """Kill it if it still runs, and reap it."""
        self._child.kill()
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
    """Start a long-running program; its output goes to `output_fd`, by default the daemon's stderr.

    It is not killed when the daemon ends. Raises ProcessFailed if it cannot be started.
    """
    output = sys.stderr.fileno() if output_fd is None else output_fd
    with contextlib.ExitStack() as theirs:
        return Spawned(start_program(argv, env, (_nothing(theirs), output, output), cwd, pass_fds))


def environment(extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Return the environment for programs, which inherits nothing from the daemon."""
    merged: dict[str, str | None] = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", **(extra or {})}
    return {name: value for name, value in merged.items() if value is not None}


def start_program(
    argv: Sequence[str],
    env: Mapping[str, str | None] | None,
    streams: tuple[int, int, int],
    cwd: Path | None,
    pass_fds: Sequence[int],
) -> int:
    """Start a program without blocking other threads, and return its pid."""
    try:
        return spawning.start(argv, environment(env), streams, cwd=cwd, pass_fds=pass_fds)
    except OSError as error:
        raise ProcessFailed(argv, None, _why_not_started(argv[0], cwd, error)) from error


def _why_not_started(program: str, cwd: Path | None, error: OSError) -> str:
    if cwd is not None and not cwd.is_dir():
        return f"the directory {cwd} does not exist"
    if error.errno != errno.ENOENT:
        return f"cannot be started: {error.strerror}"
    package = package_of(program)
    return f"not found; install Debian's package {package!r}" if package else "not found"


def package_of(program: str) -> str:
    """Return Debian's package with a program, as far as it is known; empty otherwise."""
    return _PACKAGES.get(Path(program).name, "")


def _judge(argv: Sequence[str], code: int, stdout: bytes, stderr: bytes, accept: Container[int]) -> Completed:
    if code not in accept:
        raise ProcessFailed(argv, code, stderr.decode(errors="replace"))
    return Completed(tuple(argv), code, stdout, stderr)


async def _communicate(child: Child, stdin: bytes | None) -> tuple[bytes, bytes]:
    try:
        async with asyncio.TaskGroup() as group:
            if child.stdin is not None:
                group.create_task(_write(child.stdin, child, stdin or b""))
            out = group.create_task(_read(child.stdout))
            err = group.create_task(_read(child.stderr))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return out.result(), err.result()


async def _read(fd: int | None) -> bytes:
    """Read up to the end of a pipe, if there is one. Raises OverflowError if it exceeds the limit."""
    if fd is None:
        return b""
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    size = 0
    while part := await pipes.read(fd):
        parts.append(part)
        size += len(part)
        if size > OUTPUT_LIMIT:
            raise OverflowError
    return b"".join(parts)


async def _write(fd: int, child: Child, data: bytes) -> None:
    """Write all of `data` and close the pipe; the program may close it earlier."""
    os.set_blocking(fd, False)
    try:
        await pipes.write(fd, data)
    except BrokenPipeError:
        pass
    finally:
        child.close_stdin()


async def _end(child: Child, pidfd: int) -> None:
    """Stop the program if it still runs and close everything; never leaves a zombie."""
    try:
        if child.code is None:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await pipes.readable(pidfd)
    finally:
        if child.code is None:
            child.kill()
        os.close(pidfd)
        child.close()
