"""The database file: schema, transactions, durability, and what happens when the disk says no."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import DBAPIError, OperationalError

from utsuwa.core.errors import HostError, OutOfSpace
from utsuwa.db import config, engine, schema, upgrade
from utsuwa.db.connection import Connection
from utsuwa.db.engine import Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "database" / "utsuwa.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(path)
    yield opened
    await opened.close()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _values(database: Database) -> dict[str, str]:
    async with database.read() as conn:
        return await config.load(conn)


# ---- the file and its schema


def test_steps_and_tables_say_the_same(path: Path) -> None:
    upgrade.upgrade(path)
    tables = sa.create_engine(f"sqlite:///{path}")
    with tables.connect() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
        found = sa.inspect(conn)
        for table in schema.metadata.sorted_tables:
            wanted = {c.name: (c.nullable, c.server_default is not None) for c in table.columns}
            stored = {
                c["name"]: (c["nullable"], c["default"] is not None) for c in found.get_columns(table.name)
            }
            assert stored == wanted, table.name
            rules = {
                key["constrained_columns"][0]: key["options"].get("ondelete")
                for key in found.get_foreign_keys(table.name)
            }
            assert rules == {key.parent.name: key.ondelete for key in table.foreign_keys}, table.name
    tables.dispose()


def test_the_known_revisions_are_the_steps_that_are_there() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    settings = Config()
    settings.set_main_option("script_location", str(Path(upgrade.__file__).parent / "migrations"))
    settings.set_main_option("path_separator", "os")
    steps = [step.revision for step in ScriptDirectory.from_config(settings).walk_revisions()]
    assert tuple(reversed(steps)) == upgrade.REVISIONS


def test_the_first_schema_has_a_project_and_a_profile(path: Path) -> None:
    assert upgrade.upgrade(path) is True
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT id, name FROM projects").fetchall() == [(1, "default")]
        assert conn.execute("SELECT name, description, project_id FROM profiles").fetchall() == [
            ("default", "Default Utsuwa profile", 1)
        ]
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []


def test_an_upgrade_of_what_is_new_does_nothing(path: Path) -> None:
    assert upgrade.is_needed(path)
    upgrade.upgrade(path)
    assert not upgrade.is_needed(path)
    before = path.read_bytes()
    assert upgrade.upgrade(path) is False
    assert path.read_bytes() == before


@pytest.mark.processes
def test_alembic_is_loaded_only_for_an_upgrade(path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from utsuwa.db.engine import Database\n"
        "async def main():\n"
        "    await (await Database.open(Path(sys.argv[1]))).close()\n"
        "asyncio.run(main()); print('alembic' in sys.modules)"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    )
    assert (first.strip(), second.strip()) == ("True", "False")


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    umask = os.umask(0)
    try:
        upgrade.upgrade(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_newer_schema_is_refused(path: Path) -> None:
    upgrade.upgrade(path)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
    assert not upgrade.is_needed(path)
    with pytest.raises(HostError, match="newer version of Utsuwa .schema 9999"):
        await Database.open(path)


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"certainly not a database " * 100)
    assert not upgrade.is_needed(path)
    with pytest.raises(HostError, match="Cannot prepare the database .*file is not a database"):
        upgrade.upgrade(path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "database").write_text("a file")
    with pytest.raises(HostError, match="Cannot open the database"):
        upgrade.upgrade(tmp_path / "database" / "utsuwa.db")


def test_a_step_that_fails_leaves_nothing_behind(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("CREATE TABLE warnings (mine TEXT)")  # made by the first schema's last step
    with pytest.raises(HostError, match="already exists"):
        upgrade.upgrade(path)
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT name FROM sqlite_master").fetchall() == [("warnings",)]
    assert upgrade.stored_revision(path) is None


def test_odd_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "100% ?mode=ro #1" / "utsuwa.db"
    upgrade.upgrade(path)
    assert upgrade.stored_revision(path) == upgrade.REVISIONS[-1]


# ---- transactions


async def test_a_write_is_seen_after_its_end_only(database: Database) -> None:
    async with database.write("test") as conn:
        await config.replace(conn, {"user.a": "1"})
        assert await config.load(conn) == {"user.a": "1"}
        assert await _values(database) == {}
    assert await _values(database) == {"user.a": "1"}


async def test_a_read_is_one_moment(database: Database) -> None:
    async with database.read() as conn:
        assert await config.load(conn) == {}
        async with database.write("test") as writer:
            await config.replace(writer, {"user.a": "1"})
        assert await config.load(conn) == {}
    assert await _values(database) == {"user.a": "1"}


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:

    async def write() -> None:
        async with database.write("test") as conn:
            await config.replace(conn, {"user.a": "1"})
            raise KeyError

    with pytest.raises(KeyError):
        await write()
    assert await _values(database) == {}


async def test_a_change_is_a_transaction_in_one_step(database: Database) -> None:
    async def change(conn: Connection) -> str:
        await config.replace(conn, {"user.a": "1"})
        return (await config.load(conn))["user.a"]

    assert await database.change("test", change) == "1"
    assert await _values(database) == {"user.a": "1"}


async def test_a_change_that_raises_leaves_nothing(database: Database) -> None:
    async def change(conn: Connection) -> None:
        await config.replace(conn, {"user.a": "1"})
        raise KeyError

    with pytest.raises(KeyError):
        await database.change("test", change)
    assert await _values(database) == {}


async def test_a_change_that_waits_for_something_else_is_told_and_leaves_nothing(database: Database) -> None:
    async def change(conn: Connection) -> None:
        await config.replace(conn, {"user.a": "1"})
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="awaits something else"):
        await database.change("test", change)
    assert await _values(database) == {}
    await database.change("test", lambda conn: config.replace(conn, {"user.b": "2"}))
    assert await _values(database) == {"user.b": "2"}


async def test_a_change_that_is_cancelled_has_happened_as_a_whole(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def change(conn: Connection) -> None:
        await config.replace(conn, {"user.a": "1"})
        begun.set()
        assert go_on.wait(30)
        await config.replace(conn, {"user.a": "2"})

    task = asyncio.create_task(database.change("test", change))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _values(database) == {"user.a": "2"}


async def test_a_cancelled_write_leaves_nothing_and_blocks_nobody(database: Database) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with database.write("test") as conn:
            await config.replace(conn, {"user.a": "1"})
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(write())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _values(database) == {}
    async with database.write("test") as conn:
        await config.replace(conn, {"user.b": "2"})
    assert await _values(database) == {"user.b": "2"}


async def test_cancelling_at_any_moment_keeps_the_writer_usable(database: Database) -> None:
    """A statement or a commit that is cancelled on its way has happened or has not; the next one works."""

    async def write(n: int) -> None:
        async with database.write("test") as conn:
            await config.replace(conn, {"user.n": str(n), "user.again": str(n)})

    for n in range(60):
        task = asyncio.create_task(write(n))
        for _ in range(n):
            await asyncio.sleep(0)
        if n % 3 == 0:
            await asyncio.sleep(0.0002)
        task.cancel()
        await asyncio.wait([task])
        found = await _values(database)
        assert found.get("user.n") == found.get("user.again")
    await write(1000)
    assert (await _values(database))["user.n"] == "1000"


_SLOW = """
    INSERT INTO config (key, value) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
    WHERE i < 300000) SELECT 'user.n', max(i) FROM n
