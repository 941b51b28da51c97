"""Common functions of entity modules: config, devices, and translation of constraint errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from utsuwa.core.errors import AlreadyExists, InUse, NotFound
from utsuwa.db import codes, schema
from utsuwa.db.transaction import Answer, Prepared, PreparedChange, Transaction

Config = dict[str, str]
Devices = dict[str, dict[str, str]]
Owners = sa.Select[Any]
"""A query for the ids of the rows whose config or devices are loaded."""


class DeviceTables(NamedTuple):
    """The tables for the devices of one type of object; `owner` is the column of the object's id."""

    devices: sa.Table
    config: sa.Table
    owner: str
    device: str


@contextmanager
def unique(message: str, in_use: str = "Something else still refers to it") -> Iterator[None]:
    """Translate violated unique constraints to AlreadyExists(message), and foreign keys to InUse(in_use)."""
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


def project_id(tx: Transaction, project: str) -> int:
    """Return the id of a project. Raises NotFound."""
    for (found,) in tx.fetch(_PROJECT_ID, name=project):
        return int(found)
    raise NotFound(f"Project {project!r} not found")


_PROJECT_ID = Prepared(
    sa.select(schema.projects.c.id).where(schema.projects.c.name == sa.bindparam("name", type_=sa.Text))
)


def profile_ids(tx: Transaction, project: str, names: Sequence[str]) -> dict[str, int]:
    """Return the ids of a project's profiles by name. Raises NotFound for the first that does not exist."""
    known = known_profile_ids(tx, project, names)
    for name in names:
        if name not in known:
            raise NotFound(f"Requested profile {name!r} does not exist")
    return known


def known_profile_ids(tx: Transaction, project: str, names: Sequence[str]) -> dict[str, int]:
    """As `profile_ids`, without those that do not exist."""
    return {name: row_id for name in names for (row_id,) in tx.fetch(_PROFILE_ID, project=project, name=name)}


_PROFILE_ID = Prepared(
    sa.select(schema.profiles.c.id)
    .join(schema.projects, schema.projects.c.id == schema.profiles.c.project_id)
    .where(
        schema.projects.c.name == sa.bindparam("project", type_=sa.Text),
        schema.profiles.c.name == sa.bindparam("name", type_=sa.Text),
    )
)


def config_query(table: sa.Table, owner: str, owners: Owners) -> sa.Select[Any]:
    """Select the config of every owner: its id, and keys and values as a JSON object.

    One row per owner is faster than one per key, as the driver releases the GIL for every row.
    """
    column = table.c[owner]
    return sa.select(column, json_config(table)).where(column.in_(owners)).group_by(column)


def configs(found: Iterable[tuple[int, str]]) -> defaultdict[int, Config]:
    """Parse the rows of `config_query`; return the config by the owner's id."""
    return defaultdict(dict, {owner_id: read_config(text) for owner_id, text in found})


def load_config(tx: Transaction, table: sa.Table, owner: str, owners: Owners) -> defaultdict[int, Config]:
    """Return the config of every owner by the owner's id, in one query; sorted by key."""
    return configs(tx.execute(config_query(table, owner, owners)))


class _ConfigChanges(NamedTuple):
    """The statements that change the config in one table: single keys, and all of one owner."""

    insert: PreparedChange
    delete: PreparedChange
    clear: PreparedChange


_OF_OWNER = sa.bindparam("of_owner", type_=sa.Integer)


@cache
def _config_changes(table: sa.Table, owner: str) -> _ConfigChanges:
    is_owner = table.c[owner] == _OF_OWNER
    pair = {"key": sa.bindparam("new_key", type_=sa.Text), "value": sa.bindparam("new_value", type_=sa.Text)}
    old_key = sa.bindparam("old_key", type_=sa.Text)
    return _ConfigChanges(
        PreparedChange(table.insert().values({owner: _OF_OWNER, **pair})),
        PreparedChange(table.delete().where(is_owner, table.c.key == old_key)),
        PreparedChange(table.delete().where(is_owner)),
    )


