"""Processes that are not ours to reap: their end, and signals to them, by pidfds."""

from __future__ import annotations

import contextlib
import errno
import os
import signal

from utsuwa.host.processes import pipes


async def wait(pid: int) -> None:
    """Until a process has ended; returns at once where there is none (any more)."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await pipes.readable(pidfd)
    finally:
        os.close(pidfd)


def send_signal(pid: int, number: int) -> None:
    """Send a signal; nothing happens where the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def kill(pid: int) -> None:
    send_signal(pid, signal.SIGKILL)


class Process:
    """A process held by its pidfd: what is sent reaches that one or nobody, whoever has its id by now.

    One that is gone already counts as ended. OSError where no descriptor is left.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd: int | None = None
        try:
            self._fd = os.pidfd_open(pid)
        except OSError as error:
            # The last two: the id is now that of a thread.
            if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise

    def fileno(self) -> int:
        """The pidfd, still this object's own; ProcessLookupError where it counts as ended."""
        if self._fd is None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return self._fd

    async def wait(self) -> None:
        """Until it has ended; by one caller at a time."""
        if self._fd is not None:
            await pipes.readable(self._fd)

    def send_signal(self, number: int) -> None:
        """Nothing happens where it has ended."""
        if self._fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        """Let go of it: from now on it counts as ended."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
