"""The volumes on pools: their rows and locks, and the links to instances' directories."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidConfig, InvalidRequest, NotFound, Unavailable, UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Scope
from utsuwa.core.tasks import finish
from utsuwa.core.units import parse_bytes
from utsuwa.core.volumes import Volume
from utsuwa.core.warning_types import SIZE_NOT_ENFORCED
from utsuwa.db import images as image_rows
from utsuwa.db import storage_volumes, volume_snapshots, volume_users
from utsuwa.db.codes import VOLUME_CONTAINER, VOLUME_CUSTOM, VOLUME_IMAGE
from utsuwa.db.database import Database
from utsuwa.db.projects import effective
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_snapshots import VolumeSnapshotRow
from utsuwa.db.volume_users import User, Users
from utsuwa.db.warnings import Subject
from utsuwa.host.processes.stopper import Stopper
from utsuwa.operations.warnings import Warnings
from utsuwa.storage import intentions
from utsuwa.storage.base import Driver, FolderDriver, QuotaDriver, StandInDriver
from utsuwa.storage.known_pools import KnownPool, KnownPools
from utsuwa.storage.links import Links
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.progress import shown
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volume_rows import id_of, new_row, row_of
from utsuwa.wire.edits import Change as Edit
from utsuwa.wire.edits import IfMatch, edited
from utsuwa.wire.storage import StorageVolumePut

log = logging.getLogger(__name__)

ENFORCED_KEY = "volatile.size.enforced"
"""A config key of volumes, `false` if the size is not enforced because the driver lacks quotas."""

Change = Callable[[Transaction], None]
"""A change to be stored in the same transaction."""


_UNMAPPED = IdMap()


@dataclass(frozen=True)
class ShownVolume:
    """A volume as returned to callers."""

    row: VolumeRow
    users: Sequence[User]
    """The users of a custom volume; empty for others, which belong to the object of their name."""
    snapshots: Sequence[VolumeSnapshotRow]


class VolumeManager:
    """The volumes of all pools. Each volume has a lock, together with its snapshots.

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
        warnings: Warnings,
        locks: NamedLocks,
    ) -> None:
        self._database = database
        self._known = known
        self._pools = pools
        self._images = images
        self._links = links
        self._threads = threads
        self._warnings = warnings
        self._locks = locks

    # Reading

    async def all(
        self, scope: Scope, pool: str, project: str | None, kind: int | None = None
    ) -> list[ShownVolume]:
        """Return the volumes of a project, or of all (None), on a pool, on all members.

        Those of images belong to every project that has the image. In a constant number of queries.

        Raises NotFound (pool).
        """
        await self._pools.show(pool)

        def fetch(tx: Transaction) -> list[ShownVolume]:
            found = _visible(tx, scope, storage_volumes.get_all(tx, None, pool, kind))
            if project is not None:
                holders = {kind: _holder(tx, project, kind) for kind in {v.type for v in found}}
                found = [volume for volume in found if volume.project == holders[volume.type]]
            users, snapshots = volume_users.get_all(tx), volume_snapshots.get_on(tx, pool)
            return [ShownVolume(row, _users_of(users, row), snapshots.get(row.id, ())) for row in found]

        return await self._database.read("storage volumes", fetch)

    async def show(self, scope: Scope, pool: str, project: str, kind: int, name: str) -> ShownVolume:
        """Return a volume with its users and snapshots. Raises NotFound."""
        row = await self.get(scope, pool, project, kind, name)

        def fetch(tx: Transaction) -> ShownVolume:
            users = volume_users.get_all(tx) if kind == VOLUME_CUSTOM else {}
            return ShownVolume(row, _users_of(users, row), volume_snapshots.get_of(tx, row.id))

        return await self._database.read("storage volume", fetch)

    async def get(self, scope: Scope, pool: str, project: str, kind: int, name: str) -> VolumeRow:
        """Return a volume. Raises NotFound."""
        await self._pools.show(pool)

        def fetch(tx: Transaction) -> VolumeRow:
            row = storage_volumes.get(tx, _holder(tx, project, kind), pool, kind, name)
            if not _visible(tx, scope, [row]):
                raise storage_volumes.not_found(pool, name)
            return row

        return await self._database.read("storage volume", fetch)

    async def edit(
        self,
        scope: Scope,
        pool: str,
        project: str,
        kind: int,
        name: str,
        change: Edit[StorageVolumePut],
        if_match: IfMatch,
    ) -> VolumeRow:
        """Change the description and the `user.*` keys of an instance's volume, and return its row.

        Raises NotFound, PreconditionFailed, InvalidConfig, and InvalidRequest for other types of volumes.
        """
        await self.get(scope, pool, project, kind, name)
        if kind != VOLUME_CONTAINER:
            raise InvalidRequest("Only volumes of instances can be changed")

        def store(tx: Transaction) -> VolumeRow:
            row = storage_volumes.get(tx, project, pool, kind, name)
            new = edited(StorageVolumePut(config=row.config, description=row.description), change, if_match)
            for key, value in new.config.items():
                if not key.startswith(volume_snapshots.FREE_PREFIX) and row.config.get(key, "") != value:
                    raise InvalidConfig(
                        f"Invalid key {key[:60]!r}: only user.* can be set on the volume of an instance; "
                        "its size is that of the instance's root disk"
                    )
            stored = volume_snapshots.with_free_config(row, new.description, new.config)
            storage_volumes.update(tx, stored)
            return stored

        return await self._database.write("edit storage volume", store)

    async def snapshots(self, row: VolumeRow) -> list[VolumeSnapshotRow]:
        """Return the snapshots of a volume, oldest first."""
        return await self._database.read("snapshots of volume", volume_snapshots.get_of, row.id)

    # Root volumes of instances

    async def create(
        self, pool: str, volume: Volume, idmap: IdMap, image: ImageSource | None, size: str = ""
    ) -> None:
        """Create an instance's root volume, its row and its link in `containers/`; it is not mounted.

        `size` is the configured size of the root disk, empty if there is none. Leaves nothing behind if it
        raises NotFound (pool), Unavailable, AlreadyExists, InvalidImage, OutOfSpace or HostError.
        """
        at = await self._pools.ensure_available(pool)
        async with self._locks.hold(pool, volume), self.creation(at, volume, size) as undo:
            await self.create_files(at, volume, idmap, image, undo)

    async def create_files(
        self, pool: KnownPool, volume: Volume, idmap: IdMap, image: ImageSource | None, undo: Rollback
    ) -> None:
        """Create the files of a volume, from an image if there is one; the caller holds the volume's lock."""
        revert = partial(self._threads.remove.run, pool.driver.delete_volume, volume)
        if image is None:
            await self._threads.quick.make(undo, revert, pool.driver.create_volume, volume, idmap, None)
            return
        undo.push(self._images.forget_if_possible, pool, image.fingerprint)
        stopper = Stopper()
        async with self._images.held(pool, image, stopper):
            threads = self._threads.mount if pool.shares_images else self._threads.fill
            make = threads.stopped_by(stopper.stop).make
            async with contextlib.nullcontext() if pool.shares_images else shown(stopper.progress):
                await make(undo, revert, pool.images.create_from_image, volume, idmap, image, stopper)

    @contextlib.asynccontextmanager
    async def creation(self, pool: KnownPool, volume: Volume, size: str) -> AsyncIterator[Rollback]:
        """Create a volume whose files are created in the block, which pushes their removal to the rollback.

        As `create`; the caller holds the lock of the volume, and has stored that the instance is being
        created.
        """
        async with Rollback() as undo:
            row = new_row(pool.name, volume, shown_size(pool, size))
            # A caller that is cancelled meanwhile does not get the id, although the row may be stored.
            insert = self._database.commit("insert storage volume", storage_volumes.insert, row)
            stored = asyncio.ensure_future(insert)
            undo.push(self._remove_stored, stored)
            row_id = await finish(stored)
            # A concurrent deletion of the pool has either seen the row or closed the pool by now.
            self._known.available(pool.name)
            yield undo
            if size:
                await self.apply_size(pool, volume, size)
                self.judge_size(pool, volume, row_id, size)
            await self._make_link(pool, volume, undo)
            undo.keep()

    async def _remove_stored(self, stored: asyncio.Future[int]) -> None:
        if stored.exception() is None:
            await self.remove_row(stored.result())

    async def set_size(self, pool: str, volume: Volume, size: str) -> None:
        """Set the size of a volume, which is enforced if the pool can; an empty size removes the limit.

        Raises NotFound, Unavailable, InvalidConfig.
        """
        at = self._known.get(pool)
        if isinstance(at.driver, QuotaDriver):
            await self._pools.ensure_available(pool)
        async with self._locks.hold(pool, volume):
            await self.apply_size(at, volume, size)
            shown = shown_size(at, size)
            row_id = await self._database.write("size of volume", note_size, pool, volume, shown)
            self.judge_size(at, volume, row_id, size)

    async def apply_size(self, pool: KnownPool, volume: Volume, size: str) -> None:
        """Enforce a size if the pool can; the caller holds the lock of the volume. Raises InvalidConfig."""
        if isinstance(pool.driver, QuotaDriver):
            limit = parse_bytes(size) if size else None
            await self._threads.quick.run(pool.driver.set_quota, volume, limit)

    def judge_size(self, pool: KnownPool, volume: Volume, row_id: int, size: str) -> None:
        """Raise or resolve the warning about a size that is not enforced."""
        enforced = not size or isinstance(pool.driver, QuotaDriver)
        self._warnings.judge(
            SIZE_NOT_ENFORCED,
            ""
            if enforced
            else f"the size of {volume.path} is not enforced: storage pools of the driver {pool.kind.name!r} "
            "have no quotas",
            Subject("storage-volume", row_id, volume.project),
        )

    async def _make_link(self, pool: KnownPool, volume: Volume, undo: Rollback) -> None:
        name, target = volume.storage_name, pool.driver.volume_folder(volume)
        revert = partial(self._threads.quick.run, self._links.remove, name)
        await self._threads.quick.make(undo, revert, self._links.make, name, target)

    async def delete(self, pool: str, volume: Volume, also: Change | None = None) -> None:
        """Remove an instance's files with its snapshots, its link and row, as far as they exist.

        `also` runs in the transaction that removes the row. A power failure may undo that: what was stored
        before has the next start delete the volume again. The files are kept if the pool is not available,
        as a lost pool must not prevent the deletion of its instances.
        """
        available = await self._pools.is_available(pool)
        at = self._known.get(pool)
        name, fingerprint = volume.storage_name, None

        def delete_files() -> str | None:
            self._links.remove(name)
            found = at.images.image_of(volume)
            intentions.delete_all(at.driver, volume)
            return found

        async with self._locks.hold(pool, volume):
            if available:
                fingerprint = await self._threads.remove.run(delete_files)
            else:
                await self._threads.quick.run(self._links.remove, name)
                log.warning(
                    "instance %s is deleted without its files, as storage pool %r is not available: "
                    "if its source becomes available again, remove %s there by hand",
                    name,
                    pool,
                    volume.path,
                )
            listed = await self._database.commit(
                "delete storage volume", _forget, pool, volume, also, fingerprint
            )
        if fingerprint is not None:
            await self._images.forget_if_possible(at, fingerprint, trim=True, used=listed)

    async def rename(self, pool: str, volume: Volume, new: Volume, also: Change | None = None) -> None:
        """Rename an instance's files with its snapshots, its link and row; unmounts it first.

        The new name may be in another project.

        Raises AlreadyExists, HostError.

        `also` runs in the same transaction, as only the renaming of files can be reverted reliably. The new
        name is recorded before the files are renamed, so that the next start can revert it after a crash.
        """
        at = await self._pools.ensure_available(pool)
        first, second = sorted((volume, new), key=lambda volume: volume.path)
        async with self._locks.hold(pool, first), self._locks.hold(pool, second), Rollback() as undo:
            row_id = await self._database.begin("volume is renamed", _intended, pool, volume, new)
            undo.push(self.forget_intention, row_id)
            for rename in (at.driver.rename_volume, at.driver.rename_snapshots):
                revert = partial(self._threads.quick.run, rename, new, volume)
                await self._threads.quick.make(undo, revert, rename, volume, new)
            await self._make_link(at, new, undo)
            await self._threads.quick.run(self._links.update_snapshots, at.driver, new)
            await self._database.write("rename storage volume", _renamed, row_id, pool, new, also)
            undo.keep()
            # Last, because on a full disk the link could not be created again.
            await self._threads.quick.run(self._links.remove, volume.storage_name)

    async def forget_intention(self, row_id: int) -> None:
        """Clear what is recorded of a change that was reverted; if that fails, the next start does it."""
        try:
            await self._database.write("change is reverted", storage_volumes.set_new_name, row_id, "")
        except UtsuwaError as error:
            log.warning("the record of a failed change is kept until the next start: %s", error)

    async def mount(self, pool: str, volume: Volume, idmap: IdMap) -> Path:
        """Mount an instance's rootfs with its id map, remounting it if that has changed; return its path.

        A snapshot is mounted read-only.
        """
        at = self._known.available(pool)
        async with self._locks.hold(pool, volume.whole):
            return await self._threads.mount.run(at.driver.mount_volume, volume, idmap)

    @contextlib.asynccontextmanager
    async def opened(self, pool: str, volume: Volume, idmap: IdMap = _UNMAPPED) -> AsyncIterator[Path]:
        """Mount a volume that is not in use, or a snapshot, with the container's own ids for the block.

        They are mapped by `idmap`, if it is given.

        Yields the directory of `rootfs/`, `metadata.yaml`, `templates/`; nothing else may use the volume
        meanwhile. Raises NotFound, Unavailable, HostError.
        """
        at = await self._pools.ensure_available(pool)
        async with self._locks.hold(pool, volume.whole), Rollback() as undo:
            undo.push(self._threads.quick.run, at.driver.unmount_volume, volume)
            await self._threads.quick.run(at.driver.unmount_volume, volume)
            if await self._stand_in(at.driver, volume, idmap, undo):
                volume = intentions.staging(volume.whole)
            await self._threads.mount.run(at.driver.mount_volume, volume, idmap)
            yield at.driver.volume_folder(volume)

    async def _stand_in(self, driver: Driver, volume: Volume, idmap: IdMap, undo: Rollback) -> bool:
        """Create the staging volume to be mounted instead of one that the mount would change for good.

        Returns whether it was. The next start removes it if the daemon is killed.
        """
        if not isinstance(driver, StandInDriver):
            return False
        new = intentions.staging(volume.whole)

        def create() -> bool:
            made = driver.stand_in(volume, new, idmap, Stopper())
            if made:
                undo.push(self._threads.remove.run, intentions.delete_all, driver, new)
            return made

        return await self._threads.mount.run(create)

    async def mount_folder(self, pool: str, volume: Volume, idmap: IdMap, name: str) -> Path:
        """Mount a directory stored next to the rootfs, as in the driver's method; return its path.

        Raises InvalidConfig if the pool does not support such directories.
        """
        at = self._known.available(pool)
        if not isinstance(at.driver, FolderDriver):
            raise InvalidConfig(
                f"Storage pools of the driver {at.kind.name!r} have no directories outside of the root disk"
            )
        async with self._locks.hold(pool, volume.whole):
            return await self._threads.mount.run(at.driver.mount_folder, volume, idmap, name)

    async def unmount(self, pool: str, volume: Volume) -> None:
        """Unmount an instance's rootfs; does nothing if it is not mounted.

        It may be mounted although its pool is not available any more. Raises NotFound (pool).
        """
        at = self._known.get(pool)
        async with self._locks.hold(pool, volume.whole):
            await self._threads.quick.run(at.driver.unmount_volume, volume)

    async def own_folders(self, pool: str, volume: Volume) -> list[str]:
        """Return the names of the directories beside a volume's rootfs. Raises NotFound, Unavailable."""
        at = await self._pools.ensure_available(pool)
        if not isinstance(at.driver, FolderDriver):
            return []
        return await self._threads.quick.run(at.driver.own_folders, volume)

    def folder(self, pool: str, volume: Volume) -> Path:
        """Return the directory of `rootfs/`, `metadata.yaml`, `templates/`. Raises NotFound, Unavailable."""
        return self._known.available(pool).driver.volume_folder(volume)

    def frozen_folders(self) -> list[Path]:
        """Return the directories of all available pools that hold snapshots and images."""
        drivers = [pool.driver for pool in self._known.all_available()]
        return [path for one in drivers if isinstance(one, FolderDriver) for path in one.frozen_folders()]

    async def usage(self, pool: str, volume: Volume) -> int | None:
        """Return the bytes that a volume uses; None if its driver cannot tell cheaply."""
        try:
            return await self._threads.count.run(self._known.available(pool).driver.volume_usage, volume)
        except (HostError, Unavailable) as error:
            log.info("no disk usage of %s: %s", volume.storage_name, error)
            return None

    async def remove_row(self, row_id: int) -> None:
        await self._database.write("discard storage volume", storage_volumes.delete, row_id)


