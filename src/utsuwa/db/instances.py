"""Instances with their config, devices and ordered profiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from utsuwa.core.errors import NotFound
from utsuwa.db import codes, rows
from utsuwa.db.schema import (
    instances,
    instances_config,
    instances_devices,
    instances_devices_config,
    instances_profiles,
    profiles,
    projects,
)

_DEVICES = rows.DeviceTables(
    instances_devices, instances_devices_config, owner="instance_id", device="instance_device_id"
)
_SOURCE = instances.join(projects, projects.c.id == instances.c.project_id)
_NOT_FOUND = "Instance not found"


@dataclass(frozen=True)
class InstanceRow:
    """`id` is 0 for a row that is not stored yet; `profiles` are names of the same project, in order."""

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


async def get(conn: AsyncConnection, project: str, name: str) -> InstanceRow:
    """Raises NotFound."""
    found = await _load(conn, sa.and_(projects.c.name == project, instances.c.name == name))
    if not found:
        raise NotFound(_NOT_FOUND)
    return found[0]


async def get_all(conn: AsyncConnection, project: str | None) -> list[InstanceRow]:
    """The instances of a project, or of all (None), by project and name, in four queries."""
    return await _load(conn, sa.true() if project is None else projects.c.name == project)


async def insert(conn: AsyncConnection, row: InstanceRow) -> int:
    """The new id. Raises AlreadyExists, NotFound (project, profile), InvalidConfig (architecture, device)."""
    owner = await rows.project_id(conn, row.project)
    values = {
        "project_id": owner,
        "name": row.name,
        "creation_date": row.created_at,
        "last_use_date": row.last_used_at,
        "state": codes.STATES[row.state],
        **_editable(row),
    }
    with rows.unique(f"Instance {row.name!r} already exists"):
        instance_id = await rows.insert(conn, instances, values)
    await rows.insert_config(conn, instances_config, "instance_id", instance_id, row.config)
    await rows.insert_devices(conn, _DEVICES, instance_id, row.devices)
    await _insert_profiles(conn, owner, instance_id, row.profiles)
    return instance_id


async def update(conn: AsyncConnection, row: InstanceRow) -> None:
    """Replace all but name, times and state of the row with that id. Raises NotFound (also for a profile)."""
    statement = (
        instances.update()
        .where(instances.c.id == row.id)
        .values(**_editable(row))
        .returning(instances.c.project_id)
    )
    owner = (await conn.execute(statement)).scalar_one_or_none()
    if owner is None:
        raise NotFound(_NOT_FOUND)
    await rows.replace_config(conn, instances_config, "instance_id", row.id, row.config)
    await rows.replace_devices(conn, _DEVICES, row.id, row.devices)
    await conn.execute(instances_profiles.delete().where(instances_profiles.c.instance_id == row.id))
    await _insert_profiles(conn, owner, row.id, row.profiles)


async def patch_config(conn: AsyncConnection, instance_id: int, changes: Mapping[str, str | None]) -> None:
    """Set some keys and leave the others; None removes one. Nothing happens where the instance is gone."""
    present = await conn.execute(sa.select(instances.c.id).where(instances.c.id == instance_id))
    if present.scalar_one_or_none() is not None:
        await rows.patch_config(conn, instances_config, "instance_id", instance_id, changes)


async def rename(conn: AsyncConnection, instance_id: int, new: str) -> None:
    """Raises AlreadyExists, NotFound."""
    with rows.unique(f"Instance {new!r} already exists"):
        await _set(conn, instance_id, name=new)


async def set_ready(conn: AsyncConnection, instance_id: int) -> None:
    """The instance is whole: from now on it is seen. Raises NotFound."""
    await _set(conn, instance_id, state=codes.STATES["ready"])


async def set_deleting(conn: AsyncConnection, instance_id: int) -> None:
    """The instance is on its way out: it is not seen any more, its name is still taken. Raises NotFound."""
    await _set(conn, instance_id, state=codes.STATES["deleting"])


async def set_last_used(conn: AsyncConnection, instance_id: int, moment: datetime | None) -> None:
    """Raises NotFound."""
    await _set(conn, instance_id, last_use_date=moment)


async def delete(conn: AsyncConnection, instance_id: int) -> None:
    """Remove the row and all that belongs to it; does nothing where it is gone."""
    await conn.execute(instances.delete().where(instances.c.id == instance_id))


def _editable(row: InstanceRow) -> dict[str, Any]:
    return {
        "architecture": codes.number(codes.ARCHITECTURES, row.architecture, "architecture"),
        "ephemeral": row.ephemeral,
        "stateful": row.stateful,
        "description": row.description,
    }


async def _set(conn: AsyncConnection, instance_id: int, **values: Any) -> None:
    result = await conn.execute(instances.update().where(instances.c.id == instance_id).values(**values))
    rows.one_changed(result, _NOT_FOUND)


async def _insert_profiles(
    conn: AsyncConnection, project_id: int, instance_id: int, names: Sequence[str]
) -> None:
    if not names:
        return
    rows.distinct(names, "A profile can be applied only once")
    known = await rows.profile_ids(conn, project_id, names)
    new = [
        {"instance_id": instance_id, "profile_id": known[name], "apply_order": order}
        for order, name in enumerate(names, start=1)
    ]
    await conn.execute(instances_profiles.insert(), new)


async def _load(conn: AsyncConnection, where: sa.ColumnElement[bool]) -> list[InstanceRow]:
    query = (
        sa.select(instances, projects.c.name.label("project"))
        .select_from(_SOURCE)
        .where(where)
        .order_by(projects.c.name, instances.c.name)
    )
    found = (await conn.execute(query)).all()
    owners = sa.select(instances.c.id).select_from(_SOURCE).where(where)
    config = await rows.load_config(conn, instances_config, "instance_id", owners)
    devices = await rows.load_devices(conn, _DEVICES, owners)
    applied = await _load_profiles(conn, owners)
    return [
        InstanceRow(
            id=r.id,
            project=r.project,
            name=r.name,
            architecture=codes.word(codes.ARCHITECTURES, r.architecture),
            ephemeral=r.ephemeral,
            stateful=r.stateful,
            description=r.description,
            created_at=r.creation_date,
            last_used_at=r.last_use_date,
            config=config[r.id],
            devices=devices[r.id],
            profiles=applied[r.id],
            state=cast(codes.State, codes.word(codes.STATES, r.state)),
        )
        for r in found
    ]


async def _load_profiles(conn: AsyncConnection, owners: rows.Owners) -> defaultdict[int, list[str]]:
    query = (
        sa.select(instances_profiles.c.instance_id, profiles.c.name)
        .join(profiles, profiles.c.id == instances_profiles.c.profile_id)
        .where(instances_profiles.c.instance_id.in_(owners))
        .order_by(instances_profiles.c.instance_id, instances_profiles.c.apply_order)
    )
    found: defaultdict[int, list[str]] = defaultdict(list)
    for instance_id, name in await conn.execute(query):
        found[instance_id].append(name)
    return found
