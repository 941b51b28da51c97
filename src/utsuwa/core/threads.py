"""Blocking work in threads, always awaited until it has finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from utsuwa.core import faults
from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import finish

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """A thread pool for one kind of work."""

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` in a thread and wait until it has finished, even if the caller is cancelled."""
        return await finish(asyncio.to_thread(lambda: _step(work, *args, **kwargs)))

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
            undo.push(self.run, revert)
            return result

        return await finish(asyncio.to_thread(noted))


def _step(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    name = getattr(work, "__name__", "step")
    faults.point(f"before {name}")
    result = work(*args, **kwargs)
    faults.point(f"after {name}")
    return result
