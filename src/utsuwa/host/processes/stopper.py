"""Control over programs that run in other threads: stopping them, and seeing how far they are."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from utsuwa.host.processes.reading import bytes_read


class Child(Protocol):
    """A program that was started and is not reaped yet."""

    pid: int

    def send_signal(self, number: signal.Signals) -> None: ...


@dataclass(frozen=True)
class Reading:
    """How far a program is that reads a file; `total` is 0 if that is not known. In bytes."""

    done: int
    total: int

    @property
    def percent(self) -> int:
        """At most 99, as long as it runs; 0 if that is not known."""
        return min(99, self.done * 100 // self.total) if self.total else 0


class Stopper:
    """Stops programs that are run with it, also in other threads; later ones are stopped at once.

    It also tells how far they are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[Child] = []
        self._read: tuple[str, int] | None = None
        self.stopped = False

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for child in self._running:
                child.send_signal(signal.SIGKILL)

    @contextlib.contextmanager
    def watch(self, child: Child) -> Iterator[None]:
        """Kill `child` if `stop` is called, or was called, before the block ends; it is reaped later."""
        with self._lock:
            self._running.append(child)
            if self.stopped:
                child.send_signal(signal.SIGKILL)
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(child)

    @contextlib.contextmanager
    def reading(self, program: str, total: int = 0) -> Iterator[None]:
        """During the block, `program` reads a file of `total` bytes: in a child or one of its descendants."""
        self._read = program, total
        try:
            yield
        finally:
            self._read = None

    def progress(self) -> Reading | None:
        """Return how far the program of `reading` is; None if it does not run. Blocking."""
        with self._lock:
            pids = [child.pid for child in self._running]
            read = self._read
        if read is None or not pids:
            return None
        program, total = read
        return Reading(sum(bytes_read(pid, program) for pid in pids), total)
