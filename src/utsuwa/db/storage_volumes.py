"""Volumes on storage pools; `type` is one of `codes.VOLUME_CONTAINER`, `VOLUME_IMAGE`, ..."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import NamedTuple, cast

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.core.names import LONE_MEMBER
from utsuwa.db import codes, rows
from utsuwa.db.schema import (
    members,
    projects,
    read_time,
    storage_pools,
    storage_volumes,
    storage_volumes_config,
)
from utsuwa.db.transaction import Prepared, Transaction

_SOURCE = (
    storage_volumes.join(storage_pools, storage_pools.c.id == storage_volumes.c.storage_pool_id)
    .join(projects, projects.c.id == storage_volumes.c.project_id)
    .join(members, members.c.id == storage_volumes.c.member_id)
)
_NOT_FOUND = "Storage volume not found"

CREATION, DELETION = "~create", "~delete"
"""Values of `VolumeRow.new_name` of custom volumes that are being created or deleted."""


@dataclass(frozen=True)
class VolumeRow:
    """`id` is 0 until the row is stored; `location` and `here` as in `InstanceRow`."""

    id: int
    project: str
    pool: str
    name: str
    type: int
    description: str
    created_at: datetime
    config: dict[str, str] = field(default_factory=dict)
    location: str = LONE_MEMBER
    here: bool = True
    new_name: str = ""
    """What is being done with its files (`storage/intentions.py`); empty if nothing is."""

    @property
    def half_made(self) -> bool:
        """Whether it does not exist for callers, as it is being created or deleted."""
        return self.new_name in (CREATION, DELETION)


def not_found(pool: str, name: str) -> NotFound:
    return NotFound(f"Storage volume {name!r} not found on pool {pool!r}")


def get(tx: Transaction, project: str, pool: str, type: int, name: str) -> VolumeRow:
    """Return a volume; this member's, if several have one of that name. Raises NotFound."""
    found = _load(tx, project=project, pool=pool, type=type, name=name)
    if not found:
        raise not_found(pool, name)
    return max(found, key=lambda row: row.here)


def get_id(tx: Transaction, project: str, pool: str, type: int, name: str) -> int:
    """Return the id of a volume, as `get`; one query."""
    found = tx.fetch(_ID, project=project, pool=pool, type=type, name=name, own=tx.member)
    if not found:
        raise not_found(pool, name)
    return int(found[0][0])


def get_all(
    tx: Transaction, project: str | None, pool: str | None = None, type: int | None = None
) -> list[VolumeRow]:
    """Return the volumes of all members, sorted by pool, type, project and name, in two queries.

    None selects all; volumes of an unknown type are skipped.
    """
    return _load(tx, project=project, pool=pool, type=type)


def get_here(tx: Transaction, pool: str, type: int) -> list[VolumeRow]:
    """Return this member's volumes of a type on a pool, sorted by project and name, in two queries."""
    return _load(tx, pool=pool, type=type, member=tx.member)


def insert(tx: Transaction, row: VolumeRow) -> int:
    """Insert a volume and return its id. Raises AlreadyExists, NotFound (project, pool)."""
    values = {
        "project_id": rows.project_id(tx, row.project),
        "storage_pool_id": _pool_id(tx, row.pool),
        "member_id": tx.member,
        "name": row.name,
        "type": row.type,
        "description": row.description,
        "creation_date": row.created_at,
        "new_name": row.new_name,
    }
    with rows.unique(f"Storage volume {row.name!r} already exists on pool {row.pool!r}"):
        volume_id = tx.insert(storage_volumes, values)
    rows.insert_config(tx, storage_volumes_config, "storage_volume_id", volume_id, row.config)
    return volume_id


def update(tx: Transaction, row: VolumeRow) -> None:
    """Update description and config of the row with that id. Raises NotFound."""
    message = f"Storage volume {row.name!r} not found"
    rows.update(tx, storage_volumes, row.id, message, description=row.description)
    rows.replace_config(tx, storage_volumes_config, "storage_volume_id", row.id, row.config)


