"""Networks with their config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.db import codes, rows
from utsuwa.db.schema import networks, networks_config, projects
from utsuwa.db.transaction import Transaction


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


def get(tx: Transaction, project: str, name: str) -> NetworkRow:
    """Raises NotFound, UnknownCode."""
    found = _load(tx, sa.and_(projects.c.name == project, networks.c.name == name))
    if not found:
        raise NotFound(f"Network {name!r} not found")
    if found[0].state == codes.UNKNOWN:
        raise codes.unreadable(f"Network {name!r}")
    return found[0]


def get_all(tx: Transaction, project: str | None) -> list[NetworkRow]:
    """The networks of a project, or of all (None), by project and name, in two queries."""
    return _load(tx, sa.true() if project is None else projects.c.name == project)


def insert(tx: Transaction, row: NetworkRow) -> int:
    """The new id. Raises AlreadyExists, NotFound (project)."""
    values = {
        "project_id": rows.project_id(tx, row.project),
        "name": row.name,
        "description": row.description,
        "state": codes.STATES[row.state],
        "type": codes.number(codes.NETWORK_TYPES, row.type, "network type"),
    }
    with rows.unique(f"Network {row.name!r} already exists"):
        network_id = tx.insert(networks, values)
    rows.insert_config(tx, networks_config, "network_id", network_id, row.config)
    return network_id


def update(tx: Transaction, row: NetworkRow) -> None:
    """Replace description and config of the row with that id. Raises NotFound."""
    statement = networks.update().where(networks.c.id == row.id).values(description=row.description)
    rows.one_changed(tx.execute(statement), f"Network {row.name!r} not found")
    rows.replace_config(tx, networks_config, "network_id", row.id, row.config)


def set_ready(tx: Transaction, network_id: int) -> None:
    """The network is whole. Raises NotFound."""
    statement = networks.update().where(networks.c.id == network_id).values(state=codes.STATES["ready"])
    rows.one_changed(tx.execute(statement), "Network not found")


def rename(tx: Transaction, network_id: int, new: str) -> None:
    """Raises AlreadyExists, NotFound."""
    with rows.unique(f"Network {new!r} already exists"):
        result = tx.execute(networks.update().where(networks.c.id == network_id).values(name=new))
    rows.one_changed(result, "Network not found")


def delete(tx: Transaction, network_id: int) -> None:
    """Does nothing where it is gone."""
    tx.execute(networks.delete().where(networks.c.id == network_id))


def _load(tx: Transaction, where: sa.ColumnElement[bool]) -> list[NetworkRow]:
    source = networks.join(projects, projects.c.id == networks.c.project_id)
    query = (
        sa.select(networks, projects.c.name.label("project"))
        .select_from(source)
        .where(where)
        .order_by(projects.c.name, networks.c.name)
    )
    found = tx.execute(query).all()
    owners = sa.select(networks.c.id).select_from(source).where(where)
    config = rows.load_config(tx, networks_config, "network_id", owners)
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
