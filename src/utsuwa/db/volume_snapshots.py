"""Snapshots of volumes: what their volume's row contained. Their files are at `Volume.path`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple, cast

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.core.volumes import Volume
from utsuwa.db import codes, rows, storage_volumes
from utsuwa.db.schema import (
    projects,
    read_time,
    storage_pools,
    storage_volumes_snapshots,
    storage_volumes_snapshots_config,
)
from utsuwa.db.schema import storage_volumes as storage_volumes_table
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Prepared, PreparedChange, Transaction

_TABLE = storage_volumes_snapshots
_OWNER = "storage_volume_snapshot_id"
FREE_PREFIX = "user."
"""The config keys that a restore brings back; others describe the volume itself."""


@dataclass(frozen=True)
class VolumeSnapshotRow:
    name: str
    description: str
    created_at: datetime
    expires_at: datetime | None
    config: dict[str, str] = field(default_factory=dict)


def insert(tx: Transaction, volume_id: int, row: VolumeSnapshotRow) -> None:
    """Raises AlreadyExists."""
    values = {
        "storage_volume_id": volume_id,
        "name": row.name,
        "description": row.description,
        "creation_date": row.created_at,
        "expiry_date": row.expires_at,
    }
    with rows.unique(f"Snapshot {row.name!r} of the volume already exists"):
        snapshot_id = tx.insert(_TABLE, values)
    rows.insert_config(tx, storage_volumes_snapshots_config, _OWNER, snapshot_id, row.config)


def take(
    tx: Transaction, volume: VolumeRow, name: str, created_at: datetime, expires_at: datetime | None
) -> None:
    """Insert a snapshot with description and config of the volume. Raises AlreadyExists."""
    insert(tx, volume.id, VolumeSnapshotRow(name, volume.description, created_at, expires_at, volume.config))


def get_of(tx: Transaction, volume_id: int) -> list[VolumeSnapshotRow]:
    """Return the snapshots of a volume, oldest first, in two queries."""
    return _load(tx, _OF_VOLUME, volume_id=volume_id)[volume_id]


def get_on(tx: Transaction, pool: str) -> Mapping[int, list[VolumeSnapshotRow]]:
    """Return the snapshots of all volumes on a pool by the volume's id, oldest first, in two queries."""
    return _load(tx, _ON_POOL, pool=pool)


def get(tx: Transaction, volume: VolumeRow, name: str) -> VolumeSnapshotRow:
    """Return one snapshot of a volume. Raises NotFound."""
    for row in _load(tx, _ONE, volume_id=volume.id, name=name)[volume.id]:
        return row
    raise NotFound(f"Snapshot {name!r} of storage volume {volume.name!r} not found")


def names(tx: Transaction, volume_id: int) -> list[str]:
    """Return the names of a volume's snapshots; one query."""
    return tx.execute(sa.select(_TABLE.c.name).where(_TABLE.c.storage_volume_id == volume_id)).scalars()


def expired(tx: Transaction, moment: datetime) -> list[tuple[str, Volume]]:
    """Return the pools and names of this member's snapshots of custom volumes that have expired."""
    query = (
        sa.select(storage_pools.c.name, projects.c.name, storage_volumes_table.c.name, _TABLE.c.name)
        .select_from(_TABLE)
        .join(storage_volumes_table, storage_volumes_table.c.id == _TABLE.c.storage_volume_id)
        .join(storage_pools, storage_pools.c.id == storage_volumes_table.c.storage_pool_id)
        .join(projects, projects.c.id == storage_volumes_table.c.project_id)
        .where(
            _TABLE.c.expiry_date <= moment,
            storage_volumes_table.c.type == codes.VOLUME_CUSTOM,
            storage_volumes_table.c.member_id == tx.member,
        )
        .order_by(_TABLE.c.expiry_date, _TABLE.c.id)
    )
    return [(pool, Volume("custom", *path)) for pool, *path in tx.execute(query)]


