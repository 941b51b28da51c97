"""The nics of instances, merged from their profiles: all that networks need to know of instances.

A launch asks for them several times, so nothing else of an instance is read, and where it is enough only
those of some instances.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from utsuwa.db import codes, rows
from utsuwa.db.instances import DEVICES
from utsuwa.db.profiles import DEVICES as PROFILE_DEVICES
from utsuwa.db.schema import IS_GIVEN_MAC, instances, instances_config, instances_profiles, projects
from utsuwa.db.transaction import Prepared, Transaction

_KEPT = ("hwaddr", "host_name")
"""The volatile keys of a nic that are read: `volatile.<device>.<key>`."""


@dataclass(frozen=True)
class NicsRow:
    """The nics of one instance by their names, and their volatile keys of `_KEPT`."""

    project: str
    instance: str
    devices: rows.Devices
    config: rows.Config
    here: bool = True
    """Whether the instance lives on this daemon's member."""


def get_all(tx: Transaction) -> list[NicsRow]:
    """The instances that have nics, on all members and in whatever state their rows are, by project and name;
    four queries.
    """
    return _load(tx, tx.fetch(_OWN), tx.fetch(_APPLIED), None)


def get_named(tx: Transaction, names: Collection[tuple[str, str]]) -> list[NicsRow]:
    """As `get_all`, of the instances with these projects and names."""
    found = [tx.fetch(_ID, project=project, name=name) for project, name in names]
    return _of(tx, {instance_id for ((instance_id,),) in filter(None, found)})


def get_with(tx: Transaction, *, keys: Collection[str] = (), macs: Collection[str] = ()) -> list[NicsRow]:
    """As `get_all`, of the instances with a device that has one of these keys or MAC addresses.

    These are in lower case. The device may be a profile's that another one hides.
    """
    found: set[int] = set()
    if macs:
        both = sorted({spelt for mac in macs for spelt in (mac, mac.upper())})
        given = sa.select(instances_config.c.instance_id).where(
            IS_GIVEN_MAC, instances_config.c.value.in_(both)
        )
        found.update(tx.execute(given).scalars())
        found.update(_with_device(tx, lambda c: sa.and_(c.key == "hwaddr", sa.func.lower(c.value).in_(macs))))
    if keys:
        found.update(_with_device(tx, lambda c: c.key.in_(sorted(keys))))
    return _of(tx, found)


def _with_device(tx: Transaction, condition: Callable[[Any], sa.ColumnElement[bool]]) -> set[int]:
    """The ids of the instances with a device, own or a profile's, that has a key of the condition."""
    own = (
        sa.select(DEVICES.devices.c.instance_id)
        .join(DEVICES.config, DEVICES.config.c[DEVICES.device] == DEVICES.devices.c.id)
        .where(condition(DEVICES.config.c))
    )
    tables = PROFILE_DEVICES
    profiles = (
        sa.select(tables.devices.c.profile_id)
        .join(tables.config, tables.config.c[tables.device] == tables.devices.c.id)
        .where(condition(tables.config.c))
    )
    by_profile = sa.select(instances_profiles.c.instance_id).where(
        instances_profiles.c.profile_id.in_(profiles)
    )
    return {*tx.execute(own).scalars(), *tx.execute(by_profile).scalars()}


_MANY = 200
"""From this many on, all are read."""


def _of(tx: Transaction, ids: Collection[int]) -> list[NicsRow]:
    if not ids:
        return []
    if len(ids) > _MANY:
        return _load(tx, tx.fetch(_OWN), tx.fetch(_APPLIED), ids)
    own = [row for one in ids for row in tx.fetch(_OWN_OF_ONE, instance=one)]
    applied = [row for one in ids for row in tx.fetch(_APPLIED_OF_ONE, instance=one)]
    return _load(tx, own, applied, ids)


def _load(
    tx: Transaction,
    own: Iterable[tuple[Any, ...]],
    applied: Iterable[tuple[Any, ...]],
    ids: Collection[int] | None,
) -> list[NicsRow]:
    """Of the instances with these ids, or of all (None), by their own devices and their profiles."""
    of_profiles = rows.devices_of(tx.fetch(_OF_PROFILES))
    merged: defaultdict[int, rows.Devices] = defaultdict(dict)
    for instance_id, profile_id in applied:
        merged[instance_id].update(of_profiles[profile_id])
    for instance_id, devices in rows.devices_of(own).items():
        merged[instance_id].update(devices)
    names = {name for devices in merged.values() for name in devices}
    found = []
    for instance_id, member, project, name, config in tx.execute(_instances(names, ids)):
        nics = {key: nic for key, nic in merged[instance_id].items() if nic["type"] == "nic"}
        if nics:
            found.append(NicsRow(project, name, nics, rows.read_config(config), member == tx.member))
    return found


def _instances(devices: Collection[str], ids: Collection[int] | None) -> sa.Select[Any]:
    """Instances with the wanted keys of these devices, which are few: each is looked up in the index."""
    keys = sorted(f"volatile.{device}.{key}" for device in devices for key in _KEPT)
    wanted = sa.and_(instances_config.c.instance_id == instances.c.id, instances_config.c.key.in_(keys))
    query = (
        sa.select(
            *(instances.c.id, instances.c.member_id, projects.c.name, instances.c.name),
            rows.json_config(instances_config),
        )
        .select_from(
            instances.join(projects, projects.c.id == instances.c.project_id).outerjoin(
                instances_config, wanted
            )
        )
        .group_by(instances.c.id, projects.c.name)
        .order_by(projects.c.name, instances.c.name)
    )
    return query if ids is None else query.where(instances.c.id.in_(sorted(ids)))


# A device of any type hides a nic of the same name that stands below it.
_IS_NIC = PROFILE_DEVICES.devices.c.type == codes.DEVICE_TYPES["nic"]
_NAMES = sa.select(PROFILE_DEVICES.devices.c.name).where(_IS_NIC).scalar_subquery()
_IN_PROFILES = PROFILE_DEVICES.devices.c.name.in_(_NAMES)
_OF_PROFILES = Prepared(rows.devices_query(PROFILE_DEVICES, _IN_PROFILES))
_OWN_NICS = sa.or_(DEVICES.devices.c.type == codes.DEVICE_TYPES["nic"], DEVICES.devices.c.name.in_(_NAMES))
_OWN = Prepared(rows.devices_query(DEVICES, _OWN_NICS))
_ONE: sa.BindParameter[int] = sa.bindparam("instance")
_OWN_OF_ONE = Prepared(rows.devices_query(DEVICES, sa.and_(_OWN_NICS, DEVICES.devices.c.instance_id == _ONE)))
_WITH_PROFILES = (
    sa.select(instances_profiles.c.instance_id, instances_profiles.c.profile_id)
    .where(
        instances_profiles.c.profile_id.in_(
            sa.select(PROFILE_DEVICES.devices.c.profile_id).where(_IN_PROFILES)
        )
    )
    .order_by(instances_profiles.c.instance_id, instances_profiles.c.apply_order)
)
_APPLIED = Prepared(_WITH_PROFILES)
_APPLIED_OF_ONE = Prepared(_WITH_PROFILES.where(instances_profiles.c.instance_id == _ONE))
_ID = Prepared(
    sa.select(instances.c.id)
    .select_from(instances.join(projects, projects.c.id == instances.c.project_id))
    .where(projects.c.name == sa.bindparam("project"), instances.c.name == sa.bindparam("name"))
)
