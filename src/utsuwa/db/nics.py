"""The nics of instances, merged with their profiles: all that networks need to know of instances.

A launch reads them several times, so nothing else of an instance is read, and only those of some instances
where that suffices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from utsuwa.core.refs import InstanceRef
from utsuwa.db import codes, rows
from utsuwa.db.instances import DEVICES
from utsuwa.db.profiles import DEVICES as PROFILE_DEVICES
from utsuwa.db.schema import IS_GIVEN_MAC, instances, instances_config, instances_profiles, projects
from utsuwa.db.transaction import Prepared, Transaction

_KEPT = ("hwaddr", "host_name")
"""Keys of a nic that are read from `volatile.<device>.<key>`."""


@dataclass(frozen=True)
class NicsRow:
    """The nics of one instance by name, and their volatile keys of `_KEPT`."""

    instance: InstanceRef
    devices: rows.Devices
    config: rows.Config
    here: bool = True
    """Whether the instance is on this member."""


def get_all(tx: Transaction) -> list[NicsRow]:
    """Return the instances with nics on all members, whatever the state of their rows, in four queries.

    They are sorted by project and name.
    """
    return _load(tx, tx.fetch(_OWN), tx.fetch(_APPLIED), None)


def get_of(tx: Transaction, instances: Collection[InstanceRef]) -> list[NicsRow]:
    """As `get_all`, for some instances, as far as they exist."""
    found = [tx.fetch(_ID, project=ref.project, name=ref.name) for ref in instances]
    return _of(tx, {instance_id for ((instance_id,),) in filter(None, found)})


def get_with(tx: Transaction, *, keys: Collection[str] = (), macs: Collection[str] = ()) -> list[NicsRow]:
    """As `get_all`, for the instances with a device that has one of these keys or MAC addresses.

    MAC addresses must be lower case. The device may be one of a profile that is overridden.
    """
    found: set[int] = set()
    for mac in macs:
        found.update(_ids(tx, (_GIVEN_MAC, *_WITH_MAC), value=mac))
    for key in keys:
        found.update(_ids(tx, _WITH_KEY, value=key))
    return _of(tx, found)


def _ids(tx: Transaction, queries: Iterable[Prepared], *, value: str) -> set[int]:
    return {instance_id for query in queries for (instance_id,) in tx.fetch(query, value=value)}


def _with_device(condition: Callable[[Any], sa.ColumnElement[bool]]) -> tuple[Prepared, Prepared]:
    """Return the queries for instances with a device, local or of a profile, with a key of `condition`."""
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
    return Prepared(own), Prepared(by_profile)


_VALUE: sa.BindParameter[str] = sa.bindparam("value", type_=sa.Text)
_WITH_KEY = _with_device(lambda c: c.key == _VALUE)
_WITH_MAC = _with_device(lambda c: sa.and_(c.key == "hwaddr", sa.func.lower(c.value) == _VALUE))
_GIVEN_MAC = Prepared(
    sa.select(instances_config.c.instance_id).where(
        IS_GIVEN_MAC, sa.func.lower(instances_config.c.value) == _VALUE
    )
)

_MANY = 200
"""The number of instances from which on all are read."""


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
    """Load the nics of the instances with these ids, or of all (None), from their devices and profiles."""
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
            ref = InstanceRef(project, name)
            found.append(NicsRow(ref, nics, rows.read_config(config), member == tx.member))
    return found


def _instances(devices: Collection[str], ids: Collection[int] | None) -> sa.Select[Any]:
    """Select instances with the volatile keys of these devices, which are few: each uses the index."""
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


# A device of any type overrides a nic of the same name in an earlier profile.
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
