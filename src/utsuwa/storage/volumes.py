"""The volumes on the pools: their rows and locks, and the links to instances' folders."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from utsuwa.core.errors import HostError, NotFound, Unavailable
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import Threads
from utsuwa.core.volumes import Volume
from utsuwa.db import storage_volumes
from utsuwa.db.codes import VOLUME_IMAGE, VOLUME_TYPES
from utsuwa.db.database import Database
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.storage.base import InstanceVolume
from utsuwa.storage.known_pools import KnownPools
from utsuwa.storage.links import Links
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.volume_rows import new_row

log = logging.getLogger(__name__)

Change = Callable[[Transaction], None]
"""What is to be stored in the same transaction as something else."""


class VolumeManager:
    """The volumes of all pools. Each has a lock.

    What a driver does is always awaited to its end, so that an undo step never meets work that still goes on.
    """

    def __init__(
        self,
        database: Database,
        known: KnownPools,
        pools: PoolManager,
        images: PoolImages,
        links: Links,
        threads: Threads,
    ) -> None:
        self._database = database
        self._known = known
        self._pools = pools
        self._images = images
        self._links = links
        self._threads = threads
        self._locks = NamedLocks()

    # Reading

    async def all(self, pool: str, project: str | None, kind: int | None = None) -> list[VolumeRow]:
        """The volumes of a project, or of all (None), on a pool of all members; images belong to every
        project.

        Raises NotFound (pool).
        """
        await self._pools.show(pool)
        found = await self._database.read("storage volumes", storage_volumes.get_all, None, pool, kind)
        return [v for v in found if project is None or v.project == project or v.type == VOLUME_IMAGE]

    async def get(self, pool: str, project: str, kind: int, name: str) -> VolumeRow:
        """Raises NotFound."""
        await self._pools.show(pool)
        owner = DEFAULT_PROJECT if kind == VOLUME_IMAGE else project
        return await self._database.read("storage volume", storage_volumes.get, owner, pool, kind, name)

    # Root volumes of instances

    async def create(
        self, pool: str, volume: Volume, idmap: IdMap, image: ImageSource | None, size: int | None = None
    ) -> None:
        """Make the files of a new instance, its volume's row and its link in `containers/`; not mounted.

        Raises NotFound (pool), Unavailable, AlreadyExists, InvalidImage, OutOfSpace, HostError; nothing is
        left then.
        """
        await self._pools.ensure_available(pool)
        driver = self._known.driver(pool)
        name = volume.storage_name
        async with self._locks.hold(pool, volume), Rollback() as undo:
            row_id = await self._database.write(
                "insert storage volume", storage_volumes.insert, new_row(pool, volume)
            )
            undo.push(self._remove_row, row_id)
            # Whoever deletes the pool has seen the row, or has closed the pool by now.
            self._known.driver(pool)
            if image is not None:
                undo.push(self._images.forget_if_possible, pool, driver, image.fingerprint)
            async with self._images.held(pool, driver, image):
                described = InstanceVolume(name, idmap, image.fingerprint if image else None, size)
                revert = partial(driver.delete_instance, name)
                await self._threads.make(undo, revert, driver.create_instance, described, image)
            await self._threads.make(
                undo, partial(self._links.remove, name), self._links.make, name, driver.instance_folder(name)
            )
            undo.keep()

    async def delete(self, pool: str, volume: Volume, also: Change | None = None) -> None:
        """Remove an instance's files, link and row; does nothing for what is not there.

        `also` is done in the transaction that removes the row. The files of an instance whose pool is not
        available stay where they are: a pool that is lost for good must not keep its instances for ever.
        """
        available = await self._pools.is_available(pool)
        driver = self._known.driver_of_any(pool)
        name = volume.storage_name
        async with self._locks.hold(pool, volume):
            await self._threads.run(self._links.remove, name)
            fingerprint = await self._threads.run(driver.delete_instance, name) if available else None
            if not available:
                log.warning(
                    "instance %s is deleted without its files, for storage pool %r is not available: "
                    "should its source come back, remove %s there by hand",
                    name,
                    pool,
                    volume.path,
                )
            await self._database.write("delete storage volume", _forget, pool, volume, also)
        if fingerprint is not None:
            await self._images.forget_if_possible(pool, driver, fingerprint, trim=True)

    async def rename(self, pool: str, volume: Volume, new_name: str, also: Change | None = None) -> None:
        """Rename an instance's files, link and row; unmounts it first. Raises AlreadyExists, HostError.

        `also` is for what must be stored in the same transaction: files alone can be named back for sure.
        """
        await self._pools.ensure_available(pool)
        driver = self._known.driver(pool)
        new = replace(volume, name=new_name)
        old_name, name = volume.storage_name, new.storage_name
        first, second = sorted((volume, new), key=lambda volume: volume.name)
        async with self._locks.hold(pool, first), self._locks.hold(pool, second), Rollback() as undo:
            row = await self._database.read("storage volume", _row_of, pool, volume)
            revert = partial(driver.undo_rename, name, old_name)
            await self._threads.make(undo, revert, driver.rename_instance, old_name, name)
            await self._threads.make(
                undo, partial(self._links.remove, name), self._links.make, name, driver.instance_folder(name)
            )
            await self._database.write("rename storage volume", _renamed, row.id, new_name, also)
            undo.keep()
            # Not before: on a disk that is full it could not be made again.
            await self._threads.run(self._links.remove, old_name)

    async def mount(self, pool: str, volume: Volume, idmap: IdMap) -> Path:
        """Mount an instance's rootfs through its map (again, where the map changed) and give its path."""
        driver = self._known.driver(pool)
        async with self._locks.hold(pool, volume):
            return await self._threads.run(driver.mount_instance, InstanceVolume(volume.storage_name, idmap))

    async def mount_folder(self, pool: str, volume: Volume, idmap: IdMap, name: str) -> Path:
        """Show a folder beside a mounted rootfs, as the driver's method of that name, and give its path."""
        driver = self._known.driver(pool)
        async with self._locks.hold(pool, volume):
            described = InstanceVolume(volume.storage_name, idmap)
            return await self._threads.run(driver.mount_folder, described, name)

    async def unmount(self, pool: str, volume: Volume) -> None:
        """Unmount an instance's rootfs; does nothing where it is not mounted.

        It may be mounted although its pool is not available any more. Raises NotFound (pool).
        """
        driver = self._known.driver_of_any(pool)
        async with self._locks.hold(pool, volume):
            await self._threads.run(driver.unmount_instance, volume.storage_name)

    def folder(self, pool: str, volume: Volume) -> Path:
        """The folder that holds `rootfs/`, `metadata.yaml` and `templates/`. Raises NotFound, Unavailable."""
        return self._known.driver(pool).instance_folder(volume.storage_name)

    async def usage(self, pool: str, volume: Volume) -> int | None:
        """Bytes that an instance takes for itself; None where its driver cannot tell cheaply."""
        name = volume.storage_name
        try:
            return await self._threads.run(self._known.driver(pool).instance_usage, name)
        except (HostError, Unavailable) as error:
            log.info("no disk usage of %s: %s", name, error)
            return None

    async def _remove_row(self, row_id: int) -> None:
        await self._database.write("discard storage volume", storage_volumes.delete, row_id)


def _row_of(tx: Transaction, pool: str, volume: Volume) -> VolumeRow:
    return storage_volumes.get(tx, volume.project, pool, VOLUME_TYPES[volume.kind], volume.name)


def _forget(tx: Transaction, pool: str, volume: Volume, also: Change | None) -> None:
    with contextlib.suppress(NotFound):
        storage_volumes.delete(tx, _row_of(tx, pool, volume).id)
    if also is not None:
        also(tx)


def _renamed(tx: Transaction, row_id: int, new: str, also: Change | None) -> None:
    storage_volumes.rename(tx, row_id, new)
    if also is not None:
        also(tx)
