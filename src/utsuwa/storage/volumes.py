"""The volumes on the pools: their rows and locks, and the links to instances' folders."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidConfig, NotFound, Unavailable, UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Scope
from utsuwa.core.units import parse_bytes
from utsuwa.core.volumes import Volume
from utsuwa.db import images as image_rows
from utsuwa.db import storage_volumes
from utsuwa.db.codes import VOLUME_CUSTOM, VOLUME_IMAGE, VOLUME_TYPES
from utsuwa.db.database import Database
from utsuwa.db.projects import effective
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.processes.run import Stopper
from utsuwa.storage.base import FolderDriver, QuotaDriver
from utsuwa.storage.known_pools import KnownPool, KnownPools
from utsuwa.storage.links import Links
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volume_rows import new_row

log = logging.getLogger(__name__)

ENFORCED_KEY = "volatile.size.enforced"
"""`false` in the config of a volume whose size has no effect: the pool's driver has no quotas."""

Change = Callable[[Transaction], None]
"""A change to be stored in the same transaction."""


class VolumeManager:
    """The volumes of all pools. Each volume has a lock.

    Work of a driver is always awaited until it has finished, so undo steps never run concurrently with it.
    """

    def __init__(
        self,
        database: Database,
        known: KnownPools,
        pools: PoolManager,
        images: PoolImages,
        links: Links,
        threads: StorageThreads,
    ) -> None:
        self._database = database
        self._known = known
        self._pools = pools
        self._images = images
        self._links = links
        self._threads = threads
        self._locks = NamedLocks()

    # Reading

    async def all(
        self, scope: Scope, pool: str, project: str | None, kind: int | None = None
    ) -> list[VolumeRow]:
        """The volumes of a project, or of all (None), on a pool of all members; those of images belong to
        every project.

        Raises NotFound (pool).
        """
        await self._pools.show(pool)

        def fetch(tx: Transaction) -> list[VolumeRow]:
            found = _visible(tx, scope, storage_volumes.get_all(tx, None, pool, kind))
            if project is None:
                return found
            return [volume for volume in found if volume.project == _holder(tx, project, volume.type)]

        return await self._database.read("storage volumes", fetch)

    async def get(self, scope: Scope, pool: str, project: str, kind: int, name: str) -> VolumeRow:
        """Raises NotFound."""
        await self._pools.show(pool)

        def fetch(tx: Transaction) -> VolumeRow:
            row = storage_volumes.get(tx, _holder(tx, project, kind), pool, kind, name)
            if not _visible(tx, scope, [row]):
                raise storage_volumes.not_found(pool, name)
            return row

        return await self._database.read("storage volume", fetch)

    # Root volumes of instances

    async def create(
        self, pool: str, volume: Volume, idmap: IdMap, image: ImageSource | None, size: str = ""
    ) -> None:
        """Create an instance's root volume, its row and its link in `containers/`; it is not mounted.

        `size` is the configured size of the root disk, empty if there is none. Leaves nothing behind if it
        raises NotFound (pool), Unavailable, AlreadyExists, InvalidImage, OutOfSpace or HostError.
        """
        at = await self._pools.ensure_available(pool)
        async with self._locks.hold(pool, volume), Rollback() as undo:
            row = new_row(pool, volume, _shown_size(at, size))
            row_id = await self._database.write("insert storage volume", storage_volumes.insert, row)
            undo.push(self._remove_row, row_id)
            # A concurrent deletion of the pool has either seen the row or closed the pool by now.
            self._known.available(pool)
            revert = partial(self._threads.remove.run, at.driver.delete_volume, volume)
            if image is None:
                await self._threads.quick.make(undo, revert, at.driver.create_volume, volume, idmap, None)
            else:
                undo.push(self._images.forget_if_possible, at, image.fingerprint)
                stopper = Stopper()
                async with self._images.held(at, image, stopper):
                    threads = self._threads.mount if at.shares_images else self._threads.fill
                    make = threads.stopped_by(stopper.stop).make
                    await make(undo, revert, at.images.create_from_image, volume, idmap, image, stopper)
            if size:
                await self._apply_size(at, volume, size)
            await self._make_link(at, volume, undo)
            undo.keep()

    async def set_size(self, pool: str, volume: Volume, size: str) -> None:
        """Set the size of a volume, which is enforced if the pool can; an empty size removes the limit.

        Raises NotFound, Unavailable, InvalidConfig.
        """
        at = self._known.get(pool)
        if isinstance(at.driver, QuotaDriver):
            await self._pools.ensure_available(pool)
        async with self._locks.hold(pool, volume):
            await self._apply_size(at, volume, size)
            await self._database.write("size of volume", _note_size, pool, volume, _shown_size(at, size))

    async def _apply_size(self, pool: KnownPool, volume: Volume, size: str) -> None:
        if isinstance(pool.driver, QuotaDriver):
            limit = parse_bytes(size) if size else None
            await self._threads.quick.run(pool.driver.set_quota, volume, limit)
        elif size:
            log.warning(
                "the size of %s is not enforced: storage pools of the driver %r have no quotas",
                volume.path,
                pool.kind.name,
            )

    async def _make_link(self, pool: KnownPool, volume: Volume, undo: Rollback) -> None:
        name, target = volume.storage_name, pool.driver.volume_folder(volume)
        revert = partial(self._threads.quick.run, self._links.remove, name)
        await self._threads.quick.make(undo, revert, self._links.make, name, target)

    async def delete(self, pool: str, volume: Volume, also: Change | None = None) -> None:
        """Remove an instance's files, link and row; does nothing for what is not there.

        `also` is done in the transaction that removes the row. The files of an instance whose pool is not
        available stay where they are: a pool that is lost for good must not keep its instances for ever.
        """
        available = await self._pools.is_available(pool)
        at = self._known.get(pool)
        name, fingerprint = volume.storage_name, None
        async with self._locks.hold(pool, volume):
            await self._threads.quick.run(self._links.remove, name)
            if available:
                fingerprint = await self._threads.quick.run(at.images.image_of, volume)
                await self._threads.remove.run(at.driver.delete_volume, volume)
            else:
                log.warning(
                    "instance %s is deleted without its files, for storage pool %r is not available: "
                    "should its source come back, remove %s there by hand",
                    name,
                    pool,
                    volume.path,
                )
            await self._database.write("delete storage volume", _forget, pool, volume, also)
        if fingerprint is not None:
            await self._images.forget_if_possible(at, fingerprint, trim=True)

    async def rename(self, pool: str, volume: Volume, new_name: str, also: Change | None = None) -> None:
        """Rename an instance's files, link and row; unmounts it first. Raises AlreadyExists, HostError.

        `also` is for what must be stored in the same transaction: files alone can be named back for sure.
        What is intended is noted before they move, so that a start after a kill can name them back.
        """
        at = await self._pools.ensure_available(pool)
        new = replace(volume, name=new_name)
        first, second = sorted((volume, new), key=lambda volume: volume.name)
        async with self._locks.hold(pool, first), self._locks.hold(pool, second), Rollback() as undo:
            row_id = await self._database.begin("volume is renamed", _intended, pool, volume, new_name)
            undo.push(self._forget_intention, row_id)
            revert = partial(self._threads.quick.run, at.driver.rename_volume, new, volume)
            await self._threads.quick.make(undo, revert, at.driver.rename_volume, volume, new)
            await self._make_link(at, new, undo)
            await self._database.write("rename storage volume", _renamed, row_id, new_name, also)
            undo.keep()
            # Not before: on a disk that is full it could not be made again.
            await self._threads.quick.run(self._links.remove, volume.storage_name)

    async def _forget_intention(self, row_id: int) -> None:
        """Where there is no room for that, the next start finds the files where they were and forgets it."""
        try:
            await self._database.write("volume is not renamed", storage_volumes.set_new_name, row_id, "")
        except UtsuwaError as error:
            log.warning("that a volume was to be renamed stays noted until the next start: %s", error)

    async def mount(self, pool: str, volume: Volume, idmap: IdMap) -> Path:
        """Mount an instance's rootfs through its map (again, where the map changed) and give its path."""
        at = self._known.available(pool)
        async with self._locks.hold(pool, volume):
            return await self._threads.mount.run(at.driver.mount_volume, volume, idmap)

    async def mount_folder(self, pool: str, volume: Volume, idmap: IdMap, name: str) -> Path:
        """Show a folder beside a mounted rootfs, as the driver's method of that name, and give its path.

        Raises InvalidConfig where the pool has no such folders.
        """
        at = self._known.available(pool)
        if not isinstance(at.driver, FolderDriver):
            raise InvalidConfig(
                f"Storage pools of the driver {at.kind.name!r} have no folders beside the root disk"
            )
        async with self._locks.hold(pool, volume):
            return await self._threads.mount.run(at.driver.mount_folder, volume, idmap, name)

    async def unmount(self, pool: str, volume: Volume) -> None:
        """Unmount an instance's rootfs; does nothing if it is not mounted.

        It may be mounted although its pool is not available any more. Raises NotFound (pool).
        """
        at = self._known.get(pool)
        async with self._locks.hold(pool, volume):
            await self._threads.quick.run(at.driver.unmount_volume, volume)

    def folder(self, pool: str, volume: Volume) -> Path:
        """The folder that holds `rootfs/`, `metadata.yaml` and `templates/`. Raises NotFound, Unavailable."""
        return self._known.available(pool).driver.volume_folder(volume)

    async def usage(self, pool: str, volume: Volume) -> int | None:
        """Return the bytes that a volume uses; None if its driver cannot tell cheaply."""
        try:
            return await self._threads.count.run(self._known.available(pool).driver.volume_usage, volume)
        except (HostError, Unavailable) as error:
            log.info("no disk usage of %s: %s", volume.storage_name, error)
            return None

    async def _remove_row(self, row_id: int) -> None:
        await self._database.write("discard storage volume", storage_volumes.delete, row_id)