def set_new_name(tx: Transaction, volume_id: int, new: str) -> None:
    """Record what is about to be done with the files; empty to clear it.

    Raises NotFound.
    """
    rows.update(tx, storage_volumes, volume_id, _NOT_FOUND, new_name=new)


def move(tx: Transaction, volume_id: int, project: str, pool: str, name: str) -> None:
    """Change project, pool and name of a volume whose files are there already.

    Raises AlreadyExists, NotFound (volume, project, pool).
    """
    place = {"project_id": rows.project_id(tx, project), "storage_pool_id": _pool_id(tx, pool)}
    with rows.unique(f"Storage volume {name!r} already exists on pool {pool!r}"):
        rows.update(tx, storage_volumes, volume_id, _NOT_FOUND, **place, name=name, new_name="")


def delete(tx: Transaction, volume_id: int) -> None:
    """Delete the row and its config, if it exists."""
    tx.delete(storage_volumes, volume_id)


def _pool_id(tx: Transaction, pool: str) -> int:
    for (found,) in tx.fetch(_POOL_ID, pool=pool):
        return int(found)
    raise NotFound(f"Storage pool {pool!r} not found")


class _Queries(NamedTuple):
    rows: Prepared
    config: Prepared


def _queries(*where: sa.ColumnElement[bool]) -> _Queries:
    owners = sa.select(storage_volumes.c.id).select_from(_SOURCE).where(*where)
    own = (storage_volumes.c[name] for name in _COLUMNS)
    return _Queries(
        Prepared(
            sa.select(projects.c.name, storage_pools.c.name, members.c.name, *own)
            .select_from(_SOURCE)
            .where(*where)
            .order_by(storage_pools.c.name, storage_volumes.c.type, projects.c.name, storage_volumes.c.name)
            .order_by(members.c.name)
        ),
        Prepared(rows.config_query(storage_volumes_config, "storage_volume_id", owners)),
    )


_COLUMNS = ("id", "name", "type", "description", "creation_date", "member_id", "new_name")
_IS_POOL = storage_pools.c.name == sa.bindparam("pool", type_=sa.Text)
_POOL_ID = Prepared(sa.select(storage_pools.c.id).where(_IS_POOL))
_IS = {
    "project": projects.c.name == sa.bindparam("project", type_=sa.Text),
    "pool": _IS_POOL,
    "type": storage_volumes.c.type == sa.bindparam("type", type_=sa.Integer),
    "name": storage_volumes.c.name == sa.bindparam("name", type_=sa.Text),
    "member": storage_volumes.c.member_id == sa.bindparam("member", type_=sa.Integer),
}


_ID = Prepared(
    sa.select(storage_volumes.c.id)
    .select_from(_SOURCE)
    .where(*(_IS[name] for name in ("project", "pool", "type", "name")))
    .order_by(storage_volumes.c.member_id != sa.bindparam("own", type_=sa.Integer))
)


@cache
def _chosen(parameters: frozenset[str]) -> _Queries:
    return _queries(sa.true(), *(_IS[name] for name in sorted(parameters)))


def _load(tx: Transaction, **values: str | int | None) -> list[VolumeRow]:
    """Return the volumes that match all values of `_IS`, of which None matches all."""
    given = {name: value for name, value in values.items() if value is not None}
    queries = _chosen(frozenset(given))
    found = tx.fetch(queries.rows, **given)
    if not found:
        return []
    config = rows.configs(tx.fetch(queries.config, **given))
    return [
        VolumeRow(
            id=row_id,
            project=project,
            pool=pool,
            name=name,
            type=kind,
            description=description,
            created_at=cast(datetime, read_time(created)),
            config=config[row_id],
            location=location,
            here=member == tx.member,
            new_name=new_name,
        )
        for project, pool, location, row_id, name, kind, description, created, member, new_name in found
        if _known(pool, name, kind)
    ]


def _known(pool: str, name: str, kind: int) -> bool:
    reader = codes.Reader(f"Storage volume {name!r} on pool {pool!r}")
    reader.word(codes.VOLUME_TYPES, kind)
    return reader.complete
