"""Rows of volumes: new ones, those that are there, and replacements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from utsuwa.core import clock
from utsuwa.core.volumes import Volume
from utsuwa.db import storage_volumes
from utsuwa.db.codes import VOLUME_TYPES
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction


def new_row(pool: str, volume: Volume, config: Mapping[str, str] = MappingProxyType({})) -> VolumeRow:
    return VolumeRow(
        id=0,
        project=volume.project,
        pool=pool,
        name=volume.name,
        type=VOLUME_TYPES[volume.kind],
        description="",
        created_at=clock.now(),
        config=dict(config),
    )


def row_of(tx: Transaction, pool: str, volume: Volume) -> VolumeRow:
    """Return the row of a volume. Raises NotFound."""
    return storage_volumes.get(tx, volume.project, pool, VOLUME_TYPES[volume.kind], volume.name)


def id_of(tx: Transaction, pool: str, volume: Volume) -> int:
    """As `row_of`, for what needs no more than the id."""
    return storage_volumes.get_id(tx, volume.project, pool, VOLUME_TYPES[volume.kind], volume.name)


def replace_rows(tx: Transaction, stale: Iterable[int], new: Iterable[VolumeRow]) -> None:
    for row_id in stale:
        storage_volumes.delete(tx, row_id)
    for row in new:
        storage_volumes.insert(tx, row)
