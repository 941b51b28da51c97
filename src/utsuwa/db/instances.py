"""Instances with their config, devices and ordered profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple, cast

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.core.names import LONE_MEMBER
from utsuwa.core.refs import InstanceRef
from utsuwa.db import codes, instance_data, rows
from utsuwa.db.instance_data import DataQueries, DataTables, InstanceData, StoredData
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
    profiles_config,
    projects,
    read_time,
)
from utsuwa.db.transaction import Prepared, Transaction

DEVICES = rows.DeviceTables(
    instances_devices, instances_devices_config, owner="instance_id", device="instance_device_id"
)
_TABLES = DataTables(instances_config, DEVICES, owner="instance_id")
_SOURCE = instances.join(projects, projects.c.id == instances.c.project_id).join(
    members, members.c.id == instances.c.member_id
)
_NOT_FOUND = "Instance not found"


@dataclass(frozen=True)
class InstanceRow:
    """`id` is 0 for a row that is not stored yet.

    `location` is the name of the member that the instance is on, which is that of the transaction that
    inserts the row; `here` is true if it is this daemon's. The state is `codes.UNKNOWN` if the row cannot be
    read: lists for clients omit such rows.
    """

    id: int
    ref: InstanceRef
    data: InstanceData
    created_at: datetime
    last_used_at: datetime | None = None
    state: codes.State = "creating"
    location: str = LONE_MEMBER
    here: bool = True

    def with_config(self, config: dict[str, str]) -> InstanceRow:
        """Return the row with another config."""
        return replace(self, data=replace(self.data, config=config))


def get(tx: Transaction, ref: InstanceRef) -> InstanceRow:
    """Raises NotFound, UnknownCode."""
    found = _fetch(tx, _ONE, project=ref.project, name=ref.name)
    if not found:
        raise NotFound(_NOT_FOUND)
    if found[0].state == codes.UNKNOWN:
        raise codes.unreadable(f"Instance {ref.name!r}")
    return found[0]


def get_all(tx: Transaction, project: str | None) -> list[InstanceRow]:
    """Return the instances of a project, or of all (None), on all members, in order; four queries."""
    if project is None:
        return _fetch(tx, _ALL)
    return _fetch(tx, _OF_PROJECT, project=project)


def get_here(tx: Transaction) -> list[InstanceRow]:
    """Return the instances of this member, of all projects, in order; four queries."""
    return _fetch(tx, _HERE, member=tx.member)


def names(tx: Transaction, project: str | None) -> list[InstanceRef]:
    """Return references to the instances that are ready, of a project or of all (None), in order."""
    return _names(tx, sa.true() if project is None else projects.c.name == project)


def names_here(tx: Transaction, project: str) -> list[InstanceRef]:
    """As `names`, of the instances on this member."""
    return _names(tx, sa.and_(projects.c.name == project, instances.c.member_id == tx.member))


def _names(tx: Transaction, where: sa.ColumnElement[bool]) -> list[InstanceRef]:
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
    return [InstanceRef(project, name) for project, name in tx.execute(query)]


def _with_unknown_profiles() -> rows.Owners:
    return sa.select(instances_profiles.c.instance_id).where(
        instances_profiles.c.profile_id.in_(rows.owners_of_unknown(PROFILE_DEVICES))
    )


def is_taken(tx: Transaction, ref: InstanceRef) -> bool:
    """Return whether an instance on any member has the name, whatever its state."""
    query = sa.select(instances.c.id).select_from(_SOURCE)
    found = tx.execute(query.where(projects.c.name == ref.project, instances.c.name == ref.name))
    return found.scalar_one_or_none() is not None


def any_has(tx: Transaction, key: str) -> bool:
    """Return whether an instance or a profile has a config key."""
    found = (sa.exists().where(table.c.key == key) for table in (instances_config, profiles_config))
    return bool(tx.execute(sa.select(sa.or_(*found))).scalar_one())


def insert(tx: Transaction, row: InstanceRow) -> int:
    """Return the new id.

    Raises AlreadyExists, NotFound (project, profile), InvalidConfig (architecture, device type).
    """
    values = {
        "project_id": rows.project_id(tx, row.ref.project),
        "member_id": tx.member,
        "name": row.ref.name,
        "creation_date": row.created_at,
        "last_use_date": row.last_used_at,
        "state": codes.STATES[row.state],
        **instance_data.columns(row.data),
    }
    with rows.unique(f"Instance {row.ref.name!r} already exists: choose another name"):
        instance_id = tx.insert(instances, values)
    instance_data.insert(tx, _TABLES, instance_id, row.data)
    _insert_profiles(tx, instance_id, row)
    return instance_id


def update(tx: Transaction, row: InstanceRow, stored: InstanceData | None = None) -> None:
    """Replace the data of the row with that id. Raises NotFound (instance, profile), InvalidConfig.

    Only what differs is written: most changes are of a single key or device. What is `stored` is read unless
    the caller knows it.
    """
    if stored is None:
        found = _fetch(tx, _BY_ID, id=row.id)
        if not found:
            raise NotFound(_NOT_FOUND)
        stored = found[0].data
    if any(getattr(stored, column) != getattr(row.data, column) for column in instance_data.COLUMNS):
        _set(tx, row.id, **instance_data.columns(row.data))
    instance_data.change(tx, _TABLES, row.id, stored, row.data)
    if stored.profiles != row.data.profiles:
        replace_profiles(tx, row)


def replace_profiles(tx: Transaction, row: InstanceRow) -> None:
    """Apply the profiles of these names that its project has now. Raises NotFound (profile)."""
    tx.execute(instances_profiles.delete().where(instances_profiles.c.instance_id == row.id))
    _insert_profiles(tx, row.id, row)


def patch_config(tx: Transaction, instance_id: int, changes: Mapping[str, str | None]) -> None:
    """Set some keys and leave the others; None removes one. Nothing happens where the instance is gone."""
    if tx.fetch(_PRESENT, id=instance_id):
        rows.patch_config(tx, instances_config, "instance_id", instance_id, changes)


def rename(tx: Transaction, instance_id: int, new: InstanceRef) -> None:
    """Give an instance another name, project, or both. Raises AlreadyExists, NotFound."""
    project_id = rows.project_id(tx, new.project)
    with rows.unique(f"Instance {new.name!r} already exists"):
        _set(tx, instance_id, project_id=project_id, name=new.name)


def set_ready(tx: Transaction, instance_id: int) -> None:
    """The instance is whole: from now on it is seen. Raises NotFound."""
    _set(tx, instance_id, state=codes.STATES["ready"])


def set_deleting(tx: Transaction, instance_id: int) -> None:
    """The instance is on its way out: it is not seen any more, its name is still taken. Raises NotFound."""
    _set(tx, instance_id, state=codes.STATES["deleting"])


def set_last_used(tx: Transaction, instance_id: int, moment: datetime | None) -> None:
    """Raises NotFound."""
    _set(tx, instance_id, last_use_date=moment)


def set_stateful(tx: Transaction, instance_id: int, *, stateful: bool) -> None:
    """Note whether the instance has a saved running state. Raises NotFound."""
    _set(tx, instance_id, stateful=stateful)


def delete(tx: Transaction, instance_id: int) -> None:
    """Remove the row and all that belongs to it; does nothing where it is gone."""
    tx.delete(instances, instance_id)


def _set(tx: Transaction, instance_id: int, **values: Any) -> None:
    rows.update(tx, instances, instance_id, _NOT_FOUND, **values)


def _insert_profiles(tx: Transaction, instance_id: int, row: InstanceRow) -> None:
    profile_names = row.data.profiles
    if not profile_names:
        return
    rows.distinct(profile_names, "A profile can be applied only once")
    known = rows.profile_ids(tx, effective(tx, row.ref.project, "profiles"), profile_names)
    for order, name in enumerate(profile_names, start=1):
        new = {"instance_id": instance_id, "profile_id": known[name], "apply_order": order}
        tx.insert(instances_profiles, new)


_COLUMNS = ("id", "name", "creation_date", "last_use_date", "state", "member_id", *instance_data.COLUMNS)


class _Queries(NamedTuple):
    rows: Prepared
    data: DataQueries


def _queries(where: sa.ColumnElement[bool]) -> _Queries:
    owners = sa.select(instances.c.id).select_from(_SOURCE).where(where)
    applied = (
        sa.select(instances_profiles.c.instance_id, profiles.c.id, profiles.c.name)
        .join(profiles, profiles.c.id == instances_profiles.c.profile_id)
        .where(instances_profiles.c.instance_id.in_(owners))
        .order_by(instances_profiles.c.instance_id, instances_profiles.c.apply_order)
    )
    return _Queries(
        rows=Prepared(
            sa.select(projects.c.name, members.c.name, *(instances.c[column] for column in _COLUMNS))
            .select_from(_SOURCE)
            .where(where)
            .order_by(projects.c.name, instances.c.name)
        ),
        data=DataQueries(_TABLES, owners, applied),
    )


_IN_PROJECT = projects.c.name == sa.bindparam("project", type_=sa.Text)
_ALL = _queries(sa.true())
_OF_PROJECT = _queries(_IN_PROJECT)
_HERE = _queries(instances.c.member_id == sa.bindparam("member", type_=sa.Integer))
_BY_ID = _queries(instances.c.id == sa.bindparam("id", type_=sa.Integer))
_PRESENT = Prepared(sa.select(instances.c.id).where(instances.c.id == sa.bindparam("id", type_=sa.Integer)))
_ONE = _queries(sa.and_(_IN_PROJECT, instances.c.name == sa.bindparam("name", type_=sa.Text)))


def _fetch(tx: Transaction, queries: _Queries, **values: str | int) -> list[InstanceRow]:
    found = tx.fetch(queries.rows, **values)
    if not found:
        return []
    stored = queries.data.fetch(tx, **values)
    return [_row(columns, tx.member, stored) for columns in found]


def _row(columns: tuple[Any, ...], here: int, stored: StoredData) -> InstanceRow:
    project, location, row_id, name, created, used, state, member, *data = columns
    reader = codes.Reader(f"Instance {name!r} of project {project!r}")
    return InstanceRow(
        id=row_id,
        ref=InstanceRef(project, name),
        data=stored.of(row_id, reader, *data),
        created_at=cast(datetime, read_time(created)),
        last_used_at=read_time(used),
        state=reader.state(state),
        location=location,
        here=member == here,
    )
