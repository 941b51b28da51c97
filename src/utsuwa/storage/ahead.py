"""Bringing images onto pools in the background, before anybody asks for an instance of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from utsuwa.core.errors import NotFound, Unavailable, UtsuwaError
from utsuwa.core.image_source import ImageSource
from utsuwa.host.processes.run import Stopper

log = logging.getLogger(__name__)

Bring = Callable[[str, ImageSource, Stopper], Awaitable[None]]
"""Brings an image onto a pool and gives what the stopper lets go of back."""


@dataclass(frozen=True)
class _Work:
    pool: str
    fingerprint: str
    stopper: Stopper
    task: asyncio.Task[None]


class Ahead:
    """What is under way; one image at a time, so that an instance's start never waits for several."""

    def __init__(self, bring: Bring) -> None:
        self._bring = bring
        self._turn = asyncio.Semaphore(1)
        self._works: list[_Work] = []

    def begin(self, pool: str, image: ImageSource) -> None:
        """Begin to bring an image onto a pool, after those that were begun before."""
        stopper = Stopper()
        task = asyncio.create_task(self._run(pool, image, stopper))
        work = _Work(pool, image.fingerprint, stopper, task)
        self._works.append(work)
        task.add_done_callback(lambda _: self._works.remove(work))

    async def end(self, pool: str | None = None, fingerprint: str | None = None) -> None:
        """Stop the work on a pool or an image, or all of it, and wait until nothing of it is left."""
        chosen = [
            work
            for work in self._works
            if pool in (None, work.pool) and fingerprint in (None, work.fingerprint)
        ]
        for work in chosen:
            work.stopper.stop()
        if chosen:
            await asyncio.wait([work.task for work in chosen])

    async def _run(self, pool: str, image: ImageSource, stopper: Stopper) -> None:
        async with self._turn:
            if stopper.stopped:
                return
            try:
                await self._bring(pool, image, stopper)
            except (NotFound, Unavailable) as error:
                log.info("image %s is not brought onto a pool: %s", image.fingerprint[:12], error)
            except UtsuwaError as error:
                if not stopper.stopped:
                    log.warning(
                        "image %s is not unpacked on storage pool %r yet, its first launch tries again: %s",
                        image.fingerprint[:12],
                        pool,
                        error,
                    )
