"""Locks among daemons: each `Database` is one, on one PostgreSQL; a lone daemon needs no server for them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from utsuwa.core.errors import Unavailable
from utsuwa.db import locks
from utsuwa.db.database import Database
from utsuwa.db.postgres import Postgres

_OURS = (
    "FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
    " WHERE locktype = 'advisory' AND datname = current_database()"
)
_ALL = f"SELECT count(*) {_OURS}"
_END_ALL = f"SELECT pg_terminate_backend(pid) {_OURS}"


async def _is_free(database: Database, *name: str) -> bool:
    try:
        async with asyncio.timeout(0.2), database.locks.hold(*name):
            return True
    except TimeoutError:
        return False


async def test_a_lock_excludes_others_in_the_daemon(database: Database) -> None:
    async with database.locks.hold("networks"):
        assert not await _is_free(database, "networks")
        assert await _is_free(database, "profile", "default", "p")
    assert await _is_free(database, "networks")


async def test_a_lock_excludes_other_daemons(two: tuple[Database, Database]) -> None:
    one, other = two
    async with one.locks.hold("profile", "default", "p"):
        assert not await _is_free(other, "profile", "default", "p")
        assert await _is_free(other, "profile", "default", "q")
    assert await _is_free(other, "profile", "default", "p")


async def test_holders_take_turns(two: tuple[Database, Database]) -> None:
    inside: list[int] = []

    async def work(n: int) -> None:
        async with two[n % 2].locks.hold("networks"):
            inside.append(n)
            assert len(inside) == 1
            await asyncio.sleep(0.002)
            inside.remove(n)

    await asyncio.gather(*(work(n) for n in range(20)))


async def test_cancelled_waiters_leave_no_lock(two: tuple[Database, Database]) -> None:
    one, other = two

    async def hold() -> None:
        async with one.locks.hold("networks"):
            await asyncio.sleep(60)

    for delay in (0, 0, 0.001, 0.002, 0.005, 0.05):
        task = asyncio.create_task(hold())
        await asyncio.sleep(delay)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert await _is_free(other, "networks")
    assert (await one.read("test", lambda tx: tx.execute_sql(_ALL))).scalar_one() == 0


async def test_a_lock_that_is_not_released_is_reported(
    two: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_WAIT_SECONDS", 0.1)
    async with two[0].locks.hold("networks"):
        with pytest.raises(Unavailable, match="holds the lock 'networks' for too long"):
            async with two[1].locks.hold("networks"):
                pytest.fail("both have it")


async def test_locks_are_released_when_the_daemon_ends(
    two: tuple[Database, Database], shared_url: str
) -> None:
    one, other = await Database.open(Postgres(shared_url)), two[1]
    assert await one.keep_member(0)
    assert not await other.keep_member(0.1)
    await one.close()
    assert await other.keep_member(5)


async def test_a_broken_connection_loses_its_locks_but_those_of_the_member(
    two: tuple[Database, Database], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = two
    assert await one.keep_member(0)
    async with one.locks.hold("networks"):
        await other.write("test", lambda tx: tx.execute_sql(_END_ALL).all())
        async with one.locks.hold("profile", "default", "p"):  # connects anew
            assert await _is_free(other, "networks")
    assert "a lock was lost before its end" in caplog.text
    assert not await other.keep_member(0.1)
    await other.write("test", lambda tx: tx.execute_sql(_END_ALL).all())
    await one.look_after_locks()
    assert not await other.keep_member(0.1)
    assert await _is_free(one, "networks")
