"""Background work of the daemon's own."""

from __future__ import annotations

import asyncio

import pytest

from utsuwa.operations.scheduler import Scheduler


async def test_work_repeats_and_survives_its_failures(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Scheduler()
    runs = asyncio.Semaphore(0)

    async def work() -> None:
        runs.release()
        raise ValueError("broken")

    scheduler.every(0.001, "sweeping", work)
    async with asyncio.timeout(2):
        for _ in range(3):
            await runs.acquire()
    await scheduler.stop()
    assert "background work failed" in caplog.text


async def test_stopping_cancels_what_runs() -> None:
    scheduler = Scheduler()
    ended: list[str] = []

    async def errand() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("errand")

    task = scheduler.spawn("errand", errand())
    await asyncio.sleep(0)
    await scheduler.stop()
    assert ended == ["errand"]
    assert task.cancelled()
