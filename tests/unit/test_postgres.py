"""What only PostgreSQL does: conflicts, connections that break, a server that is away, its own limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from tests.support.postgres import PostgresServer
from utsuwa.core.errors import HostError, InvalidRequest, OutOfSpace, Unavailable
from utsuwa.db import config, profiles, schema, session, sql, upgrade
from utsuwa.db.database import Database
from utsuwa.db.postgres import Postgres
from utsuwa.db.transaction import Transaction


@pytest.fixture
def engine(postgres: PostgresServer, postgres_template: str) -> Postgres:
    return Postgres(postgres.new_database(postgres_template))


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """One that a test may stop."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
async def stoppable(own_server: PostgresServer) -> AsyncIterator[Database]:
    url = await asyncio.to_thread(own_server.new_database)
    database = await Database.open(Postgres(url))
    yield database
    await database.close()


async def _values(database: Database) -> dict[str, str]:
    return await database.read("test", config.load)


async def _store(database: Database, value: str) -> None:
    await database.write("test", config.replace, {"user.a": value})


def _cut_all(postgres: PostgresServer) -> None:
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'utsuwad'"
    )


async def test_two_daemons_that_start_at_once_make_the_tables_once(postgres: PostgresServer) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    made = await asyncio.gather(*[asyncio.to_thread(Postgres(url).prepare) for _ in range(4)])
    assert sorted(made) == [False, False, False, True]
    assert Postgres(url).is_prepared()


