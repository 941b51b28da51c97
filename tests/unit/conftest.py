"""Fixtures of the unit tests alone: databases, on every engine that there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.support import prepared
from tests.support.postgres import PostgresServer
from utsuwa.db.database import Database
from utsuwa.db.engine import Engine
from utsuwa.db.postgres import Postgres
from utsuwa.db.sqlite import Sqlite
from utsuwa.db.transaction import Transaction

ENGINES = ("sqlite", "postgres")


@pytest.fixture(scope="session", params=ENGINES)
def prepared_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One database with its tables for all tests, each of which leaves it as it was."""
    if request.param == "postgres":
        return Postgres(cast(str, request.getfixturevalue("postgres_template")))
    return prepared.sqlite(tmp_path_factory.mktemp("prepared") / "utsuwa.db")


@pytest.fixture
def tx(prepared_engine: Engine) -> Iterator[Transaction]:
    """A transaction that is undone after the test."""
    connection = prepared_engine.connect(read_only=False)
    try:
        prepared_engine.begin(connection, read_only=False)
        yield Transaction(connection)
        connection.rollback()
    finally:
        connection.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """A database of the test's own."""
    if request.param == "sqlite":
        return prepared.sqlite(tmp_path / "database" / "utsuwa.db")
    server = cast(PostgresServer, request.getfixturevalue("postgres"))
    return Postgres(server.new_database(cast(str, request.getfixturevalue("postgres_template"))))


@pytest.fixture(params=ENGINES)
def empty_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """A database of the test's own that has no tables."""
    if request.param == "sqlite":
        return Sqlite(tmp_path / "database" / "utsuwa.db")
    return Postgres(cast(PostgresServer, request.getfixturevalue("postgres")).new_database())


@pytest.fixture
async def database(engine: Engine) -> AsyncIterator[Database]:
    opened = await Database.open(engine)
    yield opened
    await opened.close()


@pytest.fixture
def shared_url(postgres: PostgresServer, postgres_template: str) -> str:
    """A database of the test's own that several daemons may share."""
    return postgres.new_database(postgres_template)


@pytest.fixture
async def two(shared_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Two daemons' ways to one database."""
    one, other = await Database.open(Postgres(shared_url)), await Database.open(Postgres(shared_url))
    yield one, other
    await one.close()
    await other.close()
