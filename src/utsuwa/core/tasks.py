"""Work that runs to completion even if the task that awaits it is cancelled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


async def finish(work: Awaitable[T], stop: Callable[[], None] | None = None) -> T:
    """Wait for `work` to finish, and return its result.

    If the caller is cancelled meanwhile, however often, CancelledError is raised only then: its undo steps
    never run concurrently with the work. `stop` is called on the first cancellation and may cut the work
    short.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if stop is not None and not running.done():
            stop()
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()) is not None:
            log.info("work of a cancelled caller failed: %s", error)
        raise


class Held(asyncio.Future[T]):
    """The result of work that cannot be interrupted, for the one task that awaits it.

    As with `finish`, a task that is cancelled meanwhile gets CancelledError only when the work has finished:
    it asks the future that it awaits to be cancelled, and if that refuses, is cancelled with its next step.
    """

    def __init__(self, give_up: Callable[[], bool] | None = None) -> None:
        """`give_up` is called on the first cancellation; it returns whether the work is dropped."""
        super().__init__(loop=asyncio.get_running_loop())
        self._give_up = give_up
        self._given_up = False

    @classmethod
    def following(cls, work: concurrent.futures.Future[T]) -> Held[T]:
        """Return the result of work that others may wait for as well."""
        held, loop = cls(), asyncio.get_running_loop()

        def ended(work: concurrent.futures.Future[T]) -> None:
            error = work.exception()
            with contextlib.suppress(RuntimeError):  # the loop has ended
                if error is not None:
                    loop.call_soon_threadsafe(held.fail, error)
                else:
                    loop.call_soon_threadsafe(held.succeed, work.result())

        work.add_done_callback(ended)
        return held

    def cancel(self, msg: object = None) -> bool:
        if self._given_up or self.done():
            return False
        self._given_up = True
        return self._give_up is not None and self._give_up() and super().cancel(msg)

    def succeed(self, result: T) -> None:
        """Called in the event loop when the work has finished."""
        if not self.done():
            self.set_result(result)

    def fail(self, error: BaseException) -> None:
        """As `succeed`."""
        if self._given_up:
            log.info("work of a cancelled caller failed: %s", error)
        if not self.done():
            self.set_exception(error)
