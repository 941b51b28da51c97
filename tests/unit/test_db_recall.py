"""What a database remembers of reads: nothing that may have changed."""

from __future__ import annotations

import asyncio
import threading

from utsuwa.db import config
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction


async def _store(database: Database, **values: str) -> None:
    await database.write("test", config.replace, {f"user.{key}": value for key, value in values.items()})


async def _recalled(database: Database) -> dict[str, str]:
    return await database.recall("test", config.load)


async def test_reads_are_repeated_only_after_a_change(database: Database) -> None:
    await _store(database, a="1")
    first = await _recalled(database)
    again = await _recalled(database)
    assert first == again == {"user.a": "1"}
    assert (again is first) is not database.engine.shared  # others may write into a shared one
    await _store(database, a="2")
    assert await _recalled(database) == {"user.a": "2"}


async def test_every_way_of_writing_counts(database: Database) -> None:
    for number, write in enumerate((database.write, database.commit, database.begin, database.note)):
        await _recalled(database)
        await write("test", config.replace, {"user.a": str(number)})
        assert await _recalled(database) == {"user.a": str(number)}, write.__name__


async def test_results_are_kept_by_arguments(database: Database) -> None:
    await _store(database, a="1")
    assert await database.recall("test", _one, "user.a") == "1"
    assert await database.recall("test", _one, "user.b") is None


def _one(tx: Transaction, key: str) -> str | None:
    return config.load(tx).get(key)


async def test_only_so_many_results_are_kept(database: Database) -> None:
    first = await database.recall("test", _named, "first")
    for number in range(1000):
        await database.recall("test", _named, str(number))
    assert await database.recall("test", _named, "first") is not first
    assert len(database._remembered) < 1000


def _named(tx: Transaction, name: str) -> list[str]:
    return [name]


async def test_what_is_read_during_a_change_is_not_kept(database: Database) -> None:
    await _store(database, a="1")
    written, go_on = threading.Event(), threading.Event()

    def change(tx: Transaction) -> None:
        config.replace(tx, {"user.a": "2"})
        written.set()
        go_on.wait()

    changing = asyncio.create_task(database.write("test", change))
    await asyncio.to_thread(written.wait)
    assert await _recalled(database) == {"user.a": "1"}
    go_on.set()
    await changing
    assert await _recalled(database) == {"user.a": "2"}


async def test_a_change_during_the_read_outdates_it(database: Database) -> None:
    await _store(database, a="1")
    reading, go_on = threading.Event(), threading.Event()

    def read(tx: Transaction) -> dict[str, str]:
        found = config.load(tx)
        reading.set()
        go_on.wait()
        return found

    recalling = asyncio.create_task(database.recall("test", read))
    await asyncio.to_thread(reading.wait)
    await _store(database, a="2")
    go_on.set()
    assert await recalling == {"user.a": "1"}  # as it was when the read began
    assert await database.recall("test", read) == {"user.a": "2"}