def insert_config(
    tx: Transaction, table: sa.Table, owner: str, owner_id: int, config: Mapping[str, str]
) -> None:
    """Insert the config of a new owner; an empty value means that a key is not set."""
    new = [
        {"of_owner": owner_id, "new_key": key, "new_value": value} for key, value in config.items() if value
    ]
    if new:
        tx.run(_config_changes(table, owner).insert, new)


def replace_config(
    tx: Transaction, table: sa.Table, owner: str, owner_id: int, config: Mapping[str, str]
) -> None:
    tx.run(_config_changes(table, owner).clear, [{"of_owner": owner_id}])
    insert_config(tx, table, owner, owner_id, config)


def patch_config(
    tx: Transaction, table: sa.Table, owner: str, owner_id: int, changes: Mapping[str, str | None]
) -> None:
    """Set some keys and keep the others; None or an empty value removes a key."""
    if changes:
        gone = [{"of_owner": owner_id, "old_key": key} for key in sorted(changes)]
        tx.run(_config_changes(table, owner).delete, gone)
        insert_config(tx, table, owner, owner_id, {key: value for key, value in changes.items() if value})


def change_config(
    tx: Transaction,
    table: sa.Table,
    owner: str,
    owner_id: int,
    old: Mapping[str, str],
    new: Mapping[str, str],
) -> None:
    """Replace the stored config `old` by `new`, writing only what differs."""
    changed = {key for key in old.keys() | new.keys() if old.get(key, "") != new.get(key, "")}
    patch_config(tx, table, owner, owner_id, {key: new.get(key) for key in changed})


