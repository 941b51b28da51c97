"""Moves of volumes with their snapshots: to another name, project or pool."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from utsuwa.core import faults
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.rollback import Rollback
from utsuwa.core.volumes import Volume
from utsuwa.db import storage_volumes, volume_snapshots
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction
from utsuwa.storage import intentions
from utsuwa.storage.copies import CopyManager
from utsuwa.storage.copying import Copying
from utsuwa.storage.known_pools import KnownPool
from utsuwa.storage.links import Links
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volume_rows import new_row, row_of
from utsuwa.storage.volumes import Change, VolumeManager, note_size, shown_size

log = logging.getLogger(__name__)


class MoveManager:
    """Moves volumes that are not in use; uses their locks.

    On the same pool their directories are renamed. To another pool they are copied, and at any moment
    exactly one of the two is the volume: a row that is marked for removal belongs to the other one.
    """

    def __init__(
        self,
        database: Database,
        pools: PoolManager,
        volumes: VolumeManager,
        copies: CopyManager,
        images: PoolImages,
        links: Links,
        threads: StorageThreads,
    ) -> None:
        self._database = database
        self._pools = pools
        self._volumes = volumes
        self._copies = copies
        self._images = images
        self._links = links
        self._threads = threads

    async def move(
        self,
        pool: str,
        volume: Volume,
        new_pool: str,
        new: Volume,
        idmap: IdMap,
        size: str,
        snapshots: Sequence[str],
        also: Change,
    ) -> None:
        """Move a volume, from one pool to another with these of its snapshots only, oldest first.

        `also` runs in the transaction with which the move is complete; if anything fails or is interrupted
        before, the volume is where it was. Raises the errors of `VolumeManager.rename` and
        `CopyManager.copy`.
        """
        if pool == new_pool:
            if new == volume:
                await self._database.write("volume stays", also)
            else:
                await self._volumes.rename(pool, volume, new, also)
            return
        at, source_at = await self._pools.ensure_available(new_pool), await self._pools.ensure_available(pool)
        async with self._copies.both((pool, volume), (new_pool, new)):
            image = await self._threads.quick.run(source_at.images.image_of, volume)
            async with Rollback() as undo:
                marked = replace(new_row(new_pool, new), new_name=storage_volumes.CREATION)
                row_id = await self._database.begin("volume arrives", storage_volumes.insert, marked)
                undo.push(self._volumes.remove_row, row_id)
                # A concurrent deletion of the pool has either seen the row or closed the pool by now.
                await self._pools.ensure_available(new_pool)
                copying = Copying(pool, volume, new_pool, new, idmap, snapshots)
                await self._copies.copy_all(copying, undo)
                await self._volumes.apply_size(at, new, size)
                faults.point("volume is copied")

                def store(tx: Transaction) -> tuple[int, int]:
                    return _moved(
                        tx, row_id, pool, volume, new_pool, new, shown_size(at, size), snapshots, also
                    )

                moved_id, old_id = await self._database.write("volume is moved", store)
                undo.keep()
            self._volumes.judge_size(source_at, volume, moved_id, "")
            self._volumes.judge_size(at, new, moved_id, size)
            await self._update_links(at, volume, new)
            await self._remove(source_at, volume, old_id)
        if image is not None:
            await self._images.forget_if_possible(source_at, image, trim=True)

    async def _update_links(self, pool: KnownPool, volume: Volume, new: Volume) -> None:
        """Have the links lead to the new place; if the daemon is killed before, its next start does it."""
        if new.storage_name != volume.storage_name:
            await self._threads.quick.run(self._links.remove, volume.storage_name)
        folder = pool.driver.volume_folder(new)
        await self._threads.quick.run(self._links.make, new.storage_name, folder)
        await self._threads.quick.run(self._links.update_snapshots, pool.driver, new)

    async def _remove(self, pool: KnownPool, volume: Volume, row_id: int) -> None:
        """Remove what was moved away, and its row; if that fails, the next start does it."""
        try:
            await self._threads.remove.run(intentions.delete_all, pool.driver, volume)
            await self._volumes.remove_row(row_id)
        except UtsuwaError as error:
            log.warning(
                "the old files of %s on storage pool %r are kept until the next start: %s",
                volume.storage_name,
                pool.name,
                error,
            )


def _moved(
    tx: Transaction,
    arrived: int,
    pool: str,
    volume: Volume,
    new_pool: str,
    new: Volume,
    size: Mapping[str, str],
    snapshots: Sequence[str],
    also: Change,
) -> tuple[int, int]:
    """Store a move: the row moves with all that it has, and its old place is marked for removal.

    Returns the ids of both rows.
    """
    row = row_of(tx, pool, volume)
    storage_volumes.delete(tx, arrived)
    storage_volumes.move(tx, row.id, new.project, new_pool, new.name)
    note_size(tx, new_pool, new, size)
    for snapshot in volume_snapshots.get_of(tx, row.id):
        if snapshot.name not in snapshots:
            volume_snapshots.delete(tx, row.id, snapshot.name)
    left = storage_volumes.insert(tx, replace(new_row(pool, volume), new_name=storage_volumes.DELETION))
    also(tx)
    return row.id, left
