"""What an instance and each of its snapshots consist of, and how their tables store it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from utsuwa.db import codes, rows
from utsuwa.db.transaction import Prepared, Transaction


@dataclass(frozen=True)
class InstanceData:
    """The part of an instance that an edit replaces, that a snapshot keeps and a restore brings back."""

    architecture: str
    ephemeral: bool = False
    stateful: bool = False
    """Whether the state of its processes is stored."""
    description: str = ""
    config: dict[str, str] = field(default_factory=dict)
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    profiles: list[str] = field(default_factory=list)
    """Names, in order of application, in the project that holds the profiles of the instance's project."""
    profile_ids: tuple[int, ...] = field(default=(), compare=False)
    """The ids of these profiles as stored, in the same order; a snapshot's profile may have been deleted."""


class DataTables(NamedTuple):
    """The tables of config and devices; `owner` is the column that refers to the instance or snapshot."""

    config: sa.Table
    devices: rows.DeviceTables
    owner: str


COLUMNS = ("architecture", "ephemeral", "stateful", "description")
"""The columns of the instance's or snapshot's own row, in the order of the arguments of `StoredData.of`."""


def columns(data: InstanceData) -> dict[str, Any]:
    """Return the values of `COLUMNS`. Raises InvalidConfig for an unknown architecture."""
    return {
        "architecture": codes.number(codes.ARCHITECTURES, data.architecture, "architecture"),
        "ephemeral": data.ephemeral,
        "stateful": data.stateful,
        "description": data.description,
    }


def insert(tx: Transaction, tables: DataTables, owner_id: int, data: InstanceData) -> None:
    """Store config and devices of a new row. Raises InvalidConfig for an unknown type of device."""
    rows.insert_config(tx, tables.config, tables.owner, owner_id, data.config)
    rows.insert_devices(tx, tables.devices, owner_id, data.devices)


def change(tx: Transaction, tables: DataTables, owner_id: int, old: InstanceData, new: InstanceData) -> None:
    """Replace config and devices as stored by others. Raises InvalidConfig for an unknown type of device."""
    rows.change_config(tx, tables.config, tables.owner, owner_id, old.config, new.config)
    rows.change_devices(tx, tables.devices, owner_id, old.devices, new.devices)


class StoredData:
    """Config, devices and profiles of several rows, in three queries."""

    def __init__(
        self,
        config: Mapping[int, rows.Config],
        devices: rows.DevicesByOwner,
        profiles: Mapping[int, list[tuple[int | None, str]]],
    ) -> None:
        self._config = config
        self._devices = devices
        self._profiles = profiles

    def of(
        self,
        owner_id: int,
        reader: codes.Reader,
        architecture: int,
        ephemeral: bool,
        stateful: bool,
        description: str,
    ) -> InstanceData:
        """Return the data of a row, given its `COLUMNS`; unknown codes are reported to `reader`."""
        profiles = self._profiles[owner_id]
        return InstanceData(
            architecture=reader.word(codes.ARCHITECTURES, architecture),
            ephemeral=bool(ephemeral),
            stateful=bool(stateful),
            description=description,
            config=self._config[owner_id],
            devices=self._devices.read(owner_id, reader),
            profiles=[name for _, name in profiles],
            profile_ids=tuple(profile_id for profile_id, _ in profiles if profile_id is not None),
        )


class DataQueries:
    """The queries for config, devices and profiles of the rows whose ids `owners` selects.

    `profiles` selects the owner's id, and id and name of each of its profiles, in order.
    """

    def __init__(self, tables: DataTables, owners: rows.Owners, profiles: sa.Select[Any]) -> None:
        devices = tables.devices
        self._config = Prepared(rows.config_query(tables.config, tables.owner, owners))
        self._devices = Prepared(rows.devices_query(devices, devices.devices.c[devices.owner].in_(owners)))
        self._profiles = Prepared(profiles)

    def fetch(self, tx: Transaction, **values: str | int) -> StoredData:
        config = rows.configs(tx.fetch(self._config, **values))
        devices = rows.devices_of(tx.fetch(self._devices, **values))
        profiles: defaultdict[int, list[tuple[int | None, str]]] = defaultdict(list)
        for owner_id, profile_id, name in tx.fetch(self._profiles, **values):
            profiles[owner_id].append((profile_id, name))
        return StoredData(config, devices, profiles)
