"""Use of a database as another member."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from utsuwa.db import members
from utsuwa.db.database import Database


@asynccontextmanager
async def second_member(database: Database) -> AsyncIterator[None]:
    """Run the block as the member `host2`; the first member is renamed to `host1`."""
    first = await database.write("test", members.claim, "uuid-1", "host1")
    database.act_as(await database.write("test", members.claim, "uuid-2", "host2"))
    try:
        yield
    finally:
        database.act_as(first)
