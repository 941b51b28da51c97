"""Guards of the unit tests: no real processes, no blocked event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsIndex

# Far above what any callback of ours takes, far enough below what a user would notice.
SLOW_CALLBACK_SECONDS = 0.5

_PROCESS_EVENTS = frozenset(
    {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "pty.spawn"}
)


class ProcessRefused(BaseException):
    """A unit test tried to start a real process; a BaseException, so that no handler swallows it."""


class LoopBlocked(AssertionError):
    """A callback blocked the event loop."""


class _ProcessGuard:
    """The audit hook; hooks cannot be removed, so it is installed once and enabled as needed."""

    def __init__(self) -> None:
        self.active = False
        self.installed = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event in _PROCESS_EVENTS:
            raise ProcessRefused(f"{event} {arguments[:2]!r}: mark the test `processes` if it means to")


_guard = _ProcessGuard()


class _Starvation:
    """Seconds that could not be used because processors were lacking: a callback may have waited for the
    interpreter lock of a thread that was ready and did not run, or for a processor that the host took away.
    """

    def __init__(self) -> None:
        self._begin = _starved()

    def forgive(self, seconds: float) -> float:
        """What is left of a callback's time; each second of starvation is taken off once."""
        forgiven = min(max(_starved() - self._begin, 0.0), seconds)
        self._begin += forgiven
        return seconds - forgiven


class _Collections:
    """Seconds of garbage collections: they grow with all that former tests have left, not with the code."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begin: float | None = None

    def __call__(self, phase: str, _info: dict[str, int]) -> None:
        """A callback of `gc`."""
        if phase == "start":
            self._begin = time.perf_counter()
        elif self._begin is not None:
            self.seconds += time.perf_counter() - self._begin
            self._begin = None


def _starved() -> float:
    waited = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            waited += int((task / "schedstat").read_text().split()[1])
    stolen = int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")
    return waited / 1e9 + stolen


@contextmanager
def refuse_processes() -> Iterator[None]:
    """Raise ProcessRefused in any thread that starts a process during the block."""
    if not _guard.installed:
        sys.addaudithook(_guard)
        _guard.installed = True
    _guard.active = True
    try:
        yield
    finally:
        _guard.active = False


@contextmanager
def allow_processes() -> Iterator[None]:
    """Allow processes needed by fixtures, such as a database server, but not by the code under test."""
    active, _guard.active = _guard.active, False
    try:
        yield
    finally:
        _guard.active = active


@contextmanager
def watch_loops(limit: float = SLOW_CALLBACK_SECONDS) -> Iterator[None]:
    """Raise LoopBlocked at the end if a callback blocked an asyncio loop for more than `limit` seconds.

    Time in which threads were ready to run, but lacked a processor, is subtracted, and that of garbage
    collections.
    `time.sleep` in a thread with a running loop always raises.
    """
    slow: list[str] = []
    run, sleep = asyncio.Handle._run, time.sleep
    starvation, collections = _Starvation(), _Collections()

    def timed(handle: asyncio.Handle) -> None:
        begin, collected = time.perf_counter(), collections.seconds
        try:
            run(handle)
        finally:
            taken = time.perf_counter() - begin - (collections.seconds - collected)
            if taken > limit and (taken := starvation.forgive(taken)) > limit:
                slow.append(f"{handle!r} held the event loop for {taken:.2f} s")

    def refused(seconds: float | SupportsIndex) -> None:
        if asyncio._get_running_loop() is not None:
            raise LoopBlocked(f"time.sleep({seconds}) in the event loop")
        sleep(seconds)

    asyncio.Handle._run = timed  # type: ignore[assignment,method-assign]
    time.sleep = refused
    gc.callbacks.append(collections)
    try:
        yield
    finally:
        gc.callbacks.remove(collections)
        asyncio.Handle._run = run  # type: ignore[method-assign]
        time.sleep = sleep
    if slow:
        raise LoopBlocked("; ".join(slow))
