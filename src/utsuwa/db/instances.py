"""Instances with their config, devices and ordered profiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, cast

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.core.names import LONE_MEMBER
from utsuwa.db import codes, rows
from utsuwa.db.profiles import DEVICES as PROFILE_DEVICES
from utsuwa.db.projects import effective
from utsuwa.db.schema import (
    instances,
    instances_config,
    instances_devices,
    instances_devices_config,
    instances_profiles,
    members,
    profiles,
    projects,
    read_time,
)
from utsuwa.db.transaction import Prepared, Transaction

DEVICES = rows.DeviceTables(
    instances_devices, instances_devices_config, owner="instance_id", device="instance_device_id"
)
_SOURCE = instances.join(projects, projects.c.id == instances.c.project_id).join(
    members, members.c.id == instances.c.member_id
)
_NOT_FOUND = "Instance not found"


@dataclass(frozen=True)
class InstanceRow:
    """`id` is 0 for a row that is not stored yet; `profiles` are names in the project that holds the
    profiles of the instance's, in order.

    `location` is the name of the member that it lives on, which is that of the transaction that inserts the
    row; `here` says whether that is this daemon's. The state is `codes.UNKNOWN` where the row cannot be read:
    lists that show instances leave it out.
    """

    id: int
    project: str
    name: str
    architecture: str
    ephemeral: bool
    stateful: bool
    description: str
    created_at: datetime
    last_used_at: datetime | None
    config: dict[str, str] = field(default_factory=dict)
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    profiles: list[str] = field(default_factory=list)
    state: codes.State = "creating"
    location: str = LONE_MEMBER
    here: bool = True
    profile_ids: tuple[int, ...] = field(default=(), compare=False)
    """Those of the stored profiles, in order: what to find them by."""


def get(tx: Transaction, project: str, name: str) -> InstanceRow:
    """Raises NotFound, UnknownCode."""
    found = _fetch(tx, _ONE, project=project, name=name)
    if not found:
        raise NotFound(_NOT_FOUND)
    if found[0].state == codes.UNKNOWN:
        raise codes.unreadable(f"Instance {name!r}")
    return found[0]


def get_all(tx: Transaction, project: str | None) -> list[InstanceRow]:
    """The instances of a project, or of all (None), on all members, by project and name; four queries."""
    if project is None:
        return _fetch(tx, _ALL)
    return _fetch(tx, _OF_PROJECT, project=project)


def get_here(tx: Transaction) -> list[InstanceRow]:
    """The instances of this member, of all projects, by project and name, in four queries."""
    return _fetch(tx, _HERE, member=tx.member)


def names(tx: Transaction, project: str | None) -> list[tuple[str, str]]:
    """Project and name of each instance that is ready, of a project or of all (None), in order."""
    return _names(tx, sa.true() if project is None else projects.c.name == project)


def names_here(tx: Transaction, project: str) -> list[tuple[str, str]]:
    """`names` of the instances on this member."""
    return _names(tx, sa.and_(projects.c.name == project, instances.c.member_id == tx.member))


def _names(tx: Transaction, where: sa.ColumnElement[bool]) -> list[tuple[str, str]]:
    query = (
        sa.select(projects.c.name, instances.c.name)
        .select_from(_SOURCE)
        .where(
            where,
            instances.c.state == codes.STATES["ready"],
            rows.has_word(instances.c.architecture, codes.ARCHITECTURES),
            instances.c.id.not_in(rows.owners_of_unknown(DEVICES)),
            instances.c.id.not_in(_with_unknown_profiles()),
        )
        .order_by(projects.c.name, instances.c.name)
    )
    return [(owner, name) for owner, name in tx.execute(query)]


def _with_unknown_profiles() -> rows.Owners:
    return sa.select(instances_profiles.c.instance_id).where(
        instances_profiles.c.profile_id.in_(rows.owners_of_unknown(PROFILE_DEVICES))
    )


def insert(tx: Transaction, row: InstanceRow) -> int:
    """The new id. Raises AlreadyExists, NotFound (project, profile), InvalidConfig (architecture, device)."""
    owner = rows.project_id(tx, row.project)
    values = {
        "project_id": owner,
        "member_id": tx.member,
        "name": row.name,
        "creation_date": row.created_at,
        "last_use_date": row.last_used_at,
        "state": codes.STATES[row.state],
        **_editable(row),
    }
    with rows.unique(f"Instance {row.name!r} already exists"):
        instance_id = tx.insert(instances, values)
    rows.insert_config(tx, instances_config, "instance_id", instance_id, row.config)
    rows.insert_devices(tx, DEVICES, instance_id, row.devices)
    _insert_profiles(tx, instance_id, row)
    return instance_id


def update(tx: Transaction, row: InstanceRow) -> None:
    """Replace all but name, times and state of the row with that id. Raises NotFound (also for a profile)."""
    _set(tx, row.id, **_editable(row))
    rows.replace_config(tx, instances_config, "instance_id", row.id, row.config)
    rows.replace_devices(tx, DEVICES, row.id, row.devices)
    tx.execute(instances_profiles.delete().where(instances_profiles.c.instance_id == row.id))
    _insert_profiles(tx, row.id, row)


def patch_config(tx: Transaction, instance_id: int, changes: Mapping[str, str | None]) -> None:
    """Set some keys and leave the others; None removes one. Nothing happens where the instance is gone."""
    present = tx.execute(sa.select(instances.c.id).where(instances.c.id == instance_id))
    if present.scalar_one_or_none() is not None:
        rows.patch_config(tx, instances_config, "instance_id", instance_id, changes)


def rename(tx: Transaction, instance_id: int, new: str) -> None:
    """Raises AlreadyExists, NotFound."""
    with rows.unique(f"Instance {new!r} already exists"):
        _set(tx, instance_id, name=new)


def set_ready(tx: Transaction, instance_id: int) -> None:
    """The instance is whole: from now on it is seen. Raises NotFound."""
    _set(tx, instance_id, state=codes.STATES["ready"])


def set_deleting(tx: Transaction, instance_id: int) -> None:
    """The instance is on its way out: it is not seen any more, its name is still taken. Raises NotFound."""
    _set(tx, instance_id, state=codes.STATES["deleting"])


def set_last_used(tx: Transaction, instance_id: int, moment: datetime | None) -> None:
    """Raises NotFound."""
    _set(tx, instance_id, last_use_date=moment)


def delete(tx: Transaction, instance_id: int) -> None:
    """Remove the row and all that belongs to it; does nothing where it is gone."""
    tx.execute(instances.delete().where(instances.c.id == instance_id))


def _editable(row: InstanceRow) -> dict[str, Any]:
    return {
        "architecture": codes.number(codes.ARCHITECTURES, row.architecture, "architecture"),
        "ephemeral": row.ephemeral,
        "stateful": row.stateful,
        "description": row.description,
    }


def _set(tx: Transaction, instance_id: int, **values: Any) -> None:
    result = tx.execute(instances.update().where(instances.c.id == instance_id).values(**values))
    rows.one_changed(result, _NOT_FOUND)


def _insert_profiles(tx: Transaction, instance_id: int, row: InstanceRow) -> None:
    if not row.profiles:
        return
    rows.distinct(row.profiles, "A profile can be applied only once")
    known = rows.profile_ids(tx, effective(tx, row.project, "profiles"), row.profiles)
    new = [
        {"instance_id": instance_id, "profile_id": known[name], "apply_order": order}
        for order, name in enumerate(row.profiles, start=1)
    ]
    tx.execute(instances_profiles.insert(), new)


_COLUMNS = (
    *("id", "name", "architecture", "ephemeral", "stateful", "description"),
    *("creation_date", "last_use_date", "state", "member_id"),
)


class _Queries(NamedTuple):
    rows: Prepared
    config: Prepared
    devices: Prepared
    profiles: Prepared


def _queries(where: sa.ColumnElement[bool]) -> _Queries:
    owners = sa.select(instances.c.id).select_from(_SOURCE).where(where)
    return _Queries(
        rows=Prepared(
            sa.select(projects.c.name, members.c.name, *(instances.c[column] for column in _COLUMNS))
            .select_from(_SOURCE)
            .where(where)
            .order_by(projects.c.name, instances.c.name)
        ),
        config=Prepared(rows.config_query(instances_config, "instance_id", owners)),
        devices=Prepared(rows.devices_query(DEVICES, DEVICES.devices.c[DEVICES.owner].in_(owners))),
        profiles=Prepared(
            sa.select(instances_profiles.c.instance_id, profiles.c.id, profiles.c.name)
            .join(profiles, profiles.c.id == instances_profiles.c.profile_id)
            .where(instances_profiles.c.instance_id.in_(owners))
            .order_by(instances_profiles.c.instance_id, instances_profiles.c.apply_order)
        ),
    )


_IN_PROJECT = projects.c.name == sa.bindparam("project", type_=sa.Text)
_ALL = _queries(sa.true())
_OF_PROJECT = _queries(_IN_PROJECT)
_HERE = _queries(instances.c.member_id == sa.bindparam("member", type_=sa.Integer))
_ONE = _queries(sa.and_(_IN_PROJECT, instances.c.name == sa.bindparam("name", type_=sa.Text)))


def _fetch(tx: Transaction, queries: _Queries, **values: str | int) -> list[InstanceRow]:
    found = tx.fetch(queries.rows, **values)
    if not found:
        return []
    config = rows.configs(tx.fetch(queries.config, **values))
    devices = rows.devices_of(tx.fetch(queries.devices, **values))
    applied: defaultdict[int, dict[int, str]] = defaultdict(dict)
    for instance_id, profile_id, name in tx.fetch(queries.profiles, **values):
        applied[instance_id][profile_id] = name
    return [_row(columns, tx.member, config, devices, applied) for columns in found]


def _row(
    columns: tuple[Any, ...],
    here: int,
    config: Mapping[int, rows.Config],
    devices: rows.DevicesByOwner,
    applied: Mapping[int, Mapping[int, str]],
) -> InstanceRow:
    project, location, number, name, architecture, ephemeral, stateful, description, *rest = columns
    created, used, state, member = rest
    reader = codes.Reader(f"Instance {name!r} of project {project!r}")
    return InstanceRow(
        id=number,
        project=project,
        name=name,
        architecture=reader.word(codes.ARCHITECTURES, architecture),
        ephemeral=bool(ephemeral),
        stateful=bool(stateful),
        description=description,
        created_at=cast(datetime, read_time(created)),
        last_used_at=read_time(used),
        config=config[number],
        devices=devices.read(number, reader),
        profiles=list(applied[number].values()),
        state=reader.state(state),
        location=location,
        here=member == here,
        profile_ids=tuple(applied[number]),
    )
