"""The rows of a snapshot, its own and that of the root volume's snapshot, which are stored together."""

from __future__ import annotations

from collections.abc import Sequence

from utsuwa.core.refs import InstanceRef
from utsuwa.db import snapshots as snapshot_rows
from utsuwa.db import volume_snapshots
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.storage.volume_rows import id_of, row_of


def volume_of(tx: Transaction, pool: str, instance: InstanceRef) -> VolumeRow:
    """Return the row of an instance's root volume. Raises NotFound."""
    return row_of(tx, pool, instance.volume)


def complete(tx: Transaction, pool: str, row: SnapshotRow) -> None:
    """Replace the row that reserved the name of a snapshot, whose files exist now."""
    snapshot_rows.delete(tx, row.id)
    snapshot_rows.insert(tx, row)
    volume = volume_of(tx, pool, row.ref.instance)
    volume_snapshots.take(tx, volume, row.ref.name, row.created_at, row.expires_at)


def copy(tx: Transaction, source: VolumeRow, target: VolumeRow, new: Sequence[SnapshotRow]) -> None:
    """Insert the rows of snapshots that were copied, with their names, from one root volume to another."""
    for row in new:
        snapshot_rows.insert(tx, row)
    names = {row.ref.name for row in new}
    for found in volume_snapshots.get_of(tx, source.id) if names else ():
        if found.name in names:
            volume_snapshots.insert(tx, target.id, found)


def rename(tx: Transaction, pool: str, row: SnapshotRow, new: str) -> None:
    """Raises AlreadyExists."""
    snapshot_rows.rename(tx, row.id, new)
    volume_snapshots.rename(tx, id_of(tx, pool, row.ref.instance.volume), row.ref.name, new)


def delete(tx: Transaction, pool: str, row: SnapshotRow) -> None:
    snapshot_rows.delete(tx, row.id)
    volume_snapshots.delete(tx, id_of(tx, pool, row.ref.instance.volume), row.ref.name)
