"""Snapshots of instances, each with the data that its instance had. They are on their instance's member."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, cast

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.core.names import LONE_MEMBER
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.db import codes, instance_data, rows
from utsuwa.db import instances as instance_rows
from utsuwa.db.instance_data import DataQueries, DataTables, InstanceData, StoredData
from utsuwa.db.projects import effective
from utsuwa.db.schema import (
    instances,
    instances_snapshots,
    instances_snapshots_config,
    instances_snapshots_devices,
    instances_snapshots_devices_config,
    instances_snapshots_profiles,
    members,
    profiles,
    projects,
    read_time,
)
from utsuwa.db.transaction import Prepared, Transaction

_DEVICES = rows.DeviceTables(
    instances_snapshots_devices,
    instances_snapshots_devices_config,
    owner="instance_snapshot_id",
    device="instance_snapshot_device_id",
)
_TABLES = DataTables(instances_snapshots_config, _DEVICES, owner="instance_snapshot_id")
_SOURCE = (
    instances_snapshots.join(instances, instances.c.id == instances_snapshots.c.instance_id)
    .join(projects, projects.c.id == instances.c.project_id)
    .join(members, members.c.id == instances.c.member_id)
)
_NOT_FOUND = "Snapshot not found"


@dataclass(frozen=True)
class SnapshotRow:
    """`id` is 0 for a row that is not stored yet; `state`, `location` and `here` as in an `InstanceRow`.

    Profiles that were deleted since the snapshot was taken still have a name in `data.profiles`, but no id.
    """

    id: int
    instance_id: int
    ref: SnapshotRef
    data: InstanceData
    created_at: datetime
    expires_at: datetime | None = None
    state: codes.State = "creating"
    location: str = LONE_MEMBER
    here: bool = True


def missing(ref: SnapshotRef) -> str:
    """Return the message for a snapshot that does not exist."""
    name = ref.instance.name
    return f"Snapshot {ref.name!r} of instance {name!r} not found: `utsuwa info {name}` lists its snapshots"


def get(tx: Transaction, ref: SnapshotRef) -> SnapshotRow:
    """Raises NotFound (also the instance), UnknownCode."""
    instance = ref.instance
    found = _fetch(tx, _ONE, project=instance.project, instance=instance.name, name=ref.name)
    if not found:
        instance_rows.get(tx, instance)  # raises the more important error
        raise NotFound(missing(ref))
    if found[0].state == codes.UNKNOWN:
        raise codes.unreadable(f"Snapshot {ref.name!r} of instance {instance.name!r}")
    return found[0]


def get_of(tx: Transaction, instance: InstanceRef) -> list[SnapshotRow]:
    """Return the snapshots of an instance, oldest first; four queries."""
    return _fetch(tx, _OF_INSTANCE, project=instance.project, instance=instance.name)


def get_all(tx: Transaction, project: str | None) -> list[SnapshotRow]:
    """Return the snapshots of a project's instances, or of all (None), on all members; four queries.

    In the order of their instances, oldest first.
    """
    if project is None:
        return _fetch(tx, _ALL)
    return _fetch(tx, _OF_PROJECT, project=project)


def get_here(tx: Transaction) -> list[SnapshotRow]:
    """As `get_all`, of this member's instances, of all projects."""
    return _fetch(tx, _HERE, member=tx.member)


def names(tx: Transaction, instance: InstanceRef) -> list[str]:
    """Return the names of an instance's snapshots in any state, oldest first; one query."""
    return [name for (name,) in tx.fetch(_NAMES, project=instance.project, instance=instance.name)]


def expired(tx: Transaction, moment: datetime) -> list[SnapshotRef]:
    """Return references to this member's complete snapshots that have expired; one query."""
    query = (
        sa.select(projects.c.name, instances.c.name, instances_snapshots.c.name)
        .select_from(_SOURCE)
        .where(
            instances_snapshots.c.expiry_date <= moment,
            instances_snapshots.c.state == codes.STATES["ready"],
            instances.c.member_id == tx.member,
        )
        .order_by(instances_snapshots.c.expiry_date, instances_snapshots.c.id)
    )
    found = tx.execute(query)
    return [SnapshotRef(InstanceRef(project, name), snapshot) for project, name, snapshot in found]


def insert(tx: Transaction, row: SnapshotRow) -> int:
    """Return the new id.

    Raises AlreadyExists, NotFound (instance), InvalidConfig (architecture, device type). Profiles need not
    exist: those of another snapshot may have been deleted.
    """
    values = {
        "instance_id": row.instance_id,
        "name": row.ref.name,
        "creation_date": row.created_at,
        "expiry_date": row.expires_at,
        "state": codes.STATES[row.state],
        **instance_data.columns(row.data),
    }
    if not tx.fetch(_OWNER, id=row.instance_id):
        raise NotFound(f"Instance {row.ref.instance.name!r} not found")
    with rows.unique(f"Snapshot {row.ref.name!r} of instance {row.ref.instance.name!r} already exists"):
        snapshot_id = tx.insert(instances_snapshots, values)
    instance_data.insert(tx, _TABLES, snapshot_id, row.data)
    _insert_profiles(tx, snapshot_id, row)
    return snapshot_id


