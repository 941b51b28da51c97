"""Reconciles directories, rows, links and images of a pool after it was mounted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from utsuwa.core.volumes import Volume, VolumeKind
from utsuwa.db import instances as instance_rows
from utsuwa.db import storage_volumes, volume_snapshots
from utsuwa.db.codes import VOLUME_CONTAINER, VOLUME_CUSTOM, VOLUME_TYPES
from utsuwa.db.database import Database
from utsuwa.db.instances import InstanceRow
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.storage import intentions
from utsuwa.storage.known_pools import KnownPool
from utsuwa.storage.links import Links
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volume_rows import new_row, replace_rows

log = logging.getLogger(__name__)

Known = Mapping[str, Volume]
"""The root volumes of all instances on this member by their storage names."""


def root_volumes(instances: Iterable[InstanceRow]) -> dict[str, Volume]:
    volumes = (row.ref.volume for row in instances)
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
        """Remove rows without an instance and unused images, and create missing links.

        Unknown directories are only logged.
        """
        await self._revert_changes(pool, "container", known)
        await self._sweep_custom(pool)
        there = await self._threads.quick.run(pool.driver.volumes, "container")
        await self._match_rows(pool.name, there, known)
        for name in there:
            if name in known:
                await self._threads.quick.run(self._links.make, name, pool.driver.volume_folder(known[name]))
                await self._threads.quick.run(self._links.update_snapshots, pool.driver, known[name])
            else:
                # Never removed: a database restored from an old backup lacks the latest instances.
                log.warning(
                    "no instance belongs to %s on storage pool %r: remove it by hand", name, pool.name
                )
        await self._images.sweep(pool)

    async def _revert_changes(self, pool: KnownPool, kind: VolumeKind, known: Known) -> None:
        """Revert changes of files whose result was not stored, and remove what is left of others."""
        rows = await self._database.read(
            "storage volumes", storage_volumes.get_here, pool.name, VOLUME_TYPES[kind]
        )
        begun = [row for row in rows if row.new_name]
        for row in begun:
            volume = Volume(kind, row.project, row.name)
            log.info("reverting an interrupted change of the files of %s", volume.storage_name)
            taken = intentions.renamed(volume, row.new_name).storage_name in known
            await self._threads.remove.run(intentions.revert, pool.driver, volume, row.new_name, taken=taken)
        there = await self._threads.quick.run(pool.driver.volumes, kind)
        if any(map(intentions.is_temporary, there)):
            for volume in known.values():
                await self._threads.remove.run(intentions.remove_replaced, pool.driver, volume)
        if begun:
            await self._database.write("changes are reverted", _forget_intentions, begun)

    async def _sweep_custom(self, pool: KnownPool) -> None:
        """Revert changes of custom volumes. Unknown directories are only logged, as those of instances."""
        rows = await self._database.read("custom volumes", storage_volumes.get_here, pool.name, VOLUME_CUSTOM)
        volumes = (Volume("custom", row.project, row.name) for row in rows)
        known = {volume.storage_name: volume for volume in volumes}
        await self._revert_changes(pool, "custom", known)
        for name in await self._threads.quick.run(pool.driver.volumes, "custom"):
            if name not in known:
                log.warning(
                    "no custom volume belongs to %s on storage pool %r: remove it by hand", name, pool.name
                )

    async def _match_rows(self, pool: str, there: Iterable[str], known: Known) -> None:
        """Ensure that there is exactly one row for each instance on the pool."""
        rows = await self._database.read("storage volumes", storage_volumes.get_here, pool, VOLUME_CONTAINER)
        listed = {Volume("container", row.project, row.name): row.id for row in rows}
        stale = [row_id for volume, row_id in listed.items() if volume.storage_name not in known]
        lacking = [known[name] for name in there if name in known and known[name] not in listed]
        if stale or lacking:
            new = [new_row(pool, volume) for volume in lacking]
            await self._database.write("sweep storage volumes", replace_rows, stale, new)


def _forget_intentions(tx: Transaction, volumes: Iterable[VolumeRow]) -> None:
    for row in volumes:
        change, _, snapshot = row.new_name.partition("/")
        if row.half_made:
            storage_volumes.delete(tx, row.id)
            continue
        storage_volumes.set_new_name(tx, row.id, "")
        if change == storage_volumes.DELETION:
            volume_snapshots.delete(tx, row.id, snapshot)
