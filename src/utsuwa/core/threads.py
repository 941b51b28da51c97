"""Blocking work in threads, always awaited until it has finished.

Short work runs in the event loop's default executor, which the whole daemon shares. Work that may take long
has a bounded pool of its own: it queues behind work of its own kind, and nothing else waits for it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from utsuwa.core import faults
from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import finish

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """A thread pool for one kind of work: the loop's default executor, or `count` threads of its own."""

    def __init__(self, count: int = 0, name: str = "") -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name) if count else None
        self._stop: Callable[[], None] | None = None

    def stopped_by(self, stop: Callable[[], None]) -> Threads:
        """Return the same pool for work that can be cut short: if the caller is cancelled, work that is still
        queued is dropped, and `stop` is called for work that is running.
        """
        same = Threads()
        same._executor, same._stop = self._executor, stop
        return same

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` in a thread and wait until it has finished, even if the caller is cancelled."""
        return await self._finished(lambda: _step(work, *args, **kwargs))

    async def make(
        self,
        undo: Rollback,
        revert: Callable[[], object],
        work: Callable[P, R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run `work`, which leaves nothing behind on failure, and push `revert` when it has finished."""

        def noted() -> R:
            result = _step(work, *args, **kwargs)
            undo.push(revert)
            return result

        return await self._finished(noted)

    async def _finished(self, work: Callable[[], R]) -> R:
        if self._executor is None:
            return await finish(asyncio.to_thread(work), self._stop)
        task = self._executor.submit(contextvars.copy_context().run, work)
        stop = partial(_give_up, task, self._stop) if self._stop is not None else None
        return await finish(asyncio.wrap_future(task), stop)


def _give_up(task: Future[R], stop: Callable[[], None]) -> None:
    if not task.cancel():
        stop()


def _step(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    name = getattr(work, "__name__", "step")
    faults.point(f"before {name}")
    result = work(*args, **kwargs)
    faults.point(f"after {name}")
    return result
