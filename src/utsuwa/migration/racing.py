"""Several coroutines at the same time, which end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

Work = Coroutine[Any, Any, object]


async def all_of(*work: Work, watched_by: Work | None = None) -> None:
    """Wait until all of the work is done; raise the first error, also of the one that watches.

    What still runs then is cancelled, and waited for. The one that watches may end earlier.
    """
    tasks = [asyncio.create_task(one) for one in work]
    waiting = set(tasks)
    if watched_by is not None:
        waiting.add(asyncio.create_task(watched_by))
    everything = tuple(waiting)
    try:
        while not all(task.done() for task in tasks):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # The errors of the work explain more than those that follow from them.
            for task in sorted(done, key=lambda task: task not in tasks):
                task.result()
    finally:
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
