"""Processes that are not children of the daemon: waiting for them and signalling them by pidfds."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal

from utsuwa.host.processes import pipes

_ENDED = (errno.ESRCH, errno.EINVAL, errno.ENOENT)
"""How `pidfd_open` fails for a process that has ended: the last two if the pid is now the id of a thread, and
on Linux before 6.9 also for a moment after it was waited for."""


def _opened(pid: int) -> int | None:
    """Return a pidfd, None if the process has ended. Raises OSError if no descriptor is available."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _ENDED:
            return None
        raise


async def wait(pid: int) -> None:
    """Wait until a process has ended; returns at once if it does not exist."""
    pidfd = _opened(pid)
    if pidfd is None:
        return
    try:
        await pipes.readable(pidfd)
    finally:
        os.close(pidfd)


def send_signal(pid: int, number: int) -> None:
    """Send a signal; does nothing if the process has ended."""
    pidfd = _opened(pid)
    if pidfd is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def kill(pid: int) -> None:
    send_signal(pid, signal.SIGKILL)


class Process:
    """A process identified by a pidfd: signals never reach another process that has reused its pid.

    A process that does not exist counts as ended. Raises OSError if no descriptor is available.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = _opened(pid)

    def fileno(self) -> int:
        """Return the pidfd, still owned by this object. Raises ProcessLookupError if it has ended."""
        if self._fd is None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return self._fd

    @property
    def ended(self) -> bool:
        """Whether the process has ended, or was released."""
        if self._fd is None:
            return True
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    async def wait(self) -> None:
        """Wait until it has ended; one caller at a time."""
        if self._fd is not None:
            await pipes.readable(self._fd)

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing if it has ended."""
        if self._fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        """Release the pidfd: from now on the process counts as ended."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
