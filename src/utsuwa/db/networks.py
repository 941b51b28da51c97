"""Networks with their config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.db import codes, rows
from utsuwa.db.connection import Connection
from utsuwa.db.schema import networks, networks_config, projects


@dataclass(frozen=True)
class NetworkRow:
    """`id` is 0 for a row that is not stored yet."""

    id: int
    project: str
    name: str
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    type: str = "bridge"
    state: codes.State = "creating"


async def get(conn: Connection, project: str, name: str) -> NetworkRow:
    """Raises NotFound, UnknownCode."""
    found = await _load(conn, sa.and_(projects.c.name == project, networks.c.name == name))
    if not found:
        raise NotFound(f"Network {name!r} not found")
    if found[0].state == codes.UNKNOWN:
        raise codes.unreadable(f"Network {name!r}")
    return found[0]


async def get_all(conn: Connection, project: str | None) -> list[NetworkRow]:
    """The networks of a project, or of all (None), by project and name, in two queries."""
    return await _load(conn, sa.true() if project is None else projects.c.name == project)


async def insert(conn: Connection, row: NetworkRow) -> int:
    """The new id. Raises AlreadyExists, NotFound (project)."""
    values = {
        "project_id": await rows.project_id(conn, row.project),
        "name": row.name,
        "description": row.description,
        "state": codes.STATES[row.state],
        "type": codes.number(codes.NETWORK_TYPES, row.type, "network type"),
    }
    with rows.unique(f"Network {row.name!r} already exists"):
        network_id = await rows.insert(conn, networks, values)
    await rows.insert_config(conn, networks_config, "network_id", network_id, row.config)
    return network_id


async def update(conn: Connection, row: NetworkRow) -> None:
    """Replace description and config of the row with that id. Raises NotFound."""
    statement = networks.update().where(networks.c.id == row.id).values(description=row.description)
    rows.one_changed(await conn.execute(statement), f"Network {row.name!r} not found")
    await rows.replace_config(conn, networks_config, "network_id", row.id, row.config)


async def set_ready(conn: Connection, network_id: int) -> None:
    """The network is whole. Raises NotFound."""
    statement = networks.update().where(networks.c.id == network_id).values(state=codes.STATES["ready"])
    rows.one_changed(await conn.execute(statement), "Network not found")


async def rename(conn: Connection, network_id: int, new: str) -> None:
    """Raises AlreadyExists, NotFound."""
    with rows.unique(f"Network {new!r} already exists"):
        result = await conn.execute(networks.update().where(networks.c.id == network_id).values(name=new))
    rows.one_changed(result, "Network not found")


async def delete(conn: Connection, network_id: int) -> None:
    """Does nothing where it is gone."""
    await conn.execute(networks.delete().where(networks.c.id == network_id))


async def _load(conn: Connection, where: sa.ColumnElement[bool]) -> list[NetworkRow]:
    source = networks.join(projects, projects.c.id == networks.c.project_id)
    query = (
        sa.select(networks, projects.c.name.label("project"))
        .select_from(source)
        .where(where)
        .order_by(projects.c.name, networks.c.name)
    )
    found = (await conn.execute(query)).all()
    owners = sa.select(networks.c.id).select_from(source).where(where)
    config = await rows.load_config(conn, networks_config, "network_id", owners)
    return [_row(r, config[r.id]) for r in found]


def _row(r: sa.Row[Any], config: dict[str, str]) -> NetworkRow:
    reader = codes.Reader(f"Network {r.name!r} of project {r.project!r}")
    return NetworkRow(
        id=r.id,
        project=r.project,
        name=r.name,
        description=r.description,
        config=config,
        type=reader.word(codes.NETWORK_TYPES, r.type),
        state=reader.state(r.state),
    )
