"""Reconciles folders, rows, links and images of a pool after it was mounted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from utsuwa.core.volumes import Volume
from utsuwa.db import instances as instance_rows
from utsuwa.db import storage_volumes
from utsuwa.db.codes import VOLUME_CONTAINER
from utsuwa.db.database import Database
from utsuwa.db.instances import InstanceRow
from utsuwa.db.transaction import Transaction
from utsuwa.storage.known_pools import KnownPool
from utsuwa.storage.links import Links
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volume_rows import new_row, replace_rows

log = logging.getLogger(__name__)

Known = Mapping[str, Volume]
"""The root volumes of all instances on this member by their storage names."""


def root_volumes(instances: Iterable[InstanceRow]) -> dict[str, Volume]:
    volumes = (Volume("container", row.project, row.name) for row in instances)
    return {volume.storage_name: volume for volume in volumes}


class Sweep:
    """Completes or reverts changes on a pool that were interrupted."""

    def __init__(self, database: Database, images: PoolImages, links: Links, threads: StorageThreads) -> None:
        self._database = database
        self._images = images
        self._links = links
        self._threads = threads

    async def known(self) -> Known:
        return root_volumes(await self._database.read("instances", instance_rows.get_here))

    async def run(self, pool: KnownPool, known: Known) -> None:
        """Remove rows without an instance and unused images, create missing links; unknown folders are only
        logged.
        """
        await self._undo_renames(pool, known)
        there = await self._threads.quick.run(pool.driver.volumes, "container")
        await self._agree(pool.name, there, known)
        for name in there:
            if name in known:
                await self._threads.quick.run(self._links.make, name, pool.driver.volume_folder(known[name]))
            else:
                # Never removed: a database restored from an old backup does not know the latest instances.
                log.warning(
                    "no instance belongs to %s on storage pool %r: remove it by hand", name, pool.name
                )
        await self._images.sweep(pool)

    async def _undo_renames(self, pool: KnownPool, known: Known) -> None:
        """Revert renames whose files were moved, but whose instance was not renamed."""
        rows = await self._database.read(
            "storage volumes", storage_volumes.get_here, pool.name, VOLUME_CONTAINER
        )
        begun = [row for row in rows if row.new_name]
        if not begun:
            return
        there = set(await self._threads.quick.run(pool.driver.volumes, "container"))
        for row in begun:
            old = Volume("container", row.project, row.name)
            new = replace(old, name=row.new_name)
            moved = new.storage_name in there and old.storage_name not in there
            if moved and new.storage_name not in known:
                log.info("undoing the renaming of %s to %s", old.storage_name, new.storage_name)
                await self._threads.quick.run(pool.driver.rename_volume, new, old)
        await self._database.write("renames are undone", _forget_renames, [row.id for row in begun])

    async def _agree(self, pool: str, there: Iterable[str], known: Known) -> None:
        """Have exactly one row for each instance on the pool."""
        rows = await self._database.read("storage volumes", storage_volumes.get_here, pool, VOLUME_CONTAINER)
        listed = {Volume("container", row.project, row.name): row.id for row in rows}
        stale = [row_id for volume, row_id in listed.items() if volume.storage_name not in known]
        lacking = [known[name] for name in there if name in known and known[name] not in listed]
        if stale or lacking:
            new = [new_row(pool, volume) for volume in lacking]
            await self._database.write("sweep storage volumes", replace_rows, stale, new)


def _forget_renames(tx: Transaction, volume_ids: Iterable[int]) -> None:
    for volume_id in volume_ids:
        storage_volumes.set_new_name(tx, volume_id, "")
