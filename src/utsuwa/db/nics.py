"""The nics of all instances, merged from their profiles: all that networks need to know of instances.

A launch asks for them several times, so nothing else of an instance is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from utsuwa.db import codes, rows
from utsuwa.db.instances import DEVICES
from utsuwa.db.profiles import DEVICES as PROFILE_DEVICES
from utsuwa.db.schema import instances, instances_config, instances_profiles, projects
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
    of_profiles = rows.devices_of(tx.fetch(_OF_PROFILES))
    own = rows.devices_of(tx.fetch(_OWN))
    merged: defaultdict[int, rows.Devices] = defaultdict(dict)
    for instance_id, profile_id in tx.fetch(_APPLIED):
        merged[instance_id].update(of_profiles[profile_id])
    for instance_id, devices in own.items():
        merged[instance_id].update(devices)
    names = {name for devices in merged.values() for name in devices}
    found = []
    for instance_id, member, project, name, config in tx.execute(_instances(names)):
        nics = {key: nic for key, nic in merged[instance_id].items() if nic["type"] == "nic"}
        if nics:
            found.append(NicsRow(project, name, nics, rows.read_config(config), member == tx.member))
    return found


def _instances(devices: Collection[str]) -> sa.Select[Any]:
    """Every instance with the wanted keys of these devices, which are few: each is looked up in the index."""
    keys = sorted(f"volatile.{device}.{key}" for device in devices for key in _KEPT)
    wanted = sa.and_(instances_config.c.instance_id == instances.c.id, instances_config.c.key.in_(keys))
    return (
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


# A device of any type hides a nic of the same name that stands below it.
_IS_NIC = PROFILE_DEVICES.devices.c.type == codes.DEVICE_TYPES["nic"]
_NAMES = sa.select(PROFILE_DEVICES.devices.c.name).where(_IS_NIC).scalar_subquery()
_IN_PROFILES = PROFILE_DEVICES.devices.c.name.in_(_NAMES)
_OF_PROFILES = Prepared(rows.devices_query(PROFILE_DEVICES, _IN_PROFILES))
_OWN = Prepared(
    rows.devices_query(
        DEVICES,
        sa.or_(DEVICES.devices.c.type == codes.DEVICE_TYPES["nic"], DEVICES.devices.c.name.in_(_NAMES)),
    )
)
_APPLIED = Prepared(
    sa.select(instances_profiles.c.instance_id, instances_profiles.c.profile_id)
    .where(
        instances_profiles.c.profile_id.in_(
            sa.select(PROFILE_DEVICES.devices.c.profile_id).where(_IN_PROFILES)
        )
    )
    .order_by(instances_profiles.c.instance_id, instances_profiles.c.apply_order)
)
