"""Profiles with their config and devices, and which instances use them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from utsuwa.core.errors import NotFound
from utsuwa.db import rows
from utsuwa.db.schema import (
    instances,
    instances_profiles,
    profiles,
    profiles_config,
    profiles_devices,
    profiles_devices_config,
    projects,
)

_DEVICES = rows.DeviceTables(
    profiles_devices, profiles_devices_config, owner="profile_id", device="profile_device_id"
)


@dataclass(frozen=True)
class ProfileRow:
    """`id` is 0 for a row that is not stored yet."""

    id: int
    project: str
    name: str
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    devices: dict[str, dict[str, str]] = field(default_factory=dict)


async def get(conn: AsyncConnection, project: str, name: str) -> ProfileRow:
    """Raises NotFound."""
    found = await _load(conn, sa.and_(projects.c.name == project, profiles.c.name == name))
    if not found:
        raise NotFound(f"Profile {name!r} not found")
    return found[0]


async def get_all(conn: AsyncConnection, project: str | None) -> list[ProfileRow]:
    """The profiles of a project, or of all (None), by project and name, in three queries."""
    return await _load(conn, sa.true() if project is None else projects.c.name == project)


async def insert(conn: AsyncConnection, row: ProfileRow) -> int:
    """The new id. Raises AlreadyExists, NotFound (project), InvalidConfig (device type)."""
    values = {
        "project_id": await rows.project_id(conn, row.project),
        "name": row.name,
        "description": row.description,
    }
    with rows.unique(f"Profile {row.name!r} already exists"):
        profile_id = await rows.insert(conn, profiles, values)
    await rows.insert_config(conn, profiles_config, "profile_id", profile_id, row.config)
    await rows.insert_devices(conn, _DEVICES, profile_id, row.devices)
    return profile_id


async def update(conn: AsyncConnection, row: ProfileRow) -> None:
    """Replace description, config and devices of the row with that id. Raises NotFound."""
    statement = profiles.update().where(profiles.c.id == row.id).values(description=row.description)
    rows.one_changed(await conn.execute(statement), f"Profile {row.name!r} not found")
    await rows.replace_config(conn, profiles_config, "profile_id", row.id, row.config)
    await rows.replace_devices(conn, _DEVICES, row.id, row.devices)


async def rename(conn: AsyncConnection, profile_id: int, new: str) -> None:
    """Raises AlreadyExists, NotFound."""
    with rows.unique(f"Profile {new!r} already exists"):
        result = await conn.execute(profiles.update().where(profiles.c.id == profile_id).values(name=new))
    rows.one_changed(result, "Profile not found")


async def delete(conn: AsyncConnection, profile_id: int) -> None:
    """Raises InUse where an instance uses it, NotFound."""
    with rows.unique("", in_use="Profile is currently in use"):
        result = await conn.execute(profiles.delete().where(profiles.c.id == profile_id))
    rows.one_changed(result, "Profile not found")


async def used_by(
    conn: AsyncConnection, project: str, names: Collection[str] | None
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


async def _load(conn: AsyncConnection, where: sa.ColumnElement[bool]) -> list[ProfileRow]:
    source = profiles.join(projects, projects.c.id == profiles.c.project_id)
    query = (
        sa.select(profiles, projects.c.name.label("project"))
        .select_from(source)
        .where(where)
        .order_by(projects.c.name, profiles.c.name)
    )
    found = (await conn.execute(query)).all()
    owners = sa.select(profiles.c.id).select_from(source).where(where)
    config = await rows.load_config(conn, profiles_config, "profile_id", owners)
    devices = await rows.load_devices(conn, _DEVICES, owners)
    return [ProfileRow(r.id, r.project, r.name, r.description, config[r.id], devices[r.id]) for r in found]
