"""Snapshots and copies of volumes, on one pool or from one to another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

from utsuwa.core import faults
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.rollback import Rollback
from utsuwa.core.volumes import Volume
from utsuwa.db import storage_volumes
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage import intentions
from utsuwa.storage.base import CopyDriver, LayerDriver
from utsuwa.storage.copying import Copying
from utsuwa.storage.drivers.file_copies import FileCopies
from utsuwa.storage.known_pools import KnownPool
from utsuwa.storage.links import Links
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volume_rows import id_of
from utsuwa.storage.volumes import Change, VolumeManager

log = logging.getLogger(__name__)


class CopyManager:
    """Creates snapshots and copies, and restores volumes from them; uses the locks of the volumes.

    A source that is mounted belongs to a running instance: the caller passes the id map of the mount, and
    ensures that none of its processes runs meanwhile. Any other one is unmounted. Snapshots have no rows
    here: who creates one inserts its own row before, and calls `delete_snapshot` for those whose creation
    was interrupted.
    """

    def __init__(
        self,
        database: Database,
        pools: PoolManager,
        volumes: VolumeManager,
        images: PoolImages,
        links: Links,
        threads: StorageThreads,
        locks: NamedLocks,
    ) -> None:
        self._database = database
        self._pools = pools
        self._volumes = volumes
        self._images = images
        self._links = links
        self._threads = threads
        self._locks = locks
        self._merges: dict[asyncio.Task[None], Stopper] = {}

    async def stop(self) -> None:
        """Stop background work; the next snapshot or copy does what is not done then."""
        for stopper in self._merges.values():
            stopper.stop()
        await asyncio.gather(*self._merges, return_exceptions=True)

    # Snapshots

    async def create_snapshot(self, pool: str, snapshot: Volume, *, mounted: IdMap | None = None) -> None:
        """Create a snapshot of a volume.

        Leaves nothing behind if it raises NotFound (pool), Unavailable, OutOfSpace or HostError.
        """
        at = await self._pools.ensure_available(pool)
        async with self._locks.hold(pool, snapshot.whole), Rollback() as undo:
            await self.copy_files(Copying(pool, snapshot.whole, pool, snapshot, mounted=mounted), undo)
            await self._threads.quick.run(self._links.add_snapshot, at.driver, snapshot)
            undo.keep()
        self.merge_later(at, snapshot.whole)

    async def rename_snapshot(
        self, pool: str, snapshot: Volume, new_name: str, also: Change | None = None
    ) -> None:
        """Rename the files of a snapshot; unmounts it first. Raises HostError, also if the new name is taken.

        `also` runs in the transaction with which the renaming is complete; if anything fails or is
        interrupted before, the snapshot has its old name.
        """
        at = await self._pools.ensure_available(pool)
        new = replace(snapshot, snapshot=new_name)
        intention = f"{snapshot.snapshot}/{new_name}"
        async with self.changed(at, snapshot.whole, intention, also) as undo:
            revert = partial(self._threads.quick.run, at.driver.rename_volume, new, snapshot)
            await self._threads.quick.make(undo, revert, at.driver.rename_volume, snapshot, new)

    async def delete_snapshot(self, pool: str, snapshot: Volume) -> None:
        """Delete the files of a snapshot, as far as they exist; the others keep all of theirs.

        What the caller has committed is on disk before. Raises NotFound (pool), Unavailable, HostError.
        """
        at = await self._pools.ensure_available(pool)

        def delete_files() -> None:
            at.driver.delete_volume(snapshot)
            faults.point("snapshot is removed")
            self._links.update_snapshots(at.driver, snapshot.whole)

        async with self._locks.hold(pool, snapshot.whole):
            fingerprint, needed = await self._threads.quick.run(
                lambda: (at.images.image_of(snapshot), at.images.image_of(snapshot.whole))
            )
            await self._database.settle()
            await self._threads.remove.run(delete_files)
        if (
            fingerprint is not None and fingerprint != needed
        ):  # finding other users takes long if they are many
            await self._images.forget_if_possible(at, fingerprint, trim=True)

    async def update_link(self, pool: KnownPool, snapshot: Volume) -> None:
        """Have the link to the directory of a volume's snapshots exist if there are any."""
        await self._threads.quick.run(self._links.update_snapshots, pool.driver, snapshot.whole)

    # Copies

    async def copy(self, copying: Copying, size: str = "") -> None:
        """Create a volume from another one, with some of its snapshots, or from a snapshot.

        As `VolumeManager.create`, with the same errors.
        """
        source_at, at = await self._pools_of(copying)
        async with (
            self.both((source_at.name, copying.source), (at.name, copying.target)),
            self._volumes.creation(at, copying.target, size) as undo,
        ):
            await self.copy_all(copying, undo)
            await self.update_link(at, copying.target)
        self.merge_later(source_at, copying.source)

    async def replace(self, copying: Copying, also: Change | None = None) -> None:
        """Replace the files of a volume, which is not in use, by those of another one or of a snapshot.

        That is how a volume is restored. `also` runs in the transaction with which the replacement is
        complete; if anything fails or is interrupted before, the volume has its old files. Neither has it
        other snapshots then. Raises the errors of `copy`.
        """
        await self._replace(copying, also)

    async def refresh(self, copying: Copying, also: Change, gone: Sequence[str] = ()) -> None:
        """Bring a volume, an older copy which is not in use, up to date with its source.

        As `replace`, but what has not changed is not copied, as far as the drivers can tell. The volume gets
        the snapshots that are copied, and loses those that are `gone`; a name may be in both.
        """
        await self._replace(replace(copying, like=copying.target), also, gone)

    async def _replace(self, copying: Copying, also: Change | None, gone: Sequence[str] = ()) -> None:
        source_at, at = await self._pools_of(copying)
        target, snapshots = copying.target, copying.snapshots
        locks = self.both((source_at.name, copying.source), (at.name, target))
        async with self.replaced(at, target, locks, also, snapshots, gone) as (staging, undo):
            await self.copy_all(replace(copying, target=staging), undo)
        if snapshots or gone:
            await self.update_link(at, target)
        self.merge_later(source_at, copying.source)
        self.merge_later(at, target)

    async def _pools_of(self, copying: Copying) -> tuple[KnownPool, KnownPool]:
        """Return the pools of source and target. Raises NotFound, Unavailable."""
        at = await self._pools.ensure_available(copying.pool)
        return await self._pools.ensure_available(copying.source_pool), at

    async def rebuild(
        self,
        pool: str,
        target: Volume,
        idmap: IdMap,
        image: ImageSource | None,
        also: Change | None = None,
    ) -> None:
        """Replace the files of a volume, which is not in use, by those of an image; by none without one.

        As `replace`, with the errors of `VolumeManager.create`.
        """
        at = await self._pools.ensure_available(pool)
        async with self.replaced(at, target, self._locks.hold(pool, target), also) as (staging, undo):
            await self._volumes.create_files(at, staging, idmap, image, undo)

    @contextlib.asynccontextmanager
    async def replaced(
        self,
        pool: KnownPool,
        target: Volume,
        locks: AbstractAsyncContextManager[None],
        also: Change | None,
        snapshots: Sequence[str] = (),
        gone: Sequence[str] = (),
    ) -> AsyncIterator[tuple[Volume, Rollback]]:
        """Replace the files of a volume by those of its staging volume, which the block creates.

        The volume gets the `snapshots` of the staging volume, and loses those that are `gone`.
        """

        def swap_files() -> tuple[str | None, str | None]:
            images = pool.images.image_of(target), pool.images.image_of(intentions.staging(target))
            intentions.swap_files(pool.driver, target, snapshots, gone)
            return images

        intention = intentions.replacement(snapshots)
        async with locks:
            # The next start removes a staging volume also without the record, but not its snapshots alone.
            changed = self.changed(pool, target, intention, also, locked=True, on_disk=bool(snapshots))
            async with changed as undo:
                yield intentions.staging(target), undo
                await self._database.settle()
                undo.push(self._threads.remove.run, intentions.revert_swap, pool.driver, target, snapshots)
                old, new = await self._threads.quick.run(swap_files)
            await self._remove_replaced(pool, target)
        if old is not None:
            await self._images.forget_if_possible(pool, old, trim=True, used=old == new)

    async def _remove_replaced(self, pool: KnownPool, volume: Volume) -> None:
        """Remove the old files; if that fails, the next start does it."""
        try:
            await self._threads.remove.run(intentions.remove_replaced, pool.driver, volume)
        except UtsuwaError as error:
            log.warning("the old files of %s are kept until the next start: %s", volume.storage_name, error)

    # Steps

    async def copy_all(self, copying: Copying, undo: Rollback) -> None:
        """Create the files of a volume and of its snapshots as copies; the caller holds both volumes."""
        source_at, at = await self._pools_of(copying)
        steps = copying.snapshots and source_at is not at and isinstance(at.driver, LayerDriver)
        if not steps:
            for name in copying.snapshots:
                await self.copy_files(copying.of_snapshot(name), undo)
            async with copying.held():
                await self.copy_files(copying, undo)
            return
        # Each is made of the one before it, which shares what has not changed.
        for name in copying.snapshots:
            if name == copying.snapshots[0]:
                await self.copy_files(copying.from_snapshot(name), undo)
            else:
                await self._update(copying.from_snapshot(name))
            snapshot = copying.target.snapshot_named(name)
            await self.copy_files(Copying(at.name, copying.target, at.name, snapshot), undo)
        async with copying.held():
            await self._update(copying)

    async def _update(self, copying: Copying) -> None:
        """Bring a volume up to date with the next step."""
        source_at, at = await self._pools_of(copying)
        stopper = Stopper()
        update = FileCopies(source_at.driver, at.driver).update_volume
        run = self._threads.fill.stopped_by(stopper.stop).run
        await run(update, copying.source, copying.target, stopper, mounted=copying.mounted)

    async def copy_files(self, copying: Copying, undo: Rollback) -> None:
        """Create the files of one volume or snapshot; the caller holds the locks of both volumes."""
        source_at, at = await self._pools_of(copying)
        source, target = copying.source, copying.target
        copies: CopyDriver = at.copies
        if source_at is not at:
            copies = FileCopies(source_at.driver, at.driver)
        stopper = Stopper()
        # Layers, which custom volumes do not have, are copied quickly: that must not wait for unpacking.
        layered = isinstance(copies, LayerDriver) and source.kind != "custom"
        layers = layered and (copying.mounted is None or copying.like is None)
        threads = self._threads.mount if layers else self._threads.fill
        make = threads.stopped_by(stopper.stop).make
        revert = partial(self._threads.remove.run, at.driver.delete_volume, target)
        idmap, mounted, like = copying.idmap, copying.mounted, copying.like
        # fmt: off
        await make(
            undo, revert, copies.copy_volume, source, target, idmap, stopper, mounted=mounted, like=like
        )
        # fmt: on

    @contextlib.asynccontextmanager
    async def both(self, *places: tuple[str, Volume]) -> AsyncIterator[None]:
        """Hold the locks of volumes on pools, some of which may be the same."""
        names = {(pool, volume.whole) for pool, volume in places}
        async with contextlib.AsyncExitStack() as locks:
            for name in sorted(names, key=lambda name: (name[0], name[1].path)):
                await locks.enter_async_context(self._locks.hold(*name))
            yield

    @contextlib.asynccontextmanager
    async def changed(
        self,
        pool: KnownPool,
        volume: Volume,
        intention: str,
        also: Change | None,
        *,
        locked: bool = False,
        on_disk: bool = True,
    ) -> AsyncIterator[Rollback]:
        """Record a change of a volume's files, which the block makes, and complete it with `also`.

        The record is on disk when the block is entered, unless that makes no difference yet.
        """
        lock = contextlib.nullcontext() if locked else self._locks.hold(pool.name, volume)
        async with lock, Rollback() as undo:
            self._database.engine.check_room()  # for the undo steps
            row_id = await self._database.commit("files are changed", _intend, pool.name, volume, intention)
            undo.push(self._volumes.forget_intention, row_id)
            if on_disk:
                await self._database.settle()
            else:
                self._database.sync_soon()
            yield undo
            await self._database.write("files are changed", _complete, row_id, also)
            undo.keep()

    # Layers

    def merge_later(self, pool: KnownPool, volume: Volume) -> None:
        """Merge frozen layers in the background, if a volume has many."""
        if isinstance(pool.driver, LayerDriver):
            stopper = Stopper()
            task = asyncio.create_task(self._merge(pool, pool.driver, volume.whole, stopper), name="merge")
            self._merges[task] = stopper
            task.add_done_callback(self._merges.pop)

    async def _merge(self, pool: KnownPool, driver: LayerDriver, volume: Volume, stopper: Stopper) -> None:
        try:
            async with self._locks.hold(pool.name, volume):
                merge = await self._threads.quick.run(driver.layer_merge, volume)
            if merge is None:
                return
            try:
                await self._threads.remove.run(merge.run, stopper)
                async with self._locks.hold(pool.name, volume):
                    await self._threads.quick.run(merge.finish)
            finally:
                await self._threads.remove.run(merge.end)
        except UtsuwaError as error:
            log.info("layers of %s are not merged: %s", volume.storage_name, error)


def _intend(tx: Transaction, pool: str, volume: Volume, intention: str) -> int:
    row_id = id_of(tx, pool, volume)
    storage_volumes.set_new_name(tx, row_id, intention)
    return row_id


def _complete(tx: Transaction, row_id: int, also: Change | None) -> None:
    storage_volumes.set_new_name(tx, row_id, "")
    if also is not None:
        also(tx)
