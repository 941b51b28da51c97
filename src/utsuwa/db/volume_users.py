"""The users of custom volumes: instances and profiles with a device of type disk on one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import sqlalchemy as sa

from utsuwa.core.volumes import Volume
from utsuwa.db import codes
from utsuwa.db.projects import all_effective
from utsuwa.db.schema import (
    instances,
    instances_devices,
    instances_devices_config,
    profiles,
    profiles_devices,
    profiles_devices_config,
    projects,
)
from utsuwa.db.transaction import Transaction


class User(NamedTuple):
    """An object that has the volume among its own devices; the kind is its collection in URLs."""

    kind: Literal["instances", "profiles"]
    project: str
    name: str


Users = Mapping[tuple[str, Volume], Sequence[User]]
"""The users of volumes by pool and volume, sorted by kind, project and name."""


class _Tables(NamedTuple):
    """The tables of the devices of one kind of user."""

    kind: Literal["instances", "profiles"]
    owners: sa.Table
    devices: sa.Table
    owner: str
    config: sa.Table
    device: str


_TABLES = (
    _Tables(
        "instances",
        *(instances, instances_devices, "instance_id"),
        *(instances_devices_config, "instance_device_id"),
    ),
    _Tables(
        "profiles",
        *(profiles, profiles_devices, "profile_id"),
        *(profiles_devices_config, "profile_device_id"),
    ),
)


def get_all(tx: Transaction) -> Users:
    """Return the users of all volumes that devices name, whether those exist or not, in three queries."""
    holders = all_effective(tx, "storage.volumes")
    found: defaultdict[tuple[str, Volume], list[User]] = defaultdict(list)
    for tables in _TABLES:
        for _, project, name, pool, source in tx.execute(_disks(tables)):
            user = User(tables.kind, project, name)
            users = found[pool, Volume("custom", holders[project], source)]
            if user not in users[-1:]:  # one that has the volume twice
                users.append(user)
    return found


def get_of(tx: Transaction, pool: str, volume: Volume) -> Sequence[User]:
    """Return the users of one volume, as `get_all`."""
    return get_all(tx).get((pool, volume), ())


def follow(tx: Transaction, pool: str, volume: Volume, new_pool: str, new_name: str) -> list[User]:
    """Have the devices of all users of a volume refer to its new place; return the users."""
    holders = all_effective(tx, "storage.volumes")
    users = []
    for tables in _TABLES:
        for device, project, name, on, source in tx.execute(_disks(tables)):
            if (on, source, holders[project]) != (pool, volume.name, volume.project):
                continue
            for key, value in (("pool", new_pool), ("source", new_name)):
                config = tables.config
                of_device = sa.and_(config.c[tables.device] == device, config.c.key == key)
                tx.execute(config.update().where(of_device).values(value=value))
            users.append(User(tables.kind, project, name))
    return users


def _disks(tables: _Tables) -> sa.Executable:
    """Select the disks on volumes of pools: id of the device, project and name of its owner, pool, source."""
    pool, source = tables.config.alias("pool"), tables.config.alias("source")
    return (
        sa.select(
            *(tables.devices.c.id, projects.c.name, tables.owners.c.name),
            *(pool.c.value, source.c.value),
        )
        .select_from(tables.devices)
        .join(tables.owners, tables.owners.c.id == tables.devices.c[tables.owner])
        .join(projects, projects.c.id == tables.owners.c.project_id)
        .join(pool, sa.and_(pool.c[tables.device] == tables.devices.c.id, pool.c.key == "pool"))
        .join(source, sa.and_(source.c[tables.device] == tables.devices.c.id, source.c.key == "source"))
        .where(tables.devices.c.type == codes.DEVICE_TYPES["disk"])
        .order_by(projects.c.name, tables.owners.c.name, tables.devices.c.id)
    )
