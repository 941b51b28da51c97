"""The engines: tables, transactions, durability, and what happens when the disk or the server says no."""

from __future__ import annotations

import asyncio
import errno
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
from sqlalchemy.exc import DBAPIError

from tests.support import prepared
from utsuwa.core.errors import HostError, OutOfSpace, Unavailable
from utsuwa.core.paths import StatePaths
from utsuwa.db import config, schema, upgrade
from utsuwa.db.choice import Settings, database_settings, engine_for
from utsuwa.db.database import Database
from utsuwa.db.engine import Engine
from utsuwa.db.postgres import Postgres
from utsuwa.db.sqlite import Sqlite
from utsuwa.db.transaction import Transaction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "database" / "utsuwa.db"


@pytest.fixture
async def file_database(path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(prepared.sqlite(path))
    yield opened
    await opened.close()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _values(database: Database) -> dict[str, str]:
    return await database.read("test", config.load)


async def _store(database: Database, **values: str) -> None:
    await database.write("test", config.replace, {f"user.{key}": value for key, value in values.items()})


# ---- the file and its schema


@pytest.mark.filterwarnings("ignore:(Skipped unsupported reflection|autogenerate skipping).*expression-based")
def test_migrations_create_the_tables_of_the_schema(engine: Engine) -> None:
    engine.prepare()
    with closing(engine.connect(read_only=True)) as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
        found = sa.inspect(conn)
        for table in schema.metadata.sorted_tables:
            wanted = {c.name: (c.nullable, _has_default(engine, c)) for c in table.columns}
            stored = {
                c["name"]: (c["nullable"], c["default"] is not None) for c in found.get_columns(table.name)
            }
            assert stored == wanted, table.name
            rules = {
                key["constrained_columns"][0]: key["options"].get("ondelete")
                for key in found.get_foreign_keys(table.name)
            }
            assert rules == {key.parent.name: key.ondelete for key in table.foreign_keys}, table.name


def _has_default(engine: Engine, column: sa.Column[object]) -> bool:
    """PostgreSQL's ids come from a sequence, which is the column's default."""
    return column.server_default is not None or (column.name == "id" and isinstance(engine, Postgres))


def test_known_revisions_match_the_migrations() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    settings = Config()
    settings.set_main_option("script_location", str(Path(upgrade.__file__).parent / "migrations"))
    settings.set_main_option("path_separator", "os")
    steps = [step.revision for step in ScriptDirectory.from_config(settings).walk_revisions()]
    assert tuple(reversed(steps)) == upgrade.REVISIONS


def test_an_upgrade_keeps_the_rows(empty_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every release: a database that was written by the first one comes to the tables of this one."""
    engine = empty_engine
    with monkeypatch.context() as first:
        first.setattr(upgrade, "REVISIONS", upgrade.REVISIONS[:1])
        assert engine.prepare() is True
    with closing(engine.connect(read_only=False)) as conn, conn.begin():
        conn.exec_driver_sql(
            "INSERT INTO instances (name, architecture, ephemeral, creation_date, stateful, description, "
            "project_id) VALUES ('c1', 1, '0', '2026-01-01 00:00:00', '0', 'x', 1)"
        )
        conn.exec_driver_sql(
            "INSERT INTO instances_config (instance_id, key, value) VALUES "
            "(1, 'volatile.eth0.hwaddr', '00:16:3e:00:00:01')"
        )
    assert engine.prepare() is True
    with closing(engine.connect(read_only=True)) as conn:
        assert conn.exec_driver_sql("SELECT name FROM instances").scalars().all() == ["c1"]
        assert conn.exec_driver_sql("SELECT value FROM instances_config").scalars().all() == [
            "00:16:3e:00:00:01"
        ]


def test_the_first_schema_has_a_project_and_a_profile(path: Path) -> None:
    assert Sqlite(path).prepare() is True
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT id, name FROM projects").fetchall() == [(1, "default")]
        assert conn.execute("SELECT name, description, project_id FROM profiles").fetchall() == [
            ("default", "Default LXD profile", 1)
        ]
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []


def test_upgrade_of_a_current_schema_changes_nothing(path: Path) -> None:
    assert not Sqlite(path).is_prepared()
    Sqlite(path).prepare()
    assert Sqlite(path).is_prepared()
    before = path.read_bytes()
    assert Sqlite(path).prepare() is False
    assert path.read_bytes() == before


@pytest.mark.processes
def test_alembic_is_loaded_only_for_an_upgrade(path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from utsuwa.db.database import Database; from utsuwa.db.sqlite import Sqlite\n"
        "async def main():\n"
        "    await (await Database.open(Sqlite(Path(sys.argv[1])))).close()\n"
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
        Sqlite(path).prepare()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_newer_schema_is_refused(path: Path) -> None:
    Sqlite(path).prepare()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
    assert Sqlite(path).is_prepared()
    with pytest.raises(HostError, match="newer version of Utsuwa .schema 9999"):
        await Database.open(Sqlite(path))


def test_a_file_that_is_not_a_database_is_rejected(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"certainly not a database " * 100)
    assert Sqlite(path).is_prepared()
    with pytest.raises(HostError, match="Cannot prepare the database .*file is not a database"):
        Sqlite(path).prepare()


def test_failure_to_create_the_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "database").write_text("a file")
    with pytest.raises(HostError, match="Cannot open the database"):
        Sqlite(tmp_path / "database" / "utsuwa.db").prepare()


def test_a_step_that_fails_leaves_nothing_behind(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("CREATE TABLE warnings (mine TEXT)")  # made by the first schema's last step
    with pytest.raises(HostError, match="already exists"):
        Sqlite(path).prepare()
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT name FROM sqlite_master").fetchall() == [("warnings",)]
    assert Sqlite(path).stored_revision() is None


def test_unusual_paths_are_used_literally(tmp_path: Path) -> None:
    path = tmp_path / "100% ?mode=ro #1" / "utsuwa.db"
    Sqlite(path).prepare()
    assert Sqlite(path).stored_revision() == upgrade.REVISIONS[-1]


def test_upgrade_keeps_a_copy_of_the_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Sqlite(path).prepare()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE projects SET description = 'before'")

    def step(connection: sa.Connection) -> None:
        connection.exec_driver_sql("UPDATE projects SET description = 'after'")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'new'")

    monkeypatch.setattr(upgrade, "REVISIONS", (*upgrade.REVISIONS, "new"))
    monkeypatch.setattr(upgrade, "run_steps", step)
    assert Sqlite(path).prepare() is True
    copies = [file for file in path.parent.iterdir() if file.name.endswith(f".{upgrade.REVISIONS[-2]}")]
    found = {}
    for file in (path, *copies):
        with closing(sqlite3.connect(file)) as conn:
            found[file.name] = conn.execute("SELECT description FROM projects").fetchone()[0]
    assert found == {"utsuwa.db": "after", copies[0].name: "before"}
    assert stat.S_IMODE(copies[0].stat().st_mode) == 0o600


# ---- which engine


def test_the_engine_is_sqlite_unless_something_else_is_asked_for(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path)
    assert database_settings(paths) == Settings(None, None)
    assert isinstance(engine_for(paths, None), Sqlite)
    paths.database_settings.write_text("url: postgresql://u:secret@db.example:5433/state\n")
    paths.database_settings.chmod(0o600)
    engine = engine_for(paths, database_settings(paths).url)
    assert engine.name == "The database 'state' of PostgreSQL on db.example"
    assert database_settings(paths, Settings("postgresql://other/x")).url == "postgresql://other/x"


def test_settings_name_the_member(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path)
    paths.database_settings.write_text("member: host1\n")
    assert database_settings(paths) == Settings(None, "host1")
    assert database_settings(paths, Settings(member="host2")).member == "host2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("url: [", "is not valid YAML"),
        ("uri: postgresql://u:secret@h/d", "unknown field `uri`"),
        ("- postgresql://u:secret@h/d", "Expected `object`"),
        ("", "Expected `object`"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str, reason: str) -> None:
    paths = StatePaths(tmp_path)
    paths.database_settings.write_text(text)
    with pytest.raises(HostError, match=reason) as refused:
        database_settings(paths)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    "url", ["mysql://u:secret@h/d", "postgresql://u:secret@h", "secret", "sqlite:///secret"]
)
def test_urls_that_are_not_postgresql(tmp_path: Path, url: str) -> None:
    with pytest.raises(HostError, match="postgresql://USER@HOST/DATABASE") as refused:
        engine_for(StatePaths(tmp_path), url)
    assert "secret" not in refused.value.message


def test_settings_readable_by_others_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = StatePaths(tmp_path)
    paths.database_settings.write_text("url: postgresql://u:secret@h/d")
    paths.database_settings.chmod(0o644)
    assert database_settings(paths).url == "postgresql://u:secret@h/d"
    assert "chmod 600" in caplog.text
    assert "secret" not in caplog.text


# ---- transactions, on both engines


async def test_result_of_a_write_is_returned_after_its_commit(database: Database) -> None:
    def change(tx: Transaction, key: str, *, value: str) -> str:
        config.replace(tx, {key: value})
        return config.load(tx)[key]

    assert await database.write("test", change, "user.a", value="1") == "1"
    assert await _values(database) == {"user.a": "1"}


async def test_a_write_is_seen_after_its_end_only(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def change(tx: Transaction) -> None:
        config.replace(tx, {"user.a": "1"})
        begun.set()
        assert go_on.wait(30)

    writing = asyncio.create_task(database.write("test", change))
    await asyncio.to_thread(begun.wait, 30)
    assert await _values(database) == {}
    go_on.set()
    await writing
    assert await _values(database) == {"user.a": "1"}


async def test_a_read_is_one_moment(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def look_twice(tx: Transaction) -> list[dict[str, str]]:
        first = config.load(tx)
        begun.set()
        assert go_on.wait(30)
        return [first, config.load(tx)]

    reading = asyncio.create_task(database.read("test", look_twice))
    await asyncio.to_thread(begun.wait, 30)
    await _store(database, a="1")
    go_on.set()
    assert await reading == [{}, {}]
    assert await _values(database) == {"user.a": "1"}


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    def change(tx: Transaction) -> None:
        config.replace(tx, {"user.a": "1"})
        raise KeyError

    with pytest.raises(KeyError):
        await database.write("test", change)
    assert await _values(database) == {}
    await _store(database, b="2")
    assert await _values(database) == {"user.b": "2"}


@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_cancelled_write_is_complete(database: Database, cancels: int) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def change(tx: Transaction) -> None:
        config.replace(tx, {"user.a": "1"})
        begun.set()
        assert go_on.wait(30)
        config.replace(tx, {"user.a": "2"})

    task = asyncio.create_task(database.write("test", change))
    await asyncio.to_thread(begun.wait, 30)
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _values(database) == {"user.a": "2"}


async def test_a_write_that_is_cancelled_while_it_waits_never_begins(file_database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: Transaction) -> None:
        begun.set()
        assert go_on.wait(30)

    holding = asyncio.create_task(file_database.write("hold", hold))
    await asyncio.to_thread(begun.wait, 30)
    waiting = asyncio.create_task(_store(file_database, a="1"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    await holding
    assert await _values(file_database) == {}
    await _store(file_database, b="2")
    assert await _values(file_database) == {"user.b": "2"}


async def test_cancelling_at_any_moment_keeps_the_writer_usable(database: Database) -> None:
    """A transaction that is cancelled on its way has happened or has not; the next one works."""
    for n in range(60):
        task = asyncio.create_task(_store(database, n=str(n), again=str(n)))
        for _ in range(n % 7):
            await asyncio.sleep(0)
        if n % 3 == 0:
            await asyncio.sleep(0.0002)
        task.cancel()
        await asyncio.wait([task])
        found = await _values(database)
        assert found.get("user.n") == found.get("user.again")
    await _store(database, n="1000")
    assert (await _values(database))["user.n"] == "1000"


async def test_writers_of_one_file_take_turns_in_order(file_database: Database) -> None:
    order: list[int] = []

    def add(tx: Transaction, n: int) -> None:
        config.replace(tx, {**config.load(tx), f"user.{n}": "x"})
        order.append(n)

    await asyncio.gather(*[file_database.write("test", add, n) for n in range(20)])
    assert order == list(range(20))
    assert len(await _values(file_database)) == 20


async def test_no_change_is_lost_between_writers(database: Database) -> None:
    """Two transactions that read and then write the same thing: one of them is run again."""

    def count(tx: Transaction) -> None:
        found = tx.execute(sa.select(schema.projects.c.description)).scalar_one()
        number = int(found) if found.isdigit() else 0
        tx.execute(schema.projects.update().values(description=str(number + 1)))

    await asyncio.gather(*[database.write("test", count) for _ in range(30)])
    query = sa.select(schema.projects.c.description)
    assert (await database.read("test", Transaction.execute, query)).scalar_one() == "30"


async def test_readers_and_a_writer_at_once(database: Database) -> None:
    """More readers than connections, each seeing both keys or none, while they change."""

    async def watch() -> None:
        for _ in range(10):
            found = await _values(database)
            assert found.get("user.a") == found.get("user.b")

    async def change() -> None:
        for n in range(15):
            await _store(database, a=str(n), b=str(n))

    await asyncio.gather(change(), *[watch() for _ in range(database.engine.readers * 3)])
    assert (await _values(database))["user.a"] == "14"


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises((DBAPIError, Unavailable), match="read-?only"):
        await database.read("test", config.replace, {"user.a": "1"})
    assert await _values(database) == {}


async def test_a_note_needs_room_to_be_undone(
    file_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room() -> None:
        raise OutOfSpace("full")

    monkeypatch.setattr(file_database.engine, "check_room", no_room)
    with pytest.raises(OutOfSpace):
        await file_database.note("test", config.replace, {"user.a": "1"})
    assert await _values(file_database) == {}


async def test_references_are_enforced(database: Database) -> None:
    orphan = schema.profiles.insert().values(name="x", description="", project_id=77)
    with pytest.raises(DBAPIError, match="(?i)foreign key"):
        await database.write("test", Transaction.execute, orphan)


async def test_all_connections_are_opened_at_the_start(database: Database) -> None:
    before = _descriptors()
    await asyncio.gather(*[_values(database) for _ in range(20)])
    await asyncio.gather(*[_store(database, a=str(n)) for n in range(4)])
    assert _descriptors() == before


async def test_ended_transaction_rejects_statements(database: Database) -> None:
    kept = await database.read("test", lambda tx: tx)
    with pytest.raises(RuntimeError, match="has ended"):
        config.load(kept)


async def test_a_transaction_waits_for_a_free_connection_only_so_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utsuwa.db.database._WAIT_SECONDS", 0.05)
    go_on = threading.Event()
    busy = [
        asyncio.create_task(database.read("busy", lambda _: go_on.wait(30)))
        for _ in range(database.engine.readers)
    ]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="busy: 'test' found no free connection"):
        await _values(database)
    go_on.set()
    assert await asyncio.gather(*busy) == [True] * len(busy)
    assert await _values(database) == {}


async def test_closing_waits_for_a_write_and_ends_the_rest(engine: Engine) -> None:
    before = _descriptors()
    database = await Database.open(engine)
    writing = asyncio.create_task(_store(database, a="1"))
    await asyncio.sleep(0)
    await database.close()
    await writing
    assert _descriptors() == before
    with pytest.raises(RuntimeError):
        await _values(database)


# ---- what the disk may do


async def test_a_full_disk_is_reported_and_leaves_nothing(file_database: Database) -> None:
    def limit(tx: Transaction) -> None:
        pages = tx.execute_sql("PRAGMA page_count").scalar_one()
        tx.execute_sql(f"PRAGMA max_page_count = {pages + 2}")

    await file_database.write("limit", limit)
    with pytest.raises(OutOfSpace, match="free some space"):
        await _store(file_database, a="x" * 100_000)
    assert await _values(file_database) == {}
    await _store(file_database, a="small")
    assert await _values(file_database) == {"user.a": "small"}


async def test_a_damaged_file_is_reported(path: Path) -> None:
    database = await Database.open(Sqlite(path))
    await database.write("test", config.replace, {f"user.{n}": "x" * 500 for n in range(100)})
    await database.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))

    async def read() -> None:
        again = await Database.open(Sqlite(path))
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
from utsuwa.db.database import Database
from utsuwa.db.sqlite import Sqlite

async def main():
    database = await Database.open(Sqlite(Path(sys.argv[1])))
    n = 0
    while True:
        n += 1
        change = getattr(database, sys.argv[2])
        await change("test", config.replace, {"user.a": str(n), "user.b": str(n)})
        print(n, flush=True)

asyncio.run(main())
"""


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["write", "note"])
async def test_committed_changes_survive_sigkill(path: Path, kind: str) -> None:
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _WRITER, str(path), kind, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        last = 0
        while last < 40:
            last = int(await process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in (await process.stdout.read()).split():
            last = int(line)
        await process.wait()
        database = await Database.open(Sqlite(path))
        found = await _values(database)
        await database.close()
        assert found["user.a"] == found["user.b"]
        assert int(found["user.a"]) in (last, last + 1)


# ---- the size of the write-ahead log


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


async def test_the_log_does_not_grow_until_its_content_is_moved(path: Path) -> None:
    database = await Database.open(Sqlite(path))
    try:
        before = _log_of(path).stat().st_size
        for number in range(20):
            await _store(database, number=str(number))
        assert _log_of(path).stat().st_size == before == 4 << 20
    finally:
        await database.close()


async def test_a_log_with_content_is_lengthened_and_keeps_it(path: Path) -> None:
    first = await Database.open(Sqlite(path))
    await _store(first, one="1")
    os.truncate(_log_of(path), 4 << 18)  # as if it had grown to that
    second = await Database.open(Sqlite(path))  # as the first one would be killed, it does not end
    try:
        assert _log_of(path).stat().st_size == 4 << 20
        await _store(second, one="1", two="2")
        assert await _values(first) == {"user.one": "1", "user.two": "2"}
    finally:
        await second.close()
        await first.close()


async def test_without_space_the_log_keeps_its_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: bytes, offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", write)
    database = await Database.open(Sqlite(path))
    try:
        assert _log_of(path).stat().st_size == 0
        await _store(database, one="1")
        assert await _values(database) == {"user.one": "1"}
    finally:
        await database.close()


# ---- whether anything was written


async def test_what_was_read_is_unchanged_until_a_transaction_writes(file_database: Database) -> None:
    moment = file_database.moment()
    assert await _values(file_database) == {}
    assert file_database.unchanged_since(moment)
    with pytest.raises(ZeroDivisionError):
        await file_database.write("fails", lambda tx: 1 // 0)
    assert not file_database.unchanged_since(moment), "it may have been seen by nobody, but is counted"
    moment = file_database.moment()
    await file_database.note("note", config.replace, {"user.one": "1"})
    assert not file_database.unchanged_since(moment)
    assert not file_database.unchanged_since(None)


async def test_nothing_is_certain_while_a_transaction_writes(file_database: Database) -> None:
    goes_on = threading.Event()
    writing = asyncio.create_task(file_database.write("slow", lambda tx: goes_on.wait(30)))
    await asyncio.sleep(0)
    assert file_database.moment() is None
    goes_on.set()
    assert await writing
    assert file_database.moment() is not None


async def test_writes_of_one_s_own_are_known(file_database: Database) -> None:
    moment = file_database.moment()
    assert file_database.moment_after(moment, writes=0) == moment
    await file_database.note("note", config.replace, {"user.one": "1"})
    assert file_database.moment_after(moment, writes=0) is None
    after = file_database.moment_after(moment, writes=1)
    assert file_database.unchanged_since(after)
    await _store(file_database, one="2")  # as somebody else
    assert not file_database.unchanged_since(after)
    assert file_database.moment_after(moment, writes=1) is None
    assert file_database.moment_after(None, writes=1) is None


async def test_a_transaction_knows_whether_anything_was_written_since_a_moment(
    file_database: Database,
) -> None:
    def moment(tx: Transaction) -> int | None:
        return tx.moment

    began = file_database.moment()
    assert began is not None
    assert await file_database.read("read", moment) is None
    assert await file_database.write("first", moment) == began
    assert await file_database.commit("second", moment) == began + 1
    both = await asyncio.gather(*(file_database.write("both", moment) for _ in range(2)))
    assert both == [began + 2, None]  # the other one may have written before it
