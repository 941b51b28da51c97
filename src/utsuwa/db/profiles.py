"""Profiles with their config and devices, and which instances use them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.core.refs import InstanceRef
from utsuwa.db import codes, rows
from utsuwa.db.schema import (
    instances,
    instances_profiles,
    profiles,
    profiles_config,
    profiles_devices,
    profiles_devices_config,
    projects,
)
from utsuwa.db.transaction import Prepared, Transaction

DEVICES = rows.DeviceTables(
    profiles_devices, profiles_devices_config, owner="profile_id", device="profile_device_id"
)


Users = dict[tuple[str, str], list[InstanceRef]]
"""The instances that use each profile, by its project and name, in order; unused profiles are omitted."""


@dataclass(frozen=True)
class ProfileRow:
    """`id` is 0 until the row is stored; `readable` is False if a device has an unknown type."""

    id: int
    project: str
    name: str
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    readable: bool = True


def get(tx: Transaction, project: str, name: str) -> ProfileRow:
    """Return a profile. Raises NotFound, UnknownCode."""
    found = _fetch(tx, _ONE, project=project, name=name)
    if not found:
        raise NotFound(f"Profile {name!r} not found")
    refuse_unreadable(found)
    return found[0]


def refuse_unreadable(found: Iterable[ProfileRow]) -> None:
    """Raise UnknownCode if a profile is unreadable, as its effect on an instance is unknown."""
    for row in found:
        if not row.readable:
            raise codes.unreadable(f"Profile {row.name!r}")


def get_all(tx: Transaction, project: str | None) -> list[ProfileRow]:
    """Return the profiles of a project, or of all (None), sorted by project and name, in three queries."""
    if project is None:
        return _fetch(tx, _ALL)
    return _fetch(tx, _OF_PROJECT, project=project)


def get_applied(tx: Transaction, instance_id: int) -> list[ProfileRow]:
    """Return the profiles of an instance, sorted by name."""
    return _fetch(tx, _APPLIED, instance_id=instance_id)


def insert(tx: Transaction, row: ProfileRow) -> int:
    """Insert a profile, return its id. Raises AlreadyExists, NotFound (project), InvalidConfig (type)."""
    values = {
        "project_id": rows.project_id(tx, row.project),
        "name": row.name,
        "description": row.description,
    }
    with rows.unique(f"Profile {row.name!r} already exists"):
        profile_id = tx.insert(profiles, values)
    rows.insert_config(tx, profiles_config, "profile_id", profile_id, row.config)
    rows.insert_devices(tx, DEVICES, profile_id, row.devices)
    return profile_id


def update(tx: Transaction, row: ProfileRow) -> None:
    """Update description, config and devices of the row with that id. Raises NotFound."""
    statement = profiles.update().where(profiles.c.id == row.id).values(description=row.description)
    rows.one_changed(tx.execute(statement), f"Profile {row.name!r} not found")
    rows.replace_config(tx, profiles_config, "profile_id", row.id, row.config)
    rows.replace_devices(tx, DEVICES, row.id, row.devices)


def rename(tx: Transaction, profile_id: int, new: str) -> None:
    """Rename a profile. Raises AlreadyExists, NotFound."""
    with rows.unique(f"Profile {new!r} already exists"):
        result = tx.execute(profiles.update().where(profiles.c.id == profile_id).values(name=new))
    rows.one_changed(result, "Profile not found")


def delete(tx: Transaction, profile_id: int) -> None:
    """Delete a profile. Raises NotFound, InUse if an instance uses it."""
    with rows.unique("", in_use="Profile is currently in use"):
        result = tx.execute(profiles.delete().where(profiles.c.id == profile_id))
    rows.one_changed(result, "Profile not found")


def used_by(tx: Transaction, project: str | None, names: Collection[str] | None) -> Users:
    """Return the users of the profiles of a project, or of all (None), or of some of them by `names`; one
    query."""
    owner = projects.alias("owner")
    query = (
        sa.select(projects.c.name, profiles.c.name, owner.c.name, instances.c.name)
        .select_from(instances_profiles)
        .join(profiles, profiles.c.id == instances_profiles.c.profile_id)
        .join(projects, projects.c.id == profiles.c.project_id)
        .join(instances, instances.c.id == instances_profiles.c.instance_id)
        .join(owner, owner.c.id == instances.c.project_id)
        .order_by(owner.c.name, instances.c.name)
    )
    if project is not None:
        query = query.where(projects.c.name == project)
    if names is not None:
        query = query.where(profiles.c.name.in_(sorted(names)))
    found: Users = {}
    for holder, profile, project, instance in tx.execute(query):
        found.setdefault((holder, profile), []).append(InstanceRef(project, instance))
    return found


class _Queries(NamedTuple):
    rows: Prepared
    config: Prepared
    devices: Prepared


_SOURCE = profiles.join(projects, projects.c.id == profiles.c.project_id)


def _queries(where: sa.ColumnElement[bool]) -> _Queries:
    owners = sa.select(profiles.c.id).select_from(_SOURCE).where(where)
    return _Queries(
        rows=Prepared(
            sa.select(profiles.c.id, projects.c.name, profiles.c.name, profiles.c.description)
            .select_from(_SOURCE)
            .where(where)
            .order_by(projects.c.name, profiles.c.name)
        ),
        config=Prepared(rows.config_query(profiles_config, "profile_id", owners)),
        devices=Prepared(rows.devices_query(DEVICES, DEVICES.devices.c[DEVICES.owner].in_(owners))),
    )


_IN_PROJECT = projects.c.name == sa.bindparam("project", type_=sa.Text)
_ALL = _queries(sa.true())
_OF_PROJECT = _queries(_IN_PROJECT)
_ONE = _queries(sa.and_(_IN_PROJECT, profiles.c.name == sa.bindparam("name", type_=sa.Text)))
_APPLIED = _queries(
    profiles.c.id.in_(
        sa.select(instances_profiles.c.profile_id).where(
            instances_profiles.c.instance_id == sa.bindparam("instance_id", type_=sa.Integer)
        )
    )
)


def _fetch(tx: Transaction, queries: _Queries, **values: str | int) -> list[ProfileRow]:
    found = tx.fetch(queries.rows, **values)
    if not found:
        return []
    config = rows.configs(tx.fetch(queries.config, **values))
    devices = rows.devices_of(tx.fetch(queries.devices, **values))
    return [_row(columns, config, devices) for columns in found]


def _row(
    columns: tuple[Any, ...], config: Mapping[int, rows.Config], devices: rows.DevicesByOwner
) -> ProfileRow:
    number, project, name, description = columns
    reader = codes.Reader(f"Profile {name!r} of project {project!r}")
    return ProfileRow(
        id=number,
        project=project,
        name=name,
        description=description,
        config=config[number],
        devices=devices.read(number, reader),
        readable=reader.complete,
    )
