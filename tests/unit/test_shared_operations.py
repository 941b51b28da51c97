"""Operations that go on are known to the other members of a database, for as long as they go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support import prepared
from tests.support.postgres import PostgresServer
from utsuwa.core.errors import OtherMember
from utsuwa.core.scope import EVERYTHING, NOTHING, Scope
from utsuwa.db import members, schema
from utsuwa.db.database import Database
from utsuwa.db.postgres import Postgres
from utsuwa.operations import kinds
from utsuwa.operations import shared as module
from utsuwa.operations.events import EventHub
from utsuwa.operations.operations import Operation, Operations
from utsuwa.operations.shared import SharedOperations


class Member:
    """A daemon's operations, and what it notes of them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.operations = Operations(EventHub(database.member.name))
        self.shared = SharedOperations(database)
        self.operations.on_start(self.shared.note)

    async def noted(self) -> list[str]:
        """The ids of the other members' operations."""
        return [record.id for record in await self.shared.elsewhere(EVERYTHING)]

    async def close(self) -> None:
        await self.operations.stop()
        await self.shared.stop()
        await self.database.close()


@pytest.fixture
def url(postgres: PostgresServer, postgres_template: str) -> str:
    return postgres.new_database(postgres_template)


@pytest.fixture
async def pair(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Member, Member]]:
    monkeypatch.setattr(module, "_BRIEF", 0.02)
    made = []
    for name in ("host1", "host2"):
        database = await Database.open(Postgres(url))
        database.act_as(await database.write("test", members.claim, f"uuid-{name}", name))
        made.append(Member(database))
    yield made[0], made[1]
    for member in made:
        await member.close()


async def forever(_: Operation) -> None:
    await asyncio.Event().wait()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def seen(member: Member, expected: list[str]) -> None:
    async with asyncio.timeout(10):
        while await member.noted() != expected:
            await asyncio.sleep(0.01)


async def test_an_operation_is_known_elsewhere_until_it_ends(pair: tuple[Member, Member]) -> None:
    one, two = pair
    operation = one.operations.start(kinds.COMMAND_EXEC, "default", forever, names=["c1"])
    await seen(two, [operation.id])
    (record,) = await two.shared.elsewhere(EVERYTHING, "default")
    assert (record.description, record.status, record.location) == ("Executing command", "Running", "host1")
    assert record.created_at == operation.created_at
    with pytest.raises(OtherMember, match="is running on 'host1': ask that member"):
        await two.shared.refuse(EVERYTHING, operation.id)
    await two.shared.refuse(EVERYTHING, "another")
    assert await one.noted() == []
    assert operation.record().location == "host1"
    operation.stop()
    await seen(two, [])


async def test_operations_of_other_projects_are_not_visible(pair: tuple[Member, Member]) -> None:
    one, two = pair
    mine = one.operations.start(kinds.COMMAND_EXEC, "default", forever)
    servers = one.operations.start(kinds.IMAGE_DELETE, "", forever)
    await until(lambda: len(one.operations.all(EVERYTHING)) == 2)
    await seen(two, [mine.id, servers.id])
    assert [r.id for r in await two.shared.elsewhere(EVERYTHING, "other")] == [servers.id]
    held = Scope(frozenset({"default"}))
    assert [r.id for r in await two.shared.elsewhere(held)] == [mine.id]
    for scope in (NOTHING, Scope(frozenset({"other"}))):
        assert await two.shared.elsewhere(scope) == []
        await two.shared.refuse(scope, mine.id)


async def test_brief_ones_cost_no_transaction(pair: tuple[Member, Member]) -> None:
    one, two = pair

    async def brief(_: Operation) -> None:
        pass

    operation = one.operations.start(kinds.COMMAND_EXEC, "default", brief)
    await operation.wait(1)
    await one.shared.stop()
    assert await two.noted() == []


async def test_a_daemon_that_was_killed_is_forgotten_at_its_next_start(pair: tuple[Member, Member]) -> None:
    one, two = pair
    operation = one.operations.start(kinds.COMMAND_EXEC, "default", forever)
    await seen(two, [operation.id])
    await two.shared.start()
    assert await two.noted() == [operation.id]
    await SharedOperations(one.database).start()
    assert await two.noted() == []


async def test_single_daemon_stores_no_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BRIEF", 0.0)
    member = Member(await Database.open(prepared.sqlite(tmp_path / "utsuwa.db")))
    member.operations.start(kinds.COMMAND_EXEC, "default", forever)
    await asyncio.sleep(0.05)
    assert not await member.database.read("test", lambda tx: tx.execute(schema.operations.select()).all())
    assert await member.noted() == []
    assert member.operations.all(EVERYTHING)[0].record().location == "none"
    await member.close()
