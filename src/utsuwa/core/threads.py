"""Blocking work in threads, always awaited until it has finished.

Short work runs in threads that the whole daemon shares. Work that may take long has a bounded pool of its
own: it queues behind work of its own kind, and nothing else waits for it.

A result passes from the thread to the event loop in one step. A `concurrent.futures.Future` that is chained
to one of asyncio's, in a task that shields it, takes three times the processor time, and a request consists
of about ten such steps.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from utsuwa.core import faults
from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import Held

P = ParamSpec("P")
R = TypeVar("R")

_Unclaimed = list[Callable[[], R]]
"""Work that nobody has begun; who takes it out, a thread or its cancelled caller, decides about it."""


class Workers:
    """At most `count` threads, which are started as needed. To be used in the event loop's thread."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Forget all threads and what is queued: in a forked process, the threads do not exist."""
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        """Pieces of work that have not ended, queued ones included."""

    def run(self, work: Callable[[], R], stop: Callable[[], None] | None = None) -> Held[R]:
        """Have a thread do `work`; the result is to be awaited at once.

        If the caller is cancelled, work that is still queued is dropped if there is `stop`, which is called
        for work that is running. Raises RuntimeError after `close`.
        """
        if not self._count:
            raise RuntimeError(f"the threads {self._name!r} have ended")
        unclaimed = [work]
        held: Held[R] = Held(partial(_give_up, unclaimed, stop) if stop is not None else None)
        held.add_done_callback(self._note_end)
        self._busy += 1
        if len(self._threads) < min(self._busy, self._count):
            self._start()
        self._queue.put(partial(_serve, unclaimed, held, asyncio.get_running_loop()))
        return held

    def start(self) -> None:
        """Start all threads now: whoever starts one waits for it, which is milliseconds on a busy machine."""
        while len(self._threads) < self._count:
            self._start()

    def close(self) -> None:
        """End the threads after all that is queued, without waiting for that."""
        self._count = 0
        for _ in self._threads:
            self._queue.put(None)

    def join(self) -> None:
        """Close them and wait for that. Blocking."""
        self.close()
        for thread in self._threads:
            thread.join()

    def _note_end(self, _held: Held[Any]) -> None:
        self._busy -= 1

    def _start(self) -> None:
        name = f"{self._name}_{len(self._threads)}"
        # With `daemon`, Python does not wait for idle ones at its end; `_join_all` does for the others.
        thread = threading.Thread(target=_work_off, args=(self._queue,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


_all: weakref.WeakSet[Workers] = weakref.WeakSet()


def _join_all() -> None:
    for workers in list(_all):
        workers.join()


def _forget_all() -> None:
    for workers in list(_all):
        workers.forget()


atexit.register(_join_all)
os.register_at_fork(after_in_child=_forget_all)


def _work_off(queue: SimpleQueue[Callable[[], None] | None]) -> None:
    while (piece := queue.get()) is not None:
        piece()
        del piece  # an idle thread must not keep what it refers to


def _serve(unclaimed: _Unclaimed[R], held: Held[R], loop: asyncio.AbstractEventLoop) -> None:
    try:
        work = unclaimed.pop()
    except IndexError:
        return
    with suppress(RuntimeError):  # the loop has ended: nobody waits for the result
        try:
            result = work()
        except BaseException as error:
            loop.call_soon_threadsafe(held.fail, error)
        else:
            loop.call_soon_threadsafe(held.succeed, result)
    del held  # the traceback of an error refers to this frame


def _give_up(unclaimed: _Unclaimed[R], stop: Callable[[], None]) -> bool:
    """Return whether the work is dropped."""
    try:
        unclaimed.pop()
    except IndexError:
        stop()
        return False
    return True


_SHARED = Workers(6, "short")


class Threads:
    """A thread pool for one kind of work: that for short work, or `count` threads of its own."""

    def __init__(self, count: int = 0, name: str = "") -> None:
        self._workers = Workers(count, name) if count else _SHARED
        self._stop: Callable[[], None] | None = None

    def stopped_by(self, stop: Callable[[], None]) -> Threads:
        """Return the same pool for work that can be cut short: if the caller is cancelled, work that is still
        queued is dropped, and `stop` is called for work that is running.
        """
        same = Threads()
        same._workers, same._stop = self._workers, stop
        return same

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` in a thread and wait until it has finished, even if the caller is cancelled."""
        return await self.begin(work, *args, **kwargs)

    def begin(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Held[R]:
        """As `run`, for a result that is awaited after something else was done meanwhile."""
        return self._begin(partial(_step, work, *args, **kwargs))

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

        return await self._begin(noted)

    def _begin(self, work: Callable[[], R]) -> Held[R]:
        return self._workers.run(partial(contextvars.copy_context().run, work), self._stop)


def start_shared() -> None:
    """Start the threads for short work."""
    _SHARED.start()


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do short blocking work in a thread, and wait for it even if the caller is cancelled.

    As `asyncio.to_thread`, for what is done so often that its time counts.
    """
    return await begin_in_thread(work, *args, **kwargs)


def begin_in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Held[R]:
    """As `in_thread`, for a result that is awaited after something else was done meanwhile."""
    return _SHARED.run(partial(contextvars.copy_context().run, work, *args, **kwargs))


def _step(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    name = getattr(work, "__name__", "step")
    faults.point(f"before {name}")
    result = work(*args, **kwargs)
    faults.point(f"after {name}")
    return result