"""
"""Takes about 0.1 s."""


@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_write_cancelled_in_the_middle_of_a_statement_holds_no_lock(
    database: Database, cancels: int
) -> None:
    async def slow() -> None:
        async with database.write("slow") as conn:
            await conn.execute(sa.text("DELETE FROM config"))
            await conn.execute(sa.text(_SLOW))

    before = _descriptors()
    for delay in (0.01, 0.02, 0.03):
        writing = asyncio.create_task(slow())
        await asyncio.sleep(delay)
        for _ in range(cancels):
            writing.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await writing
        async with asyncio.timeout(2), database.write("next") as conn:
            await config.replace(conn, {"core.https_address": str(delay)})
    assert await _values(database) == {"core.https_address": "0.03"}
    assert _descriptors() == before


async def test_writers_wait_for_each_other_in_order(database: Database) -> None:
    order: list[int] = []

    async def add(n: int) -> None:
        async with database.write("test") as conn:
            values = await config.load(conn)
            await asyncio.sleep(0)
            await config.replace(conn, {**values, f"user.{n}": "x"})
            order.append(n)

    await asyncio.gather(*[add(n) for n in range(20)])
    assert order == list(range(20))
    assert len(await _values(database)) == 20


async def test_readers_and_a_writer_at_once(database: Database) -> None:
    """More readers than connections, each seeing both keys or none, while they change."""

    async def watch() -> None:
        for _ in range(10):
            found = await _values(database)
            assert found.get("user.a") == found.get("user.b")

    async def change() -> None:
        for n in range(15):
            async with database.write("test") as conn:
                await config.replace(conn, {"user.a": str(n), "user.b": str(n)})

    await asyncio.gather(change(), *[watch() for _ in range(engine.READERS * 3)])
    assert (await _values(database))["user.a"] == "14"


async def test_a_write_inside_a_write_is_told_at_once(database: Database) -> None:
    async with database.write("outer"):
        with pytest.raises(RuntimeError, match="inside another one"):
            async with database.write("inner"):
                pytest.fail("got in")


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(OperationalError, match="readonly"):
        async with database.read() as conn:
            await config.replace(conn, {"user.a": "1"})


async def test_references_are_enforced(database: Database) -> None:
    with pytest.raises(DBAPIError, match="FOREIGN KEY"):
        async with database.write("test") as conn:
            await conn.execute(schema.profiles.insert().values(name="x", description="", project_id=77))


async def test_all_connections_are_opened_at_the_start(database: Database) -> None:
    before = _descriptors()
    await asyncio.gather(*[_values(database) for _ in range(20)])
    async with database.write("test") as conn:
        await config.replace(conn, {"user.a": "1"})
    assert _descriptors() == before


async def test_a_connection_that_broke_is_opened_anew(database: Database) -> None:
    def break_it(connection: sa.Connection) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.close()

    for _ in range(engine.READERS):
        async with database.read() as conn:
            await conn.run(break_it)
    async with database.write("test") as conn:
        await config.replace(conn, {"user.a": "1"})
    assert await _values(database) == {"user.a": "1"}


async def test_a_transaction_that_has_ended_takes_no_more(database: Database) -> None:
    async with database.read() as conn:
        await config.load(conn)
    with pytest.raises(RuntimeError, match="has ended"):
        await config.load(conn)


async def test_a_read_that_is_under_way_at_the_end_fails_only_where_it_reads(path: Path) -> None:
    database = await Database.open(path)
    async with database.read() as conn:
        assert await config.load(conn) == {}
        await database.close()


async def test_closing_gives_every_descriptor_back(path: Path) -> None:
    before = _descriptors()
    await (await Database.open(path)).close()
    assert _descriptors() == before


# ---- what the disk may do


async def test_a_full_disk_is_told_and_leaves_nothing(database: Database) -> None:
    async with database.write("limit") as conn:
        pages = (await conn.exec_driver_sql("PRAGMA page_count")).scalar_one()
        await conn.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(OutOfSpace, match="free some space"):
        async with database.write("test") as conn:
            await config.replace(conn, {"user.a": "x" * 100_000})
    assert await _values(database) == {}
    async with database.write("test") as conn:
        await config.replace(conn, {"user.a": "small"})
    assert await _values(database) == {"user.a": "small"}


async def test_a_damaged_file_is_told(database: Database) -> None:
    async with database.write("test") as conn:
        await config.replace(conn, {f"user.{n}": "x" * 500 for n in range(100)})
    await database.close()
    size = database.path.stat().st_size
    with database.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))

    async def read() -> None:
        again = await Database.open(database.path)
        try:
            await _values(again)
        finally:
            await again.close()

    with pytest.raises(HostError):
        await read()


_WRITER = """
import asyncio, sys
from pathlib import Path
from utsuwa.db import config
from utsuwa.db.engine import Database

async def main():
    database = await Database.open(Path(sys.argv[1]))
    n = 0
    while True:
        n += 1
        async with database.write("test") as conn:
            await config.replace(conn, {"user.a": str(n), "user.b": str(n)})
        print(n, flush=True)

asyncio.run(main())
"""


@pytest.mark.processes
async def test_what_was_confirmed_survives_kill_9(path: Path) -> None:
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _WRITER, str(path), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        last = 0
        while last < 40:
            last = int(await process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in (await process.stdout.read()).split():
            last = int(line)
        await process.wait()
        database = await Database.open(path)
        found = await _values(database)
        await database.close()
        assert found["user.a"] == found["user.b"]
        assert int(found["user.a"]) in (last, last + 1)
