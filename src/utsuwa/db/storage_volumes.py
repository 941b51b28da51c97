"""Volumes on storage pools; `type` is one of `codes.VOLUME_CONTAINER`, `VOLUME_IMAGE`, ..."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.core.names import LONE_MEMBER
from utsuwa.db import codes, rows
from utsuwa.db.schema import members, projects, storage_pools, storage_volumes, storage_volumes_config
from utsuwa.db.transaction import Transaction

_SOURCE = (
    storage_volumes.join(storage_pools, storage_pools.c.id == storage_volumes.c.storage_pool_id)
    .join(projects, projects.c.id == storage_volumes.c.project_id)
    .join(members, members.c.id == storage_volumes.c.member_id)
)


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
    found = _load(tx, _key(project, pool, type, name))
    if not found:
        raise not_found(pool, name)
    return max(found, key=lambda row: row.here)


def get_all(
    tx: Transaction, project: str | None, pool: str | None = None, type: int | None = None
) -> list[VolumeRow]:
    """Return the volumes of all members, sorted by pool, type, project and name, in two queries.

    None selects all; volumes of an unknown type are skipped.
    """
    where: list[sa.ColumnElement[bool]] = [sa.true()]
    if project is not None:
        where.append(projects.c.name == project)
    if pool is not None:
        where.append(storage_pools.c.name == pool)
    if type is not None:
        where.append(storage_volumes.c.type == type)
    return _load(tx, sa.and_(*where))


def get_here(tx: Transaction, pool: str, type: int) -> list[VolumeRow]:
    """Return this member's volumes of a type on a pool, sorted by project and name, in two queries."""
    on_pool = sa.and_(storage_pools.c.name == pool, storage_volumes.c.type == type)
    return _load(tx, sa.and_(on_pool, storage_volumes.c.member_id == tx.member))


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
    statement = (
        storage_volumes.update().where(storage_volumes.c.id == row.id).values(description=row.description)
    )
    rows.one_changed(tx.execute(statement), f"Storage volume {row.name!r} not found")
    rows.replace_config(tx, storage_volumes_config, "storage_volume_id", row.id, row.config)


def set_new_name(tx: Transaction, volume_id: int, new: str) -> None:
    """Record what is about to be done with the files; empty to clear it.

    Raises NotFound.
    """
    statement = storage_volumes.update().where(storage_volumes.c.id == volume_id).values(new_name=new)
    rows.one_changed(tx.execute(statement), "Storage volume not found")


def move(tx: Transaction, volume_id: int, project: str, pool: str, name: str) -> None:
    """Change project, pool and name of a volume whose files are there already.

    Raises AlreadyExists, NotFound (volume, project, pool).
    """
    statement = storage_volumes.update().where(storage_volumes.c.id == volume_id)
    statement = statement.values(
        project_id=rows.project_id(tx, project), storage_pool_id=_pool_id(tx, pool), name=name, new_name=""
    )
    with rows.unique(f"Storage volume {name!r} already exists on pool {pool!r}"):
        result = tx.execute(statement)
    rows.one_changed(result, "Storage volume not found")


def delete(tx: Transaction, volume_id: int) -> None:
    """Delete the row and its config, if it exists."""
    tx.execute(storage_volumes.delete().where(storage_volumes.c.id == volume_id))


def _pool_id(tx: Transaction, pool: str) -> int:
    found = tx.execute(sa.select(storage_pools.c.id).where(storage_pools.c.name == pool)).scalar_one_or_none()
    if found is None:
        raise NotFound(f"Storage pool {pool!r} not found")
    return int(found)


def _key(project: str, pool: str, type: int, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        projects.c.name == project,
        storage_pools.c.name == pool,
        storage_volumes.c.type == type,
        storage_volumes.c.name == name,
    )


def _load(tx: Transaction, where: sa.ColumnElement[bool]) -> list[VolumeRow]:
    query = (
        sa.select(
            storage_volumes,
            projects.c.name.label("project"),
            storage_pools.c.name.label("pool"),
            members.c.name.label("location"),
        )
        .select_from(_SOURCE)
        .where(where)
        .order_by(storage_pools.c.name, storage_volumes.c.type, projects.c.name, storage_volumes.c.name)
        .order_by(members.c.name)
    )
    found = tx.execute(query).all()
    owners = sa.select(storage_volumes.c.id).select_from(_SOURCE).where(where)
    config = rows.load_config(tx, storage_volumes_config, "storage_volume_id", owners)
    found = [r for r in found if _known(r)]
    return [
        VolumeRow(
            id=r.id,
            project=r.project,
            pool=r.pool,
            name=r.name,
            type=r.type,
            description=r.description,
            created_at=r.creation_date,
            config=config[r.id],
            location=r.location,
            here=r.member_id == tx.member,
            new_name=r.new_name,
        )
        for r in found
    ]


def _known(r: sa.Row[Any]) -> bool:
    reader = codes.Reader(f"Storage volume {r.name!r} on pool {r.pool!r}")
    reader.word(codes.VOLUME_TYPES, r.type)
    return reader.complete
