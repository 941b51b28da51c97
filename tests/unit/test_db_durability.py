"""Commits and the disk: what waits for it, what does not, and who shares a sync."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import prepared
from utsuwa.core.errors import HostError
from utsuwa.db import config
from utsuwa.db.database import Database
from utsuwa.db.sqlite import Sqlite


class _SlowDisk(Sqlite):
    """A database on a disk whose syncs can be held up, counted, or fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.begun = threading.Semaphore(0)
        self.syncs = 0
        self.error: OSError | None = None

    def settle(self) -> None:
        self.begun.release()
        assert self.goes_on.wait(10)
        if self.error is not None:
            raise self.error
        super().settle()
        self.syncs += 1

    async def hold_up(self, database: Database) -> asyncio.Task[None]:
        """Have a write wait for the disk, which nothing before it does any more."""
        await _write(database, "ready")
        while self.begun.acquire(blocking=False):
            continue
        self.goes_on.clear()
        task = asyncio.create_task(_write(database, "first"))
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)
        return task


@pytest.fixture
def disk(tmp_path: Path) -> _SlowDisk:
    return _SlowDisk(prepared.sqlite(tmp_path / "utsuwa.db").path)


@pytest.fixture
async def database(disk: _SlowDisk) -> AsyncIterator[Database]:
    opened = await Database.open(disk)
    yield opened
    await opened.close()


async def _write(database: Database, value: str) -> None:
    await database.write("test", config.replace, {"user.a": value})


async def _value(database: Database) -> str:
    return (await database.read("test", config.load))["user.a"]


async def test_a_write_waits_for_the_disk(database: Database, disk: _SlowDisk) -> None:
    first = await disk.hold_up(database)
    assert await _value(database) == "first"  # others see it
    assert not first.done()
    disk.goes_on.set()
    await first


async def test_the_last_step_of_a_deletion_does_not_wait(database: Database, disk: _SlowDisk) -> None:
    first = await disk.hold_up(database)
    await database.commit("test", config.replace, {"user.a": "completed"})
    assert await _value(database) == "completed"
    settling = asyncio.create_task(database.settle())
    await asyncio.sleep(0)
    assert not first.done()
    assert not settling.done()
    disk.goes_on.set()
    await asyncio.gather(first, settling)
    before = disk.syncs
    await database.settle()
    assert disk.syncs == before


async def test_a_note_is_synced_with_the_next_write_only(database: Database, disk: _SlowDisk) -> None:
    await _write(database, "ready")
    before = disk.syncs
    disk.goes_on.clear()
    await database.note("test", config.replace, {"user.a": "noted"})
    assert await _value(database) == "noted"
    write = asyncio.create_task(_write(database, "written"))
    while await _value(database) != "written":
        await asyncio.sleep(0)
    disk.goes_on.set()
    await write
    assert disk.syncs - before == 1


async def test_a_commit_is_synced_with_the_next_write_or_by_itself(
    database: Database, disk: _SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _write(database, "ready")
    before = disk.syncs
    for number in range(3):
        await database.commit("test", config.replace, {"user.a": f"{number}"})
    await _write(database, "covers them")
    assert disk.syncs == before + 1
    await database.settle()  # nothing is left to sync
    assert disk.syncs == before + 1
    database.sync_soon()
    monkeypatch.setattr("utsuwa.db.database._SYNC_SECONDS", 0.01)
    await database.commit("test", config.replace, {"user.a": "alone"})
    async with asyncio.timeout(10):
        while disk.syncs == before + 1:
            await asyncio.sleep(0.005)


async def test_writes_at_the_same_time_share_a_sync(database: Database, disk: _SlowDisk) -> None:
    first = await disk.hold_up(database)
    before = disk.syncs
    others = [asyncio.create_task(_write(database, f"{number}")) for number in range(5)]
    while await _value(database) != "4":  # all are committed, in this order
        await asyncio.sleep(0)
    assert not any(task.done() for task in (first, *others))
    disk.goes_on.set()
    await asyncio.gather(first, *others)
    assert disk.syncs - before == 2  # the one that was running, and one for all others


async def test_a_failure_of_the_disk_is_reported(database: Database, disk: _SlowDisk) -> None:
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(HostError, match="cannot be synced to disk: Input/output error"):
        await _write(database, "lost")
    disk.error = None
    await _write(database, "kept")
    assert await _value(database) == "kept"


async def test_a_cancelled_write_waits_for_the_disk(database: Database, disk: _SlowDisk) -> None:
    first = await disk.hold_up(database)
    assert await _value(database) == "first"
    first.cancel()
    await asyncio.sleep(0)
    assert not first.done()
    disk.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_closing_ends_the_syncs_first(disk: _SlowDisk) -> None:
    database = await Database.open(disk)
    first = await disk.hold_up(database)
    closing = asyncio.create_task(database.close())
    disk.goes_on.set()
    await asyncio.gather(first, closing)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("database-sync")] == []
