"""Prefetching: storing images on pools in the background, before their first instance is created."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from utsuwa.core.errors import NotFound, Unavailable, UtsuwaError
from utsuwa.core.image_source import ImageSource
from utsuwa.host.processes.stopper import Stopper

log = logging.getLogger(__name__)

Prefetch = Callable[[str, ImageSource, Stopper], Awaitable[None]]
"""Stores an image on a pool, or leaves nothing if it is stopped by the stopper."""

_PAUSE = 0.05
"""Seconds before the work begins: it occupies all processors, and who has imported an image has further
requests, such as for its aliases. A launch meanwhile does not wait for this."""


@dataclass(frozen=True)
class _Work:
    pool: str
    fingerprint: str
    stopper: Stopper
    task: asyncio.Task[None]


class Prefetcher:
    """A queue that stores one image at a time, so that creating an instance never waits for several."""

    def __init__(self, prefetch: Prefetch) -> None:
        self._prefetch = prefetch
        self._one_at_a_time = asyncio.Semaphore(1)
        self._queue: list[_Work] = []

    def begin(self, pool: str, image: ImageSource) -> None:
        """Enqueue an image for a pool."""
        stopper = Stopper()
        task = asyncio.create_task(self._run(pool, image, stopper))
        work = _Work(pool, image.fingerprint, stopper, task)
        self._queue.append(work)
        task.add_done_callback(lambda _: self._queue.remove(work))

    async def end(self, pool: str | None = None, fingerprint: str | None = None) -> None:
        """Stop the work on a pool or an image, or all work, and wait until it has ended."""
        chosen = [
            work
            for work in self._queue
            if pool in (None, work.pool) and fingerprint in (None, work.fingerprint)
        ]
        for work in chosen:
            work.stopper.stop()
        if chosen:
            await asyncio.wait([work.task for work in chosen])

    async def _run(self, pool: str, image: ImageSource, stopper: Stopper) -> None:
        await asyncio.sleep(_PAUSE)
        async with self._one_at_a_time:
            if stopper.stopped:
                return
            try:
                await self._prefetch(pool, image, stopper)
            except (NotFound, Unavailable) as error:
                log.info("image %s is not prefetched: %s", image.fingerprint[:12], error)
            except UtsuwaError as error:
                if not stopper.stopped:
                    log.warning(
                        "image %s is not prefetched to storage pool %r, its first launch retries: %s",
                        image.fingerprint[:12],
                        pool,
                        error,
                    )
