"""Volumes whose files come from another server: what fills their trees is up to the caller."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.rollback import Rollback
from utsuwa.core.volumes import Volume
from utsuwa.storage.arrivals import Arrivals
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

    @property
    def folder(self) -> Path:
        """The volume's directory, whose tree can only be used while it is `opened`."""
        return self.pool.driver.volume_folder(self.volume)

    @contextlib.asynccontextmanager
    async def opened(self, owners: IdMap) -> AsyncIterator[Path]:
        """Mount the volume for the block, such that ids of the sender's files become the container's own.

        Yields the volume's directory, with the tree `rootfs/`. Raises HostError.
        """
        driver, threads = self.pool.driver, self.threads
        try:
            await threads.mount.run(driver.mount_volume, self.volume, owners)
            yield self.folder
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
        arrivals: Arrivals,
        copies: CopyManager,
        threads: StorageThreads,
    ) -> None:
        self._pools = pools
        self._volumes = volumes
        self._arrivals = arrivals
        self._copies = copies
        self._threads = threads

    @contextlib.asynccontextmanager
    async def created(
        self, pool: str, volume: Volume, size: str, image: ImageSource | None
    ) -> AsyncIterator[Incoming]:
        """Create a volume that the block completes: empty, or with the files of an image.

        As `VolumeManager.create`, with the same errors.
        """
        at = await self._pools.ensure_available(pool)
        async with self._arrivals.created(at, volume, size) as undo:
            await self._volumes.create_files(at, volume, _UNMAPPED, image, undo)
            yield self._incoming(at, volume, undo)

    @contextlib.asynccontextmanager
    async def replaced(
        self, pool: str, volume: Volume, idmap: IdMap, also: Change, new: Sequence[str], gone: Sequence[str]
    ) -> AsyncIterator[Incoming]:
        """Replace a volume by a copy of it that the block brings up to date. As `Arrivals.replaced`."""
        at = await self._pools.ensure_available(pool)
        async with self._arrivals.replaced(at, volume, also, new, gone) as (staging, undo):
            incoming = self._incoming(at, staging, undo)
            await incoming.copy_of(volume, idmap)
            yield incoming

    def _incoming(self, pool: KnownPool, volume: Volume, undo: Rollback) -> Incoming:
        return Incoming(pool, volume, undo, self._copies, self._threads)