def update(tx: Transaction, volume_id: int, name: str, description: str, expires_at: datetime | None) -> None:
    """Replace all that can be changed of a snapshot. Raises NotFound."""
    values = {"description": description, "expiry_date": expires_at}
    result = tx.execute(_TABLE.update().where(_is(volume_id, name)).values(**values))
    rows.one_changed(result, f"Snapshot {name!r} of the volume not found")


def restore(tx: Transaction, volume: VolumeRow, name: str) -> None:
    """Give a volume the description and the `user.*` keys of a snapshot, if that has a row."""
    for row in _load(tx, _ONE, volume_id=volume.id, name=name)[volume.id]:
        restored = with_free_config(volume, row.description, row.config)
        if restored != volume:
            storage_volumes.update(tx, restored)


def with_free_config(volume: VolumeRow, description: str, config: dict[str, str]) -> VolumeRow:
    """Return the row with another description and the `user.*` keys of another config."""
    own = {key: value for key, value in volume.config.items() if not key.startswith(FREE_PREFIX)}
    free = {key: value for key, value in config.items() if key.startswith(FREE_PREFIX)}
    return replace(volume, description=description, config={**own, **free})


def rename(tx: Transaction, volume_id: int, old: str, new: str) -> None:
    """Rename a snapshot, if it has a row. Raises AlreadyExists."""
    with rows.unique(f"Snapshot {new!r} of the volume already exists"):
        tx.execute(_TABLE.update().where(_is(volume_id, old)).values(name=new))


def delete(tx: Transaction, volume_id: int, name: str) -> None:
    """Delete a snapshot's row and its config, if they exist."""
    tx.run(_DELETION, [{"of_volume": volume_id, "old_name": name}])


def _is(volume_id: int, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(_TABLE.c.storage_volume_id == volume_id, _TABLE.c.name == name)


class _Queries(NamedTuple):
    rows: Prepared
    config: Prepared


_COLUMNS = ("storage_volume_id", "id", "name", "description", "creation_date", "expiry_date")


def _queries(where: sa.ColumnElement[bool]) -> _Queries:
    owners = sa.select(_TABLE.c.id).where(where)
    return _Queries(
        Prepared(
            sa.select(*(_TABLE.c[column] for column in _COLUMNS))
            .where(where)
            .order_by(_TABLE.c.creation_date, _TABLE.c.id)
        ),
        Prepared(rows.config_query(storage_volumes_snapshots_config, _OWNER, owners)),
    )


_IS_OF_VOLUME = _TABLE.c.storage_volume_id == sa.bindparam("volume_id", type_=sa.Integer)
_OF_VOLUME = _queries(_IS_OF_VOLUME)
_ONE = _queries(sa.and_(_IS_OF_VOLUME, _TABLE.c.name == sa.bindparam("name", type_=sa.Text)))
_ON_POOL = _queries(
    _TABLE.c.storage_volume_id.in_(
        sa.select(storage_volumes_table.c.id)
        .join(storage_pools, storage_pools.c.id == storage_volumes_table.c.storage_pool_id)
        .where(storage_pools.c.name == sa.bindparam("pool", type_=sa.Text))
    )
)
_DELETION = PreparedChange(
    _TABLE.delete().where(
        _TABLE.c.storage_volume_id == sa.bindparam("of_volume", type_=sa.Integer),
        _TABLE.c.name == sa.bindparam("old_name", type_=sa.Text),
    )
)


def _load(
    tx: Transaction, queries: _Queries, **values: str | int
) -> defaultdict[int, list[VolumeSnapshotRow]]:
    found: defaultdict[int, list[VolumeSnapshotRow]] = defaultdict(list)
    own_rows = tx.fetch(queries.rows, **values)
    config = rows.configs(tx.fetch(queries.config, **values)) if own_rows else {}
    for volume_id, row_id, name, description, created, expires in own_rows:
        row = VolumeSnapshotRow(
            name=name,
            description=description,
            created_at=cast(datetime, read_time(created)),
            expires_at=read_time(expires),
            config=config[row_id],
        )
        found[volume_id].append(row)
    return found
