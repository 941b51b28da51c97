"""A state folder is made ready by a program of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer
from utsuwa.core.paths import StatePaths
from utsuwa.daemon.prepare import prepare
from utsuwa.db.postgres import Postgres
from utsuwa.db.sqlite import Sqlite


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(tmp_path)


@pytest.mark.processes
async def test_a_new_folder_gets_database_and_key_pair(paths: StatePaths) -> None:
    engine = Sqlite(paths.database)
    await prepare(paths, engine, None)
    assert engine.is_prepared()
    made = paths.server_cert.read_bytes()
    await prepare(paths, engine, None)
    assert paths.server_cert.read_bytes() == made


async def test_prepared_directory_starts_no_process(paths: StatePaths) -> None:
    """Programs are refused in this test."""
    engine = Sqlite(paths.database)
    engine.prepare()
    paths.server_cert.write_text("there")
    await prepare(paths, engine, None)


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.mark.processes
async def test_a_database_of_postgresql_gets_its_tables(paths: StatePaths, database_url: str) -> None:
    await prepare(paths, Postgres(database_url), database_url)
    assert await asyncio.to_thread(Postgres(database_url).is_prepared)
    assert not paths.database.exists()


@pytest.mark.processes
async def test_a_failure_is_left_to_whoever_opens_it(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    await prepare(paths, Sqlite(paths.database), None)
    assert not paths.server_cert.exists()