def test_a_step_that_fails_leaves_nothing(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (id integer)")
        connection.exec_driver_sql("SELECT * FROM nowhere")

    engine = Postgres(postgres.new_database())
    monkeypatch.setattr(upgrade, "run_steps", step)
    with pytest.raises(HostError, match="Cannot prepare the database .*nowhere"):
        engine.prepare()
    assert not engine.is_prepared()
    monkeypatch.undo()
    assert engine.prepare() is True


async def test_a_newer_schema_is_refused(engine: Postgres) -> None:
    database = await Database.open(engine)
    newer = sa.text("UPDATE alembic_version SET version_num = '9999'")
    await database.write("test", Transaction.execute, newer)
    await database.close()
    with pytest.raises(HostError, match="newer version of Utsuwa .schema 9999"):
        await Database.open(engine)


def test_an_encoding_that_cannot_hold_all_text_is_refused(postgres: PostgresServer) -> None:
    postgres.execute(
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0"
    )
    url = postgres.new_database()
    with pytest.raises(HostError, match="has the encoding LATIN1: create it with ENCODING 'UTF8'"):
        Postgres(url.replace(url.split("/")[3].split("?")[0], "latin")).prepare()


async def test_conflicting_transaction_is_retried(database: Database) -> None:
    """The first one has read what the second one changes before the first one writes."""
    begun, go_on = threading.Event(), threading.Event()
    runs: list[str] = []

    def change(tx: Transaction) -> str:
        found: str = tx.execute(sa.select(schema.projects.c.description)).scalar_one()
        runs.append(found)
        begun.set()
        assert go_on.wait(30)
        tx.execute(schema.projects.update().values(description=f"{found}, then mine"))
        return found

    first = asyncio.create_task(database.write("first", change))
    await asyncio.to_thread(begun.wait, 30)
    other = schema.projects.update().values(description="theirs")
    await database.write("second", Transaction.execute, other)
    go_on.set()
    assert await first == "theirs"
    assert runs == ["Default LXD project", "theirs"]
    query = sa.select(schema.projects.c.description)
    assert (await database.read("test", Transaction.execute, query)).scalar_one() == "theirs, then mine"


async def test_persistent_conflicts_are_reported(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LONGEST_PAUSE", 0.001)
    runs = []

    def conflict(tx: Transaction) -> None:
        runs.append(1)
        tx.execute_sql("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    with pytest.raises(Unavailable, match="conflicts with other transactions"):
        await database.write("test", conflict)
    assert len(runs) == session._CONFLICTS + 1
    assert await _values(database) == {}


async def test_prepared_query_sees_new_rows(database: Database) -> None:
    """It goes past SQLAlchemy, and its transaction ends all the same."""
    for _ in range(database.engine.readers):
        assert [row.description for row in await database.read("test", profiles.get_all, None)] != ["new"]
    (row,) = await database.read("test", profiles.get_all, None)
    await database.write("test", profiles.update, replace(row, description="new"))
    for _ in range(database.engine.readers):
        assert [row.description for row in await database.read("test", profiles.get_all, None)] == ["new"]


async def test_two_that_insert_the_same_key_at_once_both_get_through(database: Database) -> None:
    """Neither sees the other's row, and one breaks the uniqueness that both keep: it is run again."""
    await asyncio.gather(*[_store(database, str(n)) for n in range(10)])
    assert (await _values(database)).keys() == {"user.a"}


async def test_connections_lost_while_idle_are_reopened(postgres: PostgresServer, database: Database) -> None:
    for n in range(3):
        await asyncio.to_thread(_cut_all, postgres)
        await _store(database, str(n))
        assert await _values(database) == {"user.a": str(n)}


async def test_a_connection_that_is_cut_before_the_end_has_its_transaction_run_again(
    postgres: PostgresServer, database: Database
) -> None:
    runs = []

    def change(tx: Transaction) -> None:
        runs.append(1)
        config.replace(tx, {"user.a": str(len(runs))})
        if len(runs) == 1:
            _cut_all(postgres)
        config.load(tx)

    await database.write("test", change)
    assert len(runs) == 2
    assert await _values(database) == {"user.a": "2"}


async def test_a_connection_that_is_cut_at_the_end_leaves_the_caller_to_look(
    postgres: PostgresServer, database: Database
) -> None:
    """Whether the server has stored the change cannot be told: it is never run again."""
    runs = []

    def change(tx: Transaction) -> None:
        runs.append(1)
        config.replace(tx, {"user.a": "1"})
        _cut_all(postgres)

    with pytest.raises(Unavailable, match="was lost during a commit"):
        await database.write("test", change)
    assert len(runs) == 1
    await _store(database, "2")
    assert await _values(database) == {"user.a": "2"}


async def test_an_unavailable_server_is_reported_and_used_again_later(
    own_server: PostgresServer, stoppable: Database
) -> None:
    await _store(stoppable, "1")
    await asyncio.to_thread(own_server.stop)
    for call in (
        lambda: _values(stoppable),
        lambda: _store(stoppable, "2"),
        lambda: stoppable.read("prepared", profiles.get_all, None),
    ):
        with pytest.raises(
            Unavailable, match=r"The database 'utsuwa\d' of PostgreSQL on .* cannot be reached"
        ):
            await call()
    await asyncio.to_thread(own_server.start)
    assert await _values(stoppable) == {"user.a": "1"}
    await _store(stoppable, "3")
    assert await _values(stoppable) == {"user.a": "3"}


async def test_a_server_that_never_existed(own_server: PostgresServer) -> None:
    engine = Postgres(await asyncio.to_thread(own_server.new_database))
    await asyncio.to_thread(own_server.stop)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await Database.open(engine)
    await asyncio.to_thread(own_server.start)
    await (await Database.open(engine)).close()


async def test_text_that_it_cannot_hold_is_the_callers_fault(database: Database) -> None:
    with pytest.raises(InvalidRequest, match="cannot store this"):
        await _store(database, "a\0b")
    assert await _values(database) == {}


async def test_a_full_disk_on_the_server_is_reported(database: Database) -> None:
    full = sa.text("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$")
    with pytest.raises(OutOfSpace, match="No space left for the database"):
        await database.write("test", Transaction.execute, full)


async def test_sql_by_hand(database: Database) -> None:
    rows, changed = await sql.execute(
        database, "SELECT name, '%s ?' AS odd FROM projects; UPDATE profiles SET description = '100%'"
    )
    assert (rows.columns, rows.rows, changed.affected) == (("name", "odd"), (("default", "%s ?"),), 1)
    for query in ("COMMIT", "SET search_path = x", "START TRANSACTION"):
        with pytest.raises(InvalidRequest, match="cannot be used here"):
            await sql.execute(database, query)
    with pytest.raises(InvalidRequest, match="The query failed: .*nowhere"):
        await sql.execute(database, "SELECT * FROM nowhere")
    with pytest.raises(InvalidRequest, match="use pg_dump"):
        await sql.dump(database, schema_only=False)