def devices_query(tables: DeviceTables, where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Select devices, sorted by name: the owner's id, name, type code, and config as a JSON object."""
    devices, config = tables.devices, tables.config
    return (
        sa.select(devices.c[tables.owner], devices.c.name, devices.c.type, json_config(config))
        .select_from(devices.outerjoin(config, config.c[tables.device] == devices.c.id))
        .where(where)
        .group_by(devices.c.id)
        .order_by(devices.c.name)
    )


class DevicesByOwner(defaultdict[int, Devices]):
    """Devices by their owner's id; `unreadable` are the owners of devices with an unknown type."""

    def __init__(self) -> None:
        super().__init__(dict)
        self.unreadable: dict[int, codes.UnknownCode] = {}

    def read(self, owner_id: int, reader: codes.Reader) -> Devices:
        if (error := self.unreadable.get(owner_id)) is not None:
            reader.missing(error)
        return self[owner_id]


def devices_of(found: Iterable[tuple[int, str, int, str | None]]) -> DevicesByOwner:
    """Parse the rows of `devices_query`."""
    all_devices = DevicesByOwner()
    for owner_id, name, kind, config in found:
        try:
            device = {"type": codes.word(codes.DEVICE_TYPES, kind)}
        except codes.UnknownCode as error:
            all_devices.unreadable[owner_id] = error
            device = {"type": codes.UNKNOWN}
        if config:
            device.update(read_config(config))
        all_devices[owner_id][name] = device
    return all_devices


def has_word(column: sa.ColumnElement[int], table: codes.Codes) -> sa.ColumnElement[bool]:
    """Return the condition that a code is known; the tables of codes have no gaps."""
    return column.between(min(table.values()), max(table.values()))


def owners_of_unknown(tables: DeviceTables) -> Owners:
    """Return the query for owners of devices with an unknown type."""
    return sa.select(tables.devices.c[tables.owner]).where(
        sa.not_(has_word(tables.devices.c.type, codes.DEVICE_TYPES))
    )


class _JsonObject(sa.sql.functions.GenericFunction[str]):
    """An aggregate: keys and values of a group as a JSON object."""

    name = "json_object_agg"
    inherit_cache = True


@compiles(_JsonObject, "sqlite")
def _json_in_sqlite(function: _JsonObject, compiler: SQLCompiler, **options: Any) -> str:
    """Sorted by key, which is the order of the index that the rows are read by."""
    return f"json_group_object{compiler.process(function.clause_expr, **options)}"


@compiles(_JsonObject, "postgresql")
def _json_in_postgresql(function: _JsonObject, compiler: SQLCompiler, **options: Any) -> str:
    key, value = (compiler.process(part, **options) for part in function.clauses)
    return f"json_object_agg({key}, {value} ORDER BY {key})"


def json_config(table: sa.Table) -> sa.ColumnElement[str]:
    """Return the expression for a group's keys and values as a JSON object, sorted; NULL without keys."""
    return json_object(table.c.key, table.c.value)


def json_object(key: sa.ColumnElement[Any], value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """Return the expression for pairs of a group as a JSON object, for `read_config`.

    On SQLite, they are in the order in which they are read.
    """
    return sa.cast(_JsonObject(key, sa.func.coalesce(value, "")).filter(key.is_not(None)), sa.Text)


_decode_config = msgspec.json.Decoder(dict[str, str]).decode


def read_config(text: str | None) -> Config:
    """Parse a value of `json_config`; None means no keys."""
    return {} if text is None else _decode_config(text)


class _DeviceDeletions(NamedTuple):
    """The statements that delete devices: single ones, and all of one owner."""

    delete: PreparedChange
    clear: PreparedChange


@cache
def _device_deletions(tables: DeviceTables) -> _DeviceDeletions:
    table = tables.devices
    is_owner = table.c[tables.owner] == _OF_OWNER
    old_name = sa.bindparam("old_name", type_=sa.Text)
    return _DeviceDeletions(
        PreparedChange(table.delete().where(is_owner, table.c.name == old_name)),
        PreparedChange(table.delete().where(is_owner)),
    )


def insert_devices(
    tx: Transaction, tables: DeviceTables, owner_id: int, devices: Mapping[str, Mapping[str, str]]
) -> None:
    """Insert the devices of a new owner. Raises InvalidConfig for an unknown type."""
    for name, device in devices.items():
        kind = codes.number(codes.DEVICE_TYPES, device.get("type", ""), "device type")
        device_id = tx.insert(tables.devices, {tables.owner: owner_id, "name": name, "type": kind})
        rest = {key: value for key, value in device.items() if key != "type"}
        insert_config(tx, tables.config, tables.device, device_id, rest)


def replace_devices(
    tx: Transaction, tables: DeviceTables, owner_id: int, devices: Mapping[str, Mapping[str, str]]
) -> None:
    tx.run(_device_deletions(tables).clear, [{"of_owner": owner_id}])
    insert_devices(tx, tables, owner_id, devices)


def change_devices(
    tx: Transaction,
    tables: DeviceTables,
    owner_id: int,
    old: Mapping[str, Mapping[str, str]],
    new: Mapping[str, Mapping[str, str]],
) -> None:
    """Replace the stored devices `old` by `new`, writing only those that differ.

    Raises InvalidConfig for an unknown type.
    """
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    gone = [{"of_owner": owner_id, "old_name": name} for name in sorted(changed & old.keys())]
    if gone:
        tx.run(_device_deletions(tables).delete, gone)
    insert_devices(tx, tables, owner_id, {name: new[name] for name in sorted(changed & new.keys())})


def update(tx: Transaction, table: sa.Table, row_id: int, message: str, **values: Any) -> None:
    """Change some columns of a row. Raises NotFound(message) if there is none with that id."""
    if not tx.update(table, row_id, values):
        raise NotFound(message)


def one_changed(result: Answer, message: str) -> None:
    """Raise NotFound(message) if an update or delete matched no row."""
    if result.rowcount == 0:
        raise NotFound(message)


def distinct(names: Collection[str], message: str) -> None:
    """Raise AlreadyExists(message) if a list contains a name twice."""
    if len(set(names)) != len(names):
        raise AlreadyExists(message)
