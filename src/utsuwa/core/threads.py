"""Blocking work in threads, always awaited to its end."""

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
    """The threads in which one kind of work is done."""

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` in a thread and wait for its end, also when the caller is cancelled meanwhile."""
        return await finish(asyncio.to_thread(lambda: _step(work, *args, **kwargs)))

    async def make(
        self,
        undo: Rollback,
        revert: Callable[[], object],
        work: Callable[P, R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run `work`, which leaves nothing where it fails, and have `revert` undo it from its end on."""

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