def _insert_profiles(tx: Transaction, snapshot_id: int, row: SnapshotRow) -> None:
    profile_names = row.data.profiles
    if not profile_names:
        return
    holder = effective(tx, row.ref.instance.project, "profiles")
    known = rows.known_profile_ids(tx, holder, profile_names)
    for order, name in enumerate(profile_names, start=1):
        new = {
            "instance_snapshot_id": snapshot_id,
            "profile_id": known.get(name),
            "name": name,
            "apply_order": order,
        }
        tx.insert(instances_snapshots_profiles, new)


def update(tx: Transaction, snapshot_id: int, description: str, expires_at: datetime | None) -> None:
    """Replace all that can be changed. Raises NotFound."""
    _set(tx, snapshot_id, description=description, expiry_date=expires_at)


def rename(tx: Transaction, snapshot_id: int, new: str) -> None:
    """Raises AlreadyExists, NotFound."""
    with rows.unique(f"Snapshot {new!r} already exists"):
        _set(tx, snapshot_id, name=new)


def set_ready(tx: Transaction, snapshot_id: int) -> None:
    """The snapshot is complete: from now on it is visible. Raises NotFound."""
    _set(tx, snapshot_id, state=codes.STATES["ready"])


def set_deleting(tx: Transaction, snapshot_id: int) -> None:
    """The snapshot is being removed: it is no longer visible, its name is still taken. Raises NotFound."""
    _set(tx, snapshot_id, state=codes.STATES["deleting"])


def delete(tx: Transaction, snapshot_id: int) -> None:
    """Remove the row and all that belongs to it, if it exists."""
    tx.delete(instances_snapshots, snapshot_id)


def _set(tx: Transaction, snapshot_id: int, **values: Any) -> None:
    rows.update(tx, instances_snapshots, snapshot_id, _NOT_FOUND, **values)


_COLUMNS = (
    *("id", "instance_id", "name", "creation_date", "expiry_date", "state"),
    *instance_data.COLUMNS,
)
_ORDER = (
    *(projects.c.name, instances.c.name),
    *(instances_snapshots.c.creation_date, instances_snapshots.c.id),
)


class _Queries(NamedTuple):
    rows: Prepared
    data: DataQueries


def _queries(where: sa.ColumnElement[bool]) -> _Queries:
    owners = sa.select(instances_snapshots.c.id).select_from(_SOURCE).where(where)
    applied = instances_snapshots_profiles
    profile_name = sa.func.coalesce(profiles.c.name, applied.c.name)
    return _Queries(
        rows=Prepared(
            sa.select(
                *(projects.c.name, instances.c.name, members.c.name, instances.c.member_id),
                *(instances_snapshots.c[column] for column in _COLUMNS),
            )
            .select_from(_SOURCE)
            .where(where)
            .order_by(*_ORDER)
        ),
        data=DataQueries(
            _TABLES,
            owners,
            sa.select(applied.c.instance_snapshot_id, profiles.c.id, profile_name)
            .select_from(applied.outerjoin(profiles, profiles.c.id == applied.c.profile_id))
            .where(applied.c.instance_snapshot_id.in_(owners))
            .order_by(applied.c.instance_snapshot_id, applied.c.apply_order),
        ),
    )


_IN_PROJECT = projects.c.name == sa.bindparam("project", type_=sa.Text)
_IS_INSTANCE = sa.and_(_IN_PROJECT, instances.c.name == sa.bindparam("instance", type_=sa.Text))
_ALL = _queries(sa.true())
_OF_PROJECT = _queries(_IN_PROJECT)
_OF_INSTANCE = _queries(_IS_INSTANCE)
_HERE = _queries(instances.c.member_id == sa.bindparam("member", type_=sa.Integer))
_ONE = _queries(sa.and_(_IS_INSTANCE, instances_snapshots.c.name == sa.bindparam("name", type_=sa.Text)))
_OWNER = Prepared(sa.select(instances.c.id).where(instances.c.id == sa.bindparam("id", type_=sa.Integer)))
_NAMES = Prepared(
    sa.select(instances_snapshots.c.name).select_from(_SOURCE).where(_IS_INSTANCE).order_by(*_ORDER)
)


def _fetch(tx: Transaction, queries: _Queries, **values: str | int) -> list[SnapshotRow]:
    found = tx.fetch(queries.rows, **values)
    if not found:
        return []
    stored = queries.data.fetch(tx, **values)
    return [_row(columns, tx.member, stored) for columns in found]


def _row(columns: tuple[Any, ...], here: int, stored: StoredData) -> SnapshotRow:
    project, instance, location, member, row_id, instance_id, name, created, expires, state, *data = columns
    reader = codes.Reader(f"Snapshot {name!r} of instance {instance!r} of project {project!r}")
    return SnapshotRow(
        id=row_id,
        instance_id=instance_id,
        ref=SnapshotRef(InstanceRef(project, instance), name),
        data=stored.of(row_id, reader, *data),
        created_at=cast(datetime, read_time(created)),
        expires_at=read_time(expires),
        state=reader.state(state),
        location=location,
        here=member == here,
    )
