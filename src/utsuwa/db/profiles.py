"""Profiles with their config and devices, and which instances use them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.db import codes, rows
from utsuwa.db.connection import Connection, Prepared
from utsuwa.db.schema import (
    instances,
    instances_profiles,
    profiles,
    profiles_config,
    profiles_devices,
    profiles_devices_config,
    projects,
)

DEVICES = rows.DeviceTables(
    profiles_devices, profiles_devices_config, owner="profile_id", device="profile_device_id"
)


@dataclass(frozen=True)
class ProfileRow:
    """`id` is 0 for a row that is not stored yet; `readable` is False where a device's type has no word."""

    id: int
    project: str
    name: str
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    readable: bool = True


async def get(conn: Connection, project: str, name: str) -> ProfileRow:
    """Raises NotFound, UnknownCode."""
    found = await conn.run(lambda connection: _fetch(connection, _ONE, project=project, name=name))
    if not found:
        raise NotFound(f"Profile {name!r} not found")
    refuse_unreadable(found)
    return found[0]


def refuse_unreadable(found: Iterable[ProfileRow]) -> None:
    """Raises UnknownCode: what such a profile gives to an instance is not known."""
    for row in found:
        if not row.readable:
            raise codes.unreadable(f"Profile {row.name!r}")


async def get_all(conn: Connection, project: str | None) -> list[ProfileRow]:
    """The profiles of a project, or of all (None), by project and name, in three queries."""
    return await conn.run(lambda connection: fetch_all(connection, project))


def fetch_all(connection: sa.Connection, project: str | None) -> list[ProfileRow]:
    """`get_all` for the connection's own thread, where more is read in the same step."""
    if project is None:
        return _fetch(connection, _ALL)
    return _fetch(connection, _OF_PROJECT, project=project)


def fetch_applied(connection: sa.Connection, instance_id: int) -> list[ProfileRow]:
    """The profiles that an instance has, in the order of their names; for the connection's own thread."""
    return _fetch(connection, _APPLIED, instance_id=instance_id)


async def insert(conn: Connection, row: ProfileRow) -> int:
    """The new id. Raises AlreadyExists, NotFound (project), InvalidConfig (device type)."""
    values = {
        "project_id": await rows.project_id(conn, row.project),
        "name": row.name,
        "description": row.description,
    }
    with rows.unique(f"Profile {row.name!r} already exists"):
        profile_id = await rows.insert(conn, profiles, values)
    await rows.insert_config(conn, profiles_config, "profile_id", profile_id, row.config)
    await rows.insert_devices(conn, DEVICES, profile_id, row.devices)
    return profile_id


async def update(conn: Connection, row: ProfileRow) -> None:
    """Replace description, config and devices of the row with that id. Raises NotFound."""
    statement = profiles.update().where(profiles.c.id == row.id).values(description=row.description)
    rows.one_changed(await conn.execute(statement), f"Profile {row.name!r} not found")
    await rows.replace_config(conn, profiles_config, "profile_id", row.id, row.config)
    await rows.replace_devices(conn, DEVICES, row.id, row.devices)


async def rename(conn: Connection, profile_id: int, new: str) -> None:
    """Raises AlreadyExists, NotFound."""
    with rows.unique(f"Profile {new!r} already exists"):
        result = await conn.execute(profiles.update().where(profiles.c.id == profile_id).values(name=new))
    rows.one_changed(result, "Profile not found")


async def delete(conn: Connection, profile_id: int) -> None:
    """Raises InUse where an instance uses it, NotFound."""
    with rows.unique("", in_use="Profile is currently in use"):
        result = await conn.execute(profiles.delete().where(profiles.c.id == profile_id))
    rows.one_changed(result, "Profile not found")


async def used_by(
    conn: Connection, project: str, names: Collection[str] | None
) -> dict[str, list[tuple[str, str]]]:
    """The instances, as (project, name) in order, that use each profile of a project; one query.

    `names` picks some profiles, None takes all. Profiles that nothing uses have no entry.
    """
    owner = projects.alias("owner")
    query = (
        sa.select(profiles.c.name, owner.c.name, instances.c.name)
        .select_from(instances_profiles)
        .join(profiles, profiles.c.id == instances_profiles.c.profile_id)
        .join(projects, projects.c.id == profiles.c.project_id)
        .join(instances, instances.c.id == instances_profiles.c.instance_id)
        .join(owner, owner.c.id == instances.c.project_id)
        .where(projects.c.name == project)
        .order_by(owner.c.name, instances.c.name)
    )
    if names is not None:
        query = query.where(profiles.c.name.in_(sorted(names)))
    found: dict[str, list[tuple[str, str]]] = {}
    for profile, instance_project, instance in await conn.execute(query):
        found.setdefault(profile, []).append((instance_project, instance))
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
        devices=Prepared(rows.devices_query(DEVICES, owners)),
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


def _fetch(connection: sa.Connection, queries: _Queries, **values: str | int) -> list[ProfileRow]:
    found = queries.rows.fetch(connection, **values)
    if not found:
        return []
    config = rows.configs(queries.config.fetch(connection, **values))
    devices = rows.devices_of(queries.devices.fetch(connection, **values))
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
