from __future__ import annotations

import asyncio

from utsuwa.core.locks import NamedLocks


async def test_a_lent_lock_is_recalled_when_another_task_wants_it() -> None:
    locks, order = NamedLocks(), list[str]()
    wanted = asyncio.Event()

    async def other() -> None:
        async with locks.hold("a"):
            order.append("other")

    async with locks.lend("a", recall=wanted.set):
        async with locks.hold("b"):
            pass
        assert not wanted.is_set()
        task = asyncio.create_task(other())
        await wanted.wait()
        order.append("lent")
    await task
    assert order == ["lent", "other"]
    async with locks.hold("a"):
        pass


async def test_a_lock_for_which_others_wait_already_is_recalled_at_once() -> None:
    locks, wanted = NamedLocks(), asyncio.Event()

    async def borrow() -> None:
        async with locks.lend("a", recall=wanted.set):
            assert wanted.is_set()

    async def other() -> None:
        async with locks.hold("a"):
            pass

    async with locks.hold("a"):
        tasks = [asyncio.create_task(borrow()), asyncio.create_task(other())]
        await asyncio.sleep(0)
        assert not wanted.is_set()
    await asyncio.gather(*tasks)
