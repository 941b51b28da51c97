"""Storage pools with their config, and their users. Volumes are in `storage_volumes`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.core.names import LONE_MEMBER
from utsuwa.core.pool_keys import MEMBER_KEYS
from utsuwa.db import codes, parts, rows
from utsuwa.db.schema import (
    images,
    profiles,
    profiles_devices,
    profiles_devices_config,
    projects,
    storage_pools,
    storage_pools_config,
    storage_pools_members,
    storage_pools_members_config,
    storage_volumes,
    storage_volumes_snapshots,
)
from utsuwa.db.transaction import Prepared, Transaction

_TABLES = parts.PartTables(
    *(storage_pools, storage_pools_config, storage_pools_members, storage_pools_members_config),
    owner="storage_pool_id",
    part="storage_pool_member_id",
    keys=MEMBER_KEYS,
)


@dataclass(frozen=True)
class PoolRow:
    """`id` is 0 until the row is stored; `locations` are the members that have the pool.

    The state is that on this member, `codes.PENDING` if only others have it; the config consists of the keys
    that members share and this member's `MEMBER_KEYS`.
    """

    id: int
    name: str
    driver: str
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    state: codes.State = "creating"
    locations: tuple[str, ...] = (LONE_MEMBER,)


def get(tx: Transaction, name: str) -> PoolRow:
    """Return a pool. Raises NotFound, UnknownCode."""
    found = _fetch(tx, _ONE, name=name)
    if not found:
        raise NotFound(f"Storage pool {name!r} not found")
    if found[0].state == codes.UNKNOWN:
        raise codes.unreadable(f"Storage pool {name!r}")
    return found[0]


def get_all(tx: Transaction) -> list[PoolRow]:
    """Return all pools, sorted by name, in four queries."""
    return _fetch(tx, _ALL)


def insert(tx: Transaction, row: PoolRow) -> int:
    """Insert a pool, or with the row's `id` this member's part of an existing one, and return its id.

    Raises AlreadyExists.
    """
    values = {"name": row.name, "driver": row.driver, "description": row.description}
    with rows.unique(f"Storage pool {row.name!r} already exists"):
        pool_id = row.id or tx.insert(storage_pools, values)
        parts.insert(tx, _TABLES, pool_id, row.state, row.config)
    if not row.id:
        parts.insert_common(tx, _TABLES, pool_id, row.config)
    return pool_id


def update(tx: Transaction, row: PoolRow) -> None:
    """Update description and config of a pool that this member has. Raises NotFound."""
    statement = storage_pools.update().where(storage_pools.c.id == row.id).values(description=row.description)
    rows.one_changed(tx.execute(statement), f"Storage pool {row.name!r} not found")
    parts.replace_config(tx, _TABLES, row.id, row.config)


def set_state(tx: Transaction, pool_id: int, state: codes.State) -> None:
    """Set the state of the pool on this member. Raises NotFound."""
    parts.set_state(tx, _TABLES, pool_id, state, "Storage pool not found")


def delete(tx: Transaction, pool_id: int) -> None:
    """Delete this member's part of the pool and the rows of its volumes, if they exist."""
    volumes = storage_volumes.c.storage_pool_id == pool_id
    tx.execute(storage_volumes.delete().where(volumes, storage_volumes.c.member_id == tx.member))
    parts.delete(tx, _TABLES, pool_id)


@dataclass(frozen=True)
class PoolUse:
    """The users of a pool: volumes as (type, project, name), including those of images, and profiles with
    disk devices on it as (project, name)."""

    volumes: list[tuple[int, str, str]] = field(default_factory=list)
    snapshots: dict[tuple[int, str, str], list[str]] = field(default_factory=dict)
    """The names of the snapshots of these volumes, oldest first."""
    profiles: list[tuple[str, str]] = field(default_factory=list)
    here: list[int] = field(default_factory=list)
    """The types of the volumes that are on this member."""