def _holder(tx: Transaction, project: str, kind: int) -> str:
    """The project of a project's volumes of a kind; those of images are in `default` for all."""
    if kind == VOLUME_IMAGE:
        return DEFAULT_PROJECT
    return effective(tx, project, "storage.volumes") if kind == VOLUME_CUSTOM else project


def _visible(tx: Transaction, scope: Scope, volumes: list[VolumeRow]) -> list[VolumeRow]:
    """Those in the scope; an image's volume is in every project that has the image."""
    if not scope.restricted:
        return volumes
    images = {image.fingerprint for image in image_rows.get_all(tx, None) if scope.sees(image.project)}
    return [v for v in volumes if (v.name in images if v.type == VOLUME_IMAGE else scope.sees(v.project))]


def _row_of(tx: Transaction, pool: str, volume: Volume) -> VolumeRow:
    return storage_volumes.get(tx, volume.project, pool, VOLUME_TYPES[volume.kind], volume.name)


def _forget(tx: Transaction, pool: str, volume: Volume, also: Change | None) -> None:
    with contextlib.suppress(NotFound):
        storage_volumes.delete(tx, _row_of(tx, pool, volume).id)
    if also is not None:
        also(tx)


def _shown_size(pool: KnownPool, size: str) -> dict[str, str]:
    """Return the config keys that show the size of a volume."""
    if not size:
        return {}
    return {"size": size} if isinstance(pool.driver, QuotaDriver) else {"size": size, ENFORCED_KEY: "false"}


def _note_size(tx: Transaction, pool: str, volume: Volume, shown: Mapping[str, str]) -> None:
    row = _row_of(tx, pool, volume)
    others = {key: value for key, value in row.config.items() if key not in ("size", ENFORCED_KEY)}
    storage_volumes.update(tx, replace(row, config={**others, **shown}))


def _intended(tx: Transaction, pool: str, volume: Volume, new: str) -> int:
    row = _row_of(tx, pool, volume)
    storage_volumes.set_new_name(tx, row.id, new)
    return row.id


def _renamed(tx: Transaction, row_id: int, new: str, also: Change | None) -> None:
    storage_volumes.rename(tx, row_id, new)
    if also is not None:
        also(tx)
