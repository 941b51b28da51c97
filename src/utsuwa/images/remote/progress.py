"""How far a download is, for those who look at its operation."""

from __future__ import annotations

import time

from utsuwa.operations.operations import Operation

_PROGRESS_SECONDS = 0.5


class ShownProgress:
    """Shows the progress of a download in the metadata of its operation."""

    def __init__(self, operation: Operation | None) -> None:
        self._operation = operation

    def begin(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._since = self._shown = time.monotonic()
        self._show()

    def add(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._shown > _PROGRESS_SECONDS:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        if self._operation is None:
            return
        speed = int(self._done / max(self._shown - self._since, 0.001))
        percent = min(99, self._done * 100 // self._total) if self._total else 0
        self._operation.set_progress(
            "download", self._label, percent=percent, processed=self._done, speed=speed
        )
