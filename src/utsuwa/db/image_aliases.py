"""Names of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.db import codes, rows
from utsuwa.db.connection import Connection
from utsuwa.db.schema import images, images_aliases, projects

_SOURCE = images_aliases.join(images, images.c.id == images_aliases.c.image_id).join(
    projects, projects.c.id == images_aliases.c.project_id
)


@dataclass(frozen=True)
class AliasRow:
    """`fingerprint` is the whole one; `type` is the image's (`container`)."""

    project: str
    name: str
    description: str
    fingerprint: str
    type: str = "container"


async def get(conn: Connection, project: str, name: str) -> AliasRow:
    """Raises NotFound, UnknownCode."""
    found = await _load(conn, sa.and_(projects.c.name == project, images_aliases.c.name == name))
    if not found:
        raise NotFound(f"Image alias {name!r} not found")
    if found[0].type == codes.UNKNOWN:
        raise codes.unreadable(f"Image alias {name!r}")
    return found[0]


async def get_all(conn: Connection, project: str | None) -> list[AliasRow]:
    """The aliases of a project, or of all (None), by project and name, in one query."""
    found = await _load(conn, sa.true() if project is None else projects.c.name == project)
    return [row for row in found if row.type != codes.UNKNOWN]


async def insert(conn: Connection, row: AliasRow) -> None:
    """Raises AlreadyExists, NotFound (project, image)."""
    values = {
        "project_id": await rows.project_id(conn, row.project),
        "name": row.name,
        "description": row.description,
        "image_id": await _image_id(conn, row),
    }
    with rows.unique(f"Image alias {row.name!r} already exists"):
        await rows.insert(conn, images_aliases, values)


async def update(conn: Connection, row: AliasRow) -> None:
    """Point an alias at another image of its project, and replace its description. Raises NotFound."""
    values = {"description": row.description, "image_id": await _image_id(conn, row)}
    await _change(conn, row.project, row.name, values)


async def rename(conn: Connection, project: str, name: str, new: str) -> None:
    """Raises AlreadyExists, NotFound."""
    with rows.unique(f"Image alias {new!r} already exists"):
        await _change(conn, project, name, {"name": new})


async def delete(conn: Connection, project: str, name: str) -> None:
    """Raises NotFound."""
    result = await conn.execute(images_aliases.delete().where(_is(project, name)))
    rows.one_changed(result, f"Image alias {name!r} not found")


def _is(project: str, name: str) -> sa.ColumnElement[bool]:
    owner = sa.select(projects.c.id).where(projects.c.name == project).scalar_subquery()
    return sa.and_(images_aliases.c.project_id == owner, images_aliases.c.name == name)


async def _change(conn: Connection, project: str, name: str, values: dict[str, object]) -> None:
    result = await conn.execute(images_aliases.update().where(_is(project, name)).values(**values))
    rows.one_changed(result, f"Image alias {name!r} not found")


async def _image_id(conn: Connection, row: AliasRow) -> int:
    query = (
        sa.select(images.c.id)
        .join(projects, projects.c.id == images.c.project_id)
        .where(projects.c.name == row.project, images.c.fingerprint == row.fingerprint)
    )
    found = (await conn.execute(query)).scalar_one_or_none()
    if found is None:
        raise NotFound(f"Image {row.fingerprint[:12]!r} not found")
    return int(found)


async def _load(conn: Connection, where: sa.ColumnElement[bool]) -> list[AliasRow]:
    query = (
        sa.select(
            projects.c.name.label("project"),
            images_aliases.c.name,
            images_aliases.c.description,
            images.c.fingerprint,
            images.c.type,
        )
        .select_from(_SOURCE)
        .where(where)
        .order_by(projects.c.name, images_aliases.c.name)
    )
    return [_row(r) for r in await conn.execute(query)]


def _row(r: sa.Row[Any]) -> AliasRow:
    kind = codes.Reader(f"Image alias {r.name!r} of project {r.project!r}").word(codes.INSTANCE_TYPES, r.type)
    return AliasRow(r.project, r.name, r.description, r.fingerprint, kind)
