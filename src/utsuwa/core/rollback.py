"""Undo steps for changes of several steps: pushed right after each step, discarded on success."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)


class Rollback:
    """An async context manager that runs the pushed steps, last first, unless `keep()` was called.

        async with Rollback() as undo:
            path.mkdir()
            undo.push(path.rmdir)
            await database_row()
            undo.push(remove_row, name)      # sync or async
            undo.keep()

    A failing undo step is logged and does not stop the others: the sweep at the next start-up
    removes what it left behind. Cancellation runs the undo steps as well.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []

    def push(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._steps.append(lambda: step(*args, **kwargs))

    def keep(self) -> None:
        """Discard all undo steps: the change is complete."""
        self._steps.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._steps:
            step = self._steps.pop()
            try:
                result = step()
                if inspect.isawaitable(result):
                    await result
            except Exception:
                log.exception("an undo step failed")
