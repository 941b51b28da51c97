"""Volumes whose files come from another server: what fills their trees is up to the caller."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.rollback import Rollback
from utsuwa.core.volumes import Volume
from utsuwa.storage.copies import CopyManager
from utsuwa.storage.copying import Copying
from utsuwa.storage.known_pools import KnownPool
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volumes import Change, VolumeManager

_UNMAPPED = IdMap()


@dataclass(frozen=True)
class Incoming:
    """A volume that is being received; its lock is held. If that fails, nothing is left of it."""

    pool: KnownPool
    volume: Volume
    undo: Rollback
    copies: CopyManager
    threads: StorageThreads

    @contextlib.asynccontextmanager
    async def opened(self, owners: IdMap) -> AsyncIterator[Path]:
        """Mount the volume for the block, such that ids of the sender's files become the container's own.

        Yields the volume's directory, with the tree `rootfs/`. Raises HostError.
        """
        driver, threads = self.pool.driver, self.threads
        try:
            await threads.mount.run(driver.mount_volume, self.volume, owners)
            yield driver.volume_folder(self.volume)
        finally:
            await threads.quick.run(driver.unmount_volume, self.volume)

    async def copy_of(self, source: Volume, idmap: IdMap = _UNMAPPED) -> None:
        """Create the volume as a copy of another one on its pool. Raises OutOfSpace, HostError."""
        pool = self.pool.name
        await self.copies.copy_files(Copying(pool, source, pool, self.volume, idmap), self.undo)

    async def snapshot(self, name: str) -> None:
        """Take a snapshot of the volume as it is now. Raises OutOfSpace, HostError."""
        pool, target = self.pool.name, self.volume.snapshot_named(name)
        await self.copies.copy_files(Copying(pool, self.volume, pool, target), self.undo)


class Receiving:
    """Creates and replaces volumes of instances with what is received."""

    def __init__(
        self,
        pools: PoolManager,
        volumes: VolumeManager,
        copies: CopyManager,
        threads: StorageThreads,
        locks: NamedLocks,
    ) -> None:
        self._pools = pools
        self._volumes = volumes
        self._copies = copies
        self._threads = threads
        self._locks = locks

    @contextlib.asynccontextmanager
    async def created(
        self, pool: str, volume: Volume, size: str, image: ImageSource | None
    ) -> AsyncIterator[Incoming]:
        """Create a volume that the block completes: empty, or with the files of an image.

        As `VolumeManager.create`, with the same errors.
        """
        at = await self._pools.ensure_available(pool)
        async with self._locks.hold(pool, volume), self._volumes.creation(at, volume, size) as undo:
            await self._volumes.create_files(at, volume, _UNMAPPED, image, undo)
            yield self._incoming(at, volume, undo)
            await self._copies.update_link(at, volume)
        self._copies.merge_later(at, volume)

    @contextlib.asynccontextmanager
    async def replaced(
        self, pool: str, volume: Volume, idmap: IdMap, also: Change, new: Sequence[str], gone: Sequence[str]
    ) -> AsyncIterator[Incoming]:
        """Replace a volume, which is not in use, by a copy of it that the block brings up to date.

        The volume gets the `new` snapshots, which the block takes, and loses those that are `gone`. As
        `CopyManager.refresh`, with the same errors.
        """
        at = await self._pools.ensure_available(pool)
        held = self._locks.hold(pool, volume)
        async with self._copies.replaced(at, volume, held, also, new, gone) as (staging, undo):
            incoming = self._incoming(at, staging, undo)
            await incoming.copy_of(volume, idmap)
            yield incoming
        if new or gone:
            await self._copies.update_link(at, volume)
        self._copies.merge_later(at, volume)

    def _incoming(self, pool: KnownPool, volume: Volume, undo: Rollback) -> Incoming:
        return Incoming(pool, volume, undo, self._copies, self._threads)
