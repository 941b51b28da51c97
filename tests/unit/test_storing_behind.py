"""Buffers are stored in order by a thread that lags behind, but not without bounds."""

from __future__ import annotations

import asyncio
import threading

import pytest

from utsuwa.images import behind
from utsuwa.images.behind import ROOM, Behind


async def fill(target: Behind, number: int, size: int = ROOM) -> None:
    room = await target.room()
    room[:size] = bytes([number]) * size
    target.put(room[:size])


async def test_buffers_are_stored_in_order() -> None:
    stored: list[tuple[int, int]] = []
    target = Behind(lambda data: stored.append((data[0], len(data))))
    for number in range(100):
        await fill(target, number, ROOM - number)
    await target.finish()
    assert stored == [(number, ROOM - number) for number in range(100)]


async def test_who_gives_waits_for_a_thread_that_is_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "MOST", 3)
    gate, stored = threading.Semaphore(0), []

    def store(data: memoryview) -> None:
        gate.acquire()
        stored.append(data[0])

    target = Behind(store)
    for number in range(3):
        await fill(target, number)
    waiting = asyncio.create_task(fill(target, 3))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    gate.release()
    await waiting
    gate.release(3)
    await target.finish()
    assert stored == [0, 1, 2, 3]


async def test_there_are_spare_buffers_until_the_thread_is_far_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(behind, "MOST", 2)
    gate, stored = threading.Semaphore(0), []

    def store(data: memoryview) -> None:
        gate.acquire()
        stored.append(data[0])

    target = Behind(store)
    for number in range(2):
        room = target.spare()
        assert room is not None
        room[:1] = bytes([number])
        target.put(room[:1])
    assert target.spare() is None
    gate.release()
    await fill(target, 2)
    gate.release(2)
    await target.finish()
    assert stored == [0, 1, 2]


async def test_an_error_ends_it() -> None:
    stored: list[int] = []

    def store(data: memoryview) -> None:
        if data[0] == 1:
            raise OSError("broken")
        stored.append(data[0])

    target = Behind(store)
    for number in range(3):
        await fill(target, number)
    with pytest.raises(OSError, match="broken"):
        await target.finish()
    with pytest.raises(OSError, match="broken"):
        await target.room()
    assert target.spare() is None
    await target.abandon()
    assert stored == [0]


async def test_what_is_abandoned_is_not_stored() -> None:
    gate, begun, stored = threading.Event(), threading.Event(), []

    def store(data: memoryview) -> None:
        begun.set()
        gate.wait()
        stored.append(data[0])

    target = Behind(store)
    for number in range(3):
        await fill(target, number)
    await asyncio.to_thread(begun.wait)
    ending = asyncio.create_task(target.abandon())
    await asyncio.sleep(0)
    gate.set()
    await ending
    assert stored == [0]
