"""Storage pools with their config, and what is on them. Volumes are in `storage_volumes`."""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.db import codes, rows
from utsuwa.db.schema import (
    images,
    profiles,
    profiles_devices,
    profiles_devices_config,
    projects,
    storage_pools,
    storage_pools_config,
    storage_volumes,
)
from utsuwa.db.transaction import Transaction


@dataclass(frozen=True)
class PoolRow:
    """`id` is 0 for a row that is not stored yet."""

    id: int
    name: str
    driver: str
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    state: codes.State = "creating"


def get(tx: Transaction, name: str) -> PoolRow:
    """Raises NotFound, UnknownCode."""
    found = _load(tx, storage_pools.c.name == name)
    if not found:
        raise NotFound(f"Storage pool {name!r} not found")
    if found[0].state == codes.UNKNOWN:
        raise codes.unreadable(f"Storage pool {name!r}")
    return found[0]


def get_all(tx: Transaction) -> list[PoolRow]:
    """All pools by name, in two queries."""
    return _load(tx, sa.true())


def insert(tx: Transaction, row: PoolRow) -> int:
    """The new id. Raises AlreadyExists."""
    values = {
        "name": row.name,
        "driver": row.driver,
        "description": row.description,
        "state": codes.STATES[row.state],
    }
    with rows.unique(f"Storage pool {row.name!r} already exists"):
        pool_id = tx.insert(storage_pools, values)
    rows.insert_config(tx, storage_pools_config, "storage_pool_id", pool_id, row.config)
    return pool_id


def update(tx: Transaction, row: PoolRow) -> None:
    """Replace description and config of the row with that id. Raises NotFound."""
    statement = storage_pools.update().where(storage_pools.c.id == row.id).values(description=row.description)
    rows.one_changed(tx.execute(statement), f"Storage pool {row.name!r} not found")
    rows.replace_config(tx, storage_pools_config, "storage_pool_id", row.id, row.config)


def set_state(tx: Transaction, pool_id: int, state: codes.State) -> None:
    """The pool is whole, or on its way out. Raises NotFound."""
    statement = storage_pools.update().where(storage_pools.c.id == pool_id).values(state=codes.STATES[state])
    rows.one_changed(tx.execute(statement), "Storage pool not found")


def delete(tx: Transaction, pool_id: int) -> None:
    """Remove the row and its volumes' rows; does nothing where it is gone."""
    tx.execute(storage_pools.delete().where(storage_pools.c.id == pool_id))


@dataclass(frozen=True)
class PoolUse:
    """What refers to a pool: volumes as (type, project, name), images' volumes among them; profiles as
    (project, name), whose disk devices name it."""

    volumes: list[tuple[int, str, str]] = field(default_factory=list)
    profiles: list[tuple[str, str]] = field(default_factory=list)


def used_by(tx: Transaction) -> dict[str, PoolUse]:
    """The use of every pool by its name, in three queries; a pool that nothing uses has an empty one.

    A volume of an image stands once for every project that has the image.
    """
    names = tx.execute(sa.select(storage_pools.c.name))
    found = {name: PoolUse() for (name,) in names}
    owner = sa.case((storage_volumes.c.type == codes.VOLUME_IMAGE, images.c.project_id), else_=None)
    volumes = (
        sa.select(storage_pools.c.name, storage_volumes.c.type, projects.c.name, storage_volumes.c.name)
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
    for pool, kind, project, name in tx.execute(volumes):
        found[pool].volumes.append((kind, project, name))
    for pool, project, name in tx.execute(_profiles_with_disks()):
        if pool in found:
            found[pool].profiles.append((project, name))
    return found


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


def _load(tx: Transaction, where: sa.ColumnElement[bool]) -> list[PoolRow]:
    query = sa.select(storage_pools).where(where).order_by(storage_pools.c.name)
    found = tx.execute(query).all()
    owners = sa.select(storage_pools.c.id).where(where)
    config = rows.load_config(tx, storage_pools_config, "storage_pool_id", owners)
    return [
        PoolRow(
            id=r.id,
            name=r.name,
            driver=r.driver,
            description=r.description,
            config=config[r.id],
            state=codes.Reader(f"Storage pool {r.name!r}").state(r.state),
        )
        for r in found
    ]
