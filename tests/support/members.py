"""A database as two members see it, one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from utsuwa.db import members
from utsuwa.db.database import Database


@asynccontextmanager
async def second_member(database: Database) -> AsyncIterator[None]:
    """What is done in the block is the work of `host2`; the first member is called `host1` from now on."""
    first = await database.write("test", members.claim, "uuid-1", "host1")
    database.act_as(await database.write("test", members.claim, "uuid-2", "host2"))
    try:
        yield
    finally:
        database.act_as(first)
