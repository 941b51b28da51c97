"""Processes that are not ours to reap: their end, and signals to them, by pidfds."""

from __future__ import annotations

import contextlib
import os
import signal

from utsuwa.host import pipes


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
