"""Blocking work in threads of its own."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import Threads

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
