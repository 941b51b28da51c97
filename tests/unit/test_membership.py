"""Which member of its database a daemon is: remembered in the state folder, named by its settings."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths
from utsuwa.daemon.membership import join
from utsuwa.db import members, schema
from utsuwa.db.choice import Settings
from utsuwa.db.database import Database
from utsuwa.db.postgres import Postgres


def folder(tmp_path: Path, name: str) -> StatePaths:
    paths = StatePaths(tmp_path / name)
    (paths.root / "database").mkdir(parents=True)
    return paths


@pytest.fixture
async def shared_database(shared_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(Postgres(shared_url))
    yield opened
    await opened.close()


async def test_a_lone_daemon_is_the_first_member(database: Database, tmp_path: Path) -> None:
    paths = folder(tmp_path, "one")
    await join(database, paths, Settings())
    assert (database.member.id, database.member.name) == (schema.FIRST_MEMBER, "none")
    assert paths.member.exists() == database.engine.shared
    await join(database, paths, Settings(member="host1"))
    assert (database.member.id, database.member.name) == (schema.FIRST_MEMBER, "host1")
    await join(database, paths, Settings())
    assert database.member.name == "host1"


async def test_daemons_on_a_shared_database_need_different_names(
    shared_database: Database, tmp_path: Path
) -> None:
    one, two = folder(tmp_path, "one"), folder(tmp_path, "two")
    await join(shared_database, one, Settings(member="host1"))
    with pytest.raises(HostError, match="a daemon with another state directory"):
        await join(shared_database, two, Settings())
    await join(shared_database, two, Settings(member="host2"))
    assert shared_database.member.name == "host2"
    assert await shared_database.read("test", lambda tx: tx.member) == shared_database.member.id
    assert [row.name for row in await shared_database.read("test", members.get_all)] == ["host1", "host2"]
    assert stat.S_IMODE(two.member.stat().st_mode) == 0o600


async def test_an_unreadable_id_is_reported(shared_database: Database, tmp_path: Path) -> None:
    paths = folder(tmp_path, "one")
    paths.member.write_text("nonsense")
    with pytest.raises(HostError, match="Cannot read the id of this member"):
        await join(shared_database, paths, Settings())
