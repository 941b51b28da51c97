"""What the entity modules share: keys and values, devices, and constraint errors as typed ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from utsuwa.core.errors import AlreadyExists, InUse, NotFound
from utsuwa.db import codes, schema

Config = dict[str, str]
Devices = dict[str, dict[str, str]]
Owners = sa.Select[Any]
"""A query of one column: the ids of the rows whose config or devices are wanted."""


class DeviceTables(NamedTuple):
    """Where the devices of one kind of object lie; `owner` is the column of the object's id."""

    devices: sa.Table
    config: sa.Table
    owner: str
    device: str


@contextmanager
def unique(message: str, in_use: str = "Something else still refers to it") -> Iterator[None]:
    """A uniqueness that a statement breaks becomes AlreadyExists(message), a reference InUse(in_use)."""
    try:
        yield
    except IntegrityError as error:
        if _breaks(error, "UNIQUE", "23505"):
            raise AlreadyExists(message) from error
        if _breaks(error, "FOREIGNKEY", "23503"):
            raise InUse(in_use) from error
        raise


def _breaks(error: IntegrityError, sqlite: str, sqlstate: str) -> bool:
    name: str = getattr(error.orig, "sqlite_errorname", "")
    return name == f"SQLITE_CONSTRAINT_{sqlite}" or getattr(error.orig, "sqlstate", "") == sqlstate


async def project_id(conn: AsyncConnection, project: str) -> int:
    """Raises NotFound where there is no such project."""
    query = sa.select(schema.projects.c.id).where(schema.projects.c.name == project)
    found = (await conn.execute(query)).scalar_one_or_none()
    if found is None:
        raise NotFound(f"Project {project!r} not found")
    return int(found)


async def profile_ids(conn: AsyncConnection, project_id: int, names: Sequence[str]) -> dict[str, int]:
    """The ids of a project's profiles by name; raises NotFound for the first that does not exist."""
    table = schema.profiles
    query = sa.select(table.c.name, table.c.id).where(
        table.c.project_id == project_id, table.c.name.in_(names)
    )
    known = {name: profile_id for name, profile_id in await conn.execute(query)}
    for name in names:
        if name not in known:
            raise NotFound(f"Requested profile {name!r} does not exist")
    return known


async def insert(conn: AsyncConnection, table: sa.Table, values: Mapping[str, Any]) -> int:
    """The new row's id."""
    result = await conn.execute(table.insert().values(**values))
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


async def load_config(
    conn: AsyncConnection, table: sa.Table, owner: str, owners: Owners
) -> defaultdict[int, Config]:
    """The config of every owner by the owner's id, in one query; sorted by key."""
    column = table.c[owner]
    query = sa.select(column, table.c.key, table.c.value).where(column.in_(owners)).order_by(table.c.key)
    found: defaultdict[int, Config] = defaultdict(dict)
    for owner_id, key, value in await conn.execute(query):
        found[owner_id][key] = value or ""
    return found


async def insert_config(
    conn: AsyncConnection, table: sa.Table, owner: str, owner_id: int, config: Mapping[str, str]
) -> None:
    """Store a new owner's config; an empty value says that a key is not set."""
    rows = [{owner: owner_id, "key": key, "value": value} for key, value in config.items() if value]
    if rows:
        await conn.execute(table.insert(), rows)


async def replace_config(
    conn: AsyncConnection, table: sa.Table, owner: str, owner_id: int, config: Mapping[str, str]
) -> None:
    await conn.execute(table.delete().where(table.c[owner] == owner_id))
    await insert_config(conn, table, owner, owner_id, config)


async def patch_config(
    conn: AsyncConnection, table: sa.Table, owner: str, owner_id: int, changes: Mapping[str, str | None]
) -> None:
    """Set some keys and leave the others; None or an empty value removes one."""
    if not changes:
        return
    await conn.execute(table.delete().where(table.c[owner] == owner_id, table.c.key.in_(sorted(changes))))
    await insert_config(conn, table, owner, owner_id, {key: value for key, value in changes.items() if value})


async def load_devices(
    conn: AsyncConnection, tables: DeviceTables, owners: Owners
) -> defaultdict[int, Devices]:
    """The devices of every owner by the owner's id, in one query; sorted by name."""
    devices, config = tables.devices, tables.config
    owner = devices.c[tables.owner]
    query = (
        sa.select(owner, devices.c.name, devices.c.type, config.c.key, config.c.value)
        .select_from(devices.outerjoin(config, config.c[tables.device] == devices.c.id))
        .where(owner.in_(owners))
        .order_by(devices.c.name, config.c.key)
    )
    found: defaultdict[int, Devices] = defaultdict(dict)
    for owner_id, name, kind, key, value in await conn.execute(query):
        device = found[owner_id].setdefault(name, {"type": codes.word(codes.DEVICE_TYPES, kind)})
        if key is not None:
            device[key] = value or ""
    return found


async def insert_devices(
    conn: AsyncConnection, tables: DeviceTables, owner_id: int, devices: Mapping[str, Mapping[str, str]]
) -> None:
    """Raises InvalidConfig for a device type that no table has."""
    for name, device in devices.items():
        kind = codes.number(codes.DEVICE_TYPES, device.get("type", ""), "device type")
        device_id = await insert(conn, tables.devices, {tables.owner: owner_id, "name": name, "type": kind})
        rest = {key: value for key, value in device.items() if key != "type"}
        await insert_config(conn, tables.config, tables.device, device_id, rest)


async def replace_devices(
    conn: AsyncConnection, tables: DeviceTables, owner_id: int, devices: Mapping[str, Mapping[str, str]]
) -> None:
    table = tables.devices
    await conn.execute(table.delete().where(table.c[tables.owner] == owner_id))
    await insert_devices(conn, tables, owner_id, devices)


def one_changed(result: sa.CursorResult[Any], message: str) -> None:
    """Raise NotFound(message) where an update or delete found no row."""
    if result.rowcount == 0:
        raise NotFound(message)


def distinct(names: Collection[str], message: str) -> None:
    """Raise AlreadyExists(message) where a name stands twice in a list."""
    if len(set(names)) != len(names):
        raise AlreadyExists(message)