def used_by(tx: Transaction) -> dict[str, PoolUse]:
    """Return the use of every pool on all members by its name, in four queries; empty for unused pools.

    The volume of an image is listed once for every project that has the image.
    """
    names = tx.execute(sa.select(storage_pools.c.name))
    found = {name: PoolUse() for (name,) in names}
    owner = sa.case((storage_volumes.c.type == codes.VOLUME_IMAGE, images.c.project_id), else_=None)
    volumes = (
        sa.select(
            *(storage_pools.c.name, storage_volumes.c.type, projects.c.name, storage_volumes.c.name),
            storage_volumes.c.member_id,
        )
        .select_from(storage_volumes)
        .join(storage_pools, storage_pools.c.id == storage_volumes.c.storage_pool_id)
        .outerjoin(
            images,
            sa.and_(
                storage_volumes.c.type == codes.VOLUME_IMAGE,
                images.c.fingerprint == storage_volumes.c.name,
            ),
        )
        .join(projects, projects.c.id == sa.func.coalesce(owner, storage_volumes.c.project_id))
        .order_by(storage_volumes.c.type, projects.c.name, storage_volumes.c.name)
    )
    for pool, kind, project, name, member in tx.execute(volumes):
        use = found[pool]
        if (kind, project, name) not in use.volumes[-1:]:  # an image can be on several members
            use.volumes.append((kind, project, name))
        if member == tx.member:
            use.here.append(kind)
    for pool, kind, project, name, snapshot in tx.execute(_snapshots()):
        found[pool].snapshots.setdefault((kind, project, name), []).append(snapshot)
    for pool, project, name in tx.execute(_profiles_with_disks()):
        if pool in found:
            found[pool].profiles.append((project, name))
    return found


def _snapshots() -> sa.Executable:
    snapshots = storage_volumes_snapshots
    return (
        sa.select(
            *(storage_pools.c.name, storage_volumes.c.type, projects.c.name, storage_volumes.c.name),
            snapshots.c.name,
        )
        .select_from(snapshots)
        .join(storage_volumes, storage_volumes.c.id == snapshots.c.storage_volume_id)
        .join(storage_pools, storage_pools.c.id == storage_volumes.c.storage_pool_id)
        .join(projects, projects.c.id == storage_volumes.c.project_id)
        .order_by(snapshots.c.creation_date, snapshots.c.id)
    )


def _profiles_with_disks() -> sa.Executable:
    return (
        sa.select(profiles_devices_config.c.value, projects.c.name, profiles.c.name)
        .distinct()
        .select_from(profiles_devices_config)
        .join(profiles_devices, profiles_devices.c.id == profiles_devices_config.c.profile_device_id)
        .join(profiles, profiles.c.id == profiles_devices.c.profile_id)
        .join(projects, projects.c.id == profiles.c.project_id)
        .where(
            profiles_devices.c.type == codes.DEVICE_TYPES["disk"],
            profiles_devices_config.c.key == "pool",
        )
        .order_by(projects.c.name, profiles.c.name)
    )


class _Queries(NamedTuple):
    rows: Prepared
    parts: parts.PartQueries


def _queries(where: sa.ColumnElement[bool]) -> _Queries:
    table = storage_pools
    return _Queries(
        rows=Prepared(
            sa.select(table.c.id, table.c.name, table.c.driver, table.c.description)
            .where(where)
            .order_by(table.c.name)
        ),
        parts=parts.PartQueries(_TABLES, sa.select(table.c.id).where(where)),
    )


_ALL = _queries(sa.true())
_ONE = _queries(storage_pools.c.name == sa.bindparam("name", type_=sa.Text))


def _fetch(tx: Transaction, queries: _Queries, **values: str) -> list[PoolRow]:
    found = tx.fetch(queries.rows, **values)
    having = queries.parts.fetch(tx, **values) if found else {}
    return [_row(columns, having[columns[0]]) for columns in found]


def _row(columns: tuple[Any, ...], having: parts.Parts) -> PoolRow:
    number, name, driver, description = columns
    return PoolRow(
        id=number,
        name=name,
        driver=driver,
        description=description,
        config=having.config,
        state=having.state_word(codes.Reader(f"Storage pool {name!r}")),
        locations=having.locations,
    )
