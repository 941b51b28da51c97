"""Blocking work in threads of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from contextvars import ContextVar

import pytest

from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import Held
from utsuwa.core.threads import Threads, Workers, in_thread

WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Gate:
    """Work that goes on until it is opened."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()
        self.passed = 0

    def __call__(self) -> int:
        self.begun.release()
        assert self.open.wait(30)
        self.passed += 1
        return 42

    async def reached(self) -> None:
        await asyncio.to_thread(self.begun.acquire)


@pytest.fixture(params=[0, 2])
def threads(request: pytest.FixtureRequest) -> Threads:
    return Threads(request.param, "test")


async def test_run_returns_results_and_raises_errors(threads: Threads) -> None:
    WHO.set("me")
    assert await threads.run(WHO.get) == "me", "it knows on whose behalf it is done"
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


async def test_work_is_awaited_to_its_end(threads: Threads) -> None:
    gate = Gate()
    task = asyncio.create_task(threads.run(gate))
    await gate.reached()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.passed == 1


async def test_work_can_be_stopped(threads: Threads) -> None:
    gate = Gate()
    task = asyncio.create_task(threads.stopped_by(gate.open.set).run(gate))
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.passed == 1


async def test_so_much_is_done_at_once_and_no_more() -> None:
    threads, gate = Threads(2, "test"), Gate()
    tasks = [asyncio.create_task(threads.run(gate)) for _ in range(3)]
    await gate.reached()
    await gate.reached()
    assert not gate.begun.acquire(timeout=0.05)
    assert await asyncio.to_thread(lambda: "others go on") == "others go on"
    gate.open.set()
    assert await asyncio.gather(*tasks) == [42, 42, 42]


async def test_queued_work_of_a_cancelled_caller_is_not_started() -> None:
    threads, gate, stopped = Threads(1, "test"), Gate(), []
    first = asyncio.create_task(threads.run(gate))
    await gate.reached()
    second = asyncio.create_task(threads.stopped_by(lambda: stopped.append(1)).run(gate))
    await asyncio.sleep(0.01)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert stopped == []
    gate.open.set()
    assert await first == 42
    assert gate.passed == 1


async def test_created_objects_are_removed_by_undo(threads: Threads) -> None:
    undone: list[str] = []
    async with Rollback() as undo:
        assert await threads.make(undo, lambda: undone.append("made"), lambda: 1) == 1
    assert undone == ["made"]
    async with Rollback() as undo:
        with pytest.raises(ZeroDivisionError):
            await threads.make(undo, lambda: undone.append("failed"), lambda: 1 // 0)
    gate = Gate()

    async def make() -> None:
        async with Rollback() as undo:
            await threads.make(undo, lambda: undone.append("cancelled"), gate)
            undo.keep()

    task = asyncio.create_task(make())
    await gate.reached()
    task.cancel()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == ["made", "cancelled"]


async def test_a_waiter_of_shared_work_is_cancelled_only_at_its_end() -> None:
    shared: Future[int] = Future()

    async def wait() -> int:
        return await Held.following(shared)

    first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0.01)
    assert not first.done()
    shared.set_result(42)
    assert await second == 42
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_the_failure_of_work_for_a_cancelled_caller_is_logged(
    threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    def fail() -> None:
        gate()
        raise OSError("no space")

    task = asyncio.create_task(threads.run(fail))
    await gate.reached()
    task.cancel()
    gate.open.set()
    with caplog.at_level(logging.INFO), pytest.raises(asyncio.CancelledError):
        await task
    assert "work of a cancelled caller failed: no space" in caplog.text


async def test_closed_threads_end_after_what_is_queued_and_take_no_more() -> None:
    workers, gate = Workers(1, "closing"), Gate()
    running, queued = workers.run(gate), workers.run(gate)
    workers.close()
    with pytest.raises(RuntimeError, match="have ended"):
        workers.run(gate)
    gate.open.set()
    assert [await running, await queued] == [42, 42]
    await asyncio.to_thread(workers.join)
    assert not any(thread.name.startswith("closing_") for thread in threading.enumerate())


async def test_no_more_threads_are_started_than_needed() -> None:
    workers = Workers(4, "lazy")
    for _ in range(8):
        await workers.run(int)
    assert sum(thread.name.startswith("lazy_") for thread in threading.enumerate()) == 1
    workers.start()
    assert sum(thread.name.startswith("lazy_") for thread in threading.enumerate()) == 4
    workers.join()


async def test_short_work_is_done_on_behalf_of_the_caller() -> None:
    WHO.set("me")
    assert await in_thread(WHO.get) == "me"
    assert await in_thread(int, "20", base=16) == 32
