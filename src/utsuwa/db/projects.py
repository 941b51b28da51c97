"""Projects. There is one so far, `default`, which the first migration makes."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from utsuwa.core.errors import NotFound
from utsuwa.db import rows
from utsuwa.db.schema import projects, projects_config


@dataclass(frozen=True)
class ProjectRow:
    id: int
    name: str
    description: str
    config: dict[str, str]


async def get(conn: AsyncConnection, name: str) -> ProjectRow:
    """Raises NotFound."""
    found = await _load(conn, projects.c.name == name)
    if not found:
        raise NotFound(f"Project {name!r} not found")
    return found[0]


async def get_all(conn: AsyncConnection) -> list[ProjectRow]:
    """All projects by name, in two queries."""
    return await _load(conn, sa.true())


async def update(conn: AsyncConnection, row: ProjectRow) -> None:
    """Replace description and config; raises NotFound."""
    statement = projects.update().where(projects.c.id == row.id).values(description=row.description)
    rows.one_changed(await conn.execute(statement), f"Project {row.name!r} not found")
    await rows.replace_config(conn, projects_config, "project_id", row.id, row.config)


async def _load(conn: AsyncConnection, where: sa.ColumnElement[bool]) -> list[ProjectRow]:
    query = sa.select(projects).where(where).order_by(projects.c.name)
    found = (await conn.execute(query)).all()
    config = await rows.load_config(
        conn, projects_config, "project_id", sa.select(projects.c.id).where(where)
    )
    return [ProjectRow(r.id, r.name, r.description, config[r.id]) for r in found]
