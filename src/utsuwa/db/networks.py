"""Networks with their config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.core.names import LONE_MEMBER
from utsuwa.core.network_values import MEMBER_KEYS
from utsuwa.db import codes, parts, rows
from utsuwa.db.schema import (
    networks,
    networks_config,
    networks_members,
    networks_members_config,
    projects,
)
from utsuwa.db.transaction import Prepared, Transaction

_TABLES = parts.PartTables(
    *(networks, networks_config, networks_members, networks_members_config),
    owner="network_id",
    part="network_member_id",
    keys=MEMBER_KEYS,
)


@dataclass(frozen=True)
class NetworkRow:
    """`id` is 0 until the row is stored; `locations`, state and config as in `PoolRow`."""

    id: int
    project: str
    name: str
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    type: str = "bridge"
    state: codes.State = "creating"
    locations: tuple[str, ...] = (LONE_MEMBER,)


def get(tx: Transaction, project: str, name: str) -> NetworkRow:
    """Return a network. Raises NotFound, UnknownCode."""
    found = _fetch(tx, _ONE, project=project, name=name)
    if not found:
        raise not_found(name)
    if found[0].state == codes.UNKNOWN:
        raise codes.unreadable(f"Network {name!r}")
    return found[0]


def not_found(name: str) -> NotFound:
    return NotFound(f"Network {name!r} not found")


def get_all(tx: Transaction, project: str | None) -> list[NetworkRow]:
    """Return the networks of a project, or of all (None), sorted by project and name, in four queries."""
    if project is None:
        return _fetch(tx, _ALL)
    return _fetch(tx, _OF_PROJECT, project=project)


def insert(tx: Transaction, row: NetworkRow) -> int:
    """Insert a network, or with the row's `id` this member's part of an existing one, and return its id.

    Raises AlreadyExists, NotFound (project).
    """
    values = {
        "project_id": rows.project_id(tx, row.project),
        "name": row.name,
        "description": row.description,
        "type": codes.number(codes.NETWORK_TYPES, row.type, "network type"),
    }
    with rows.unique(f"Network {row.name!r} already exists"):
        network_id = row.id or tx.insert(networks, values)
        parts.insert(tx, _TABLES, network_id, row.state, row.config)
    if not row.id:
        parts.insert_common(tx, _TABLES, network_id, row.config)
    return network_id


def update(tx: Transaction, row: NetworkRow) -> None:
    """Update description and config of a network that this member has. Raises NotFound."""
    statement = networks.update().where(networks.c.id == row.id).values(description=row.description)
    rows.one_changed(tx.execute(statement), f"Network {row.name!r} not found")
    parts.replace_config(tx, _TABLES, row.id, row.config)


def set_ready(tx: Transaction, network_id: int) -> None:
    """Mark the network as created on this member. Raises NotFound."""
    parts.set_state(tx, _TABLES, network_id, "ready", "Network not found")


def rename(tx: Transaction, network_id: int, new: str) -> None:
    """Rename a network. Raises AlreadyExists, NotFound."""
    with rows.unique(f"Network {new!r} already exists"):
        result = tx.execute(networks.update().where(networks.c.id == network_id).values(name=new))
    rows.one_changed(result, "Network not found")


def delete(tx: Transaction, network_id: int) -> None:
    """Delete this member's part of a network, if it exists; the network with the last part."""
    parts.delete(tx, _TABLES, network_id)


class _Queries(NamedTuple):
    rows: Prepared
    parts: parts.PartQueries


def _queries(where: sa.ColumnElement[bool]) -> _Queries:
    source = networks.join(projects, projects.c.id == networks.c.project_id)
    columns = (networks.c.id, projects.c.name, networks.c.name, networks.c.description, networks.c.type)
    return _Queries(
        rows=Prepared(
            sa.select(*columns).select_from(source).where(where).order_by(projects.c.name, networks.c.name)
        ),
        parts=parts.PartQueries(_TABLES, sa.select(networks.c.id).select_from(source).where(where)),
    )


_IN_PROJECT = projects.c.name == sa.bindparam("project", type_=sa.Text)
_ALL = _queries(sa.true())
_OF_PROJECT = _queries(_IN_PROJECT)
_ONE = _queries(sa.and_(_IN_PROJECT, networks.c.name == sa.bindparam("name", type_=sa.Text)))


def _fetch(tx: Transaction, queries: _Queries, **values: str) -> list[NetworkRow]:
    found = tx.fetch(queries.rows, **values)
    having = queries.parts.fetch(tx, **values) if found else {}
    return [_row(columns, having[columns[0]]) for columns in found]


def _row(columns: tuple[Any, ...], having: parts.Parts) -> NetworkRow:
    number, project, name, description, kind = columns
    reader = codes.Reader(f"Network {name!r} of project {project!r}")
    return NetworkRow(
        id=number,
        project=project,
        name=name,
        description=description,
        config=having.config,
        type=reader.word(codes.NETWORK_TYPES, kind),
        state=having.state_word(reader),
        locations=having.locations,
    )