def _holder(tx: Transaction, project: str, kind: int) -> str:
    """Return the project that holds a project's volumes of a type; images' volumes are in `default`."""
    if kind == VOLUME_IMAGE:
        return DEFAULT_PROJECT
    return effective(tx, project, "storage.volumes") if kind == VOLUME_CUSTOM else project


def _visible(tx: Transaction, scope: Scope, volumes: list[VolumeRow]) -> list[VolumeRow]:
    """Return the complete volumes in the scope; an image's volume is in every project that has the image."""
    volumes = [volume for volume in volumes if not volume.half_made]
    if not scope.restricted:
        return volumes
    images = {image.fingerprint for image in image_rows.get_all(tx, None) if scope.sees(image.project)}
    return [v for v in volumes if (v.name in images if v.type == VOLUME_IMAGE else scope.sees(v.project))]


def _users_of(users: Users, row: VolumeRow) -> Sequence[User]:
    if row.type != VOLUME_CUSTOM:
        return ()
    return users.get((row.pool, Volume("custom", row.project, row.name)), ())


def _forget(tx: Transaction, pool: str, volume: Volume, also: Change | None, fingerprint: str | None) -> bool:
    """Remove the row of a volume; return whether a project has the image of which it was created."""
    with contextlib.suppress(NotFound):
        storage_volumes.delete(tx, id_of(tx, pool, volume))
    if also is not None:
        also(tx)
    return fingerprint is not None and bool(image_rows.projects_with(tx, fingerprint))


def shown_size(pool: KnownPool, size: str) -> dict[str, str]:
    """Return the config keys that show the size of a volume."""
    if not size:
        return {}
    return {"size": size} if isinstance(pool.driver, QuotaDriver) else {"size": size, ENFORCED_KEY: "false"}


def note_size(tx: Transaction, pool: str, volume: Volume, shown: Mapping[str, str]) -> int:
    """Store what `shown_size` returned, and return the id of the volume's row."""
    row = row_of(tx, pool, volume)
    others = {key: value for key, value in row.config.items() if key not in ("size", ENFORCED_KEY)}
    storage_volumes.update(tx, replace(row, config={**others, **shown}))
    return row.id


def _intended(tx: Transaction, pool: str, volume: Volume, new: Volume) -> int:
    row_id = id_of(tx, pool, volume)
    storage_volumes.set_new_name(tx, row_id, intentions.renaming(volume, new))
    return row_id


def _renamed(tx: Transaction, row_id: int, pool: str, new: Volume, also: Change | None) -> None:
    storage_volumes.move(tx, row_id, new.project, pool, new.name)
    if also is not None:
        also(tx)
