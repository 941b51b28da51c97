"""The progress of a transfer, as metadata of its operation."""

from __future__ import annotations

import time

from utsuwa.operations.operations import Operation

_SECONDS = 1.0


class Progress:
    """Shows how many bytes of a tree have been sent or received, at most once a second."""

    def __init__(self, operation: Operation, label: str) -> None:
        self._operation = operation
        self._label = label
        self._began = self._shown = time.monotonic()
        self._bytes = 0

    def add(self, count: int) -> None:
        self._bytes += count
        now = time.monotonic()
        if now - self._shown >= _SECONDS:
            self._shown = now
            speed = int(self._bytes / (now - self._began))
            self._operation.set_progress("fs", self._label, processed=self._bytes, speed=speed)
