"""Volumes that are sent to and received from other servers layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utsuwa.core.errors import Unavailable
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.rollback import Rollback
from utsuwa.core.volumes import Volume
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.arrivals import Arrivals
from utsuwa.storage.copies import CopyManager
from utsuwa.storage.known_pools import KnownPool
from utsuwa.storage.layer_transfer import Chain, IncomingLayers, LayerTransferDriver, OutgoingLayers
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volumes import Change

_UNMAPPED = IdMap()


@dataclass(frozen=True)
class LayeredVolume:
    """A volume that is being received; its lock is held. If that fails, nothing is left of it."""

    pool: KnownPool
    volume: Volume
    idmap: IdMap
    undo: Rollback
    layers: IncomingLayers
    images: PoolImages
    held: contextlib.AsyncExitStack
    """Holds the images until the volume is complete."""
    threads: StorageThreads

    async def use_image(self, image: ImageSource) -> None:
        """Use an image for the layer that it is. Raises InvalidImage, OutOfSpace, HostError."""
        self.undo.push(self.images.forget_if_possible, self.pool, image.fingerprint)
        await self.held.enter_async_context(self.images.held(self.pool, image, Stopper()))
        await self.threads.quick.run(self.layers.use_image, image)

    async def create(self, snapshot: str | None, chain: Chain, beside: Path) -> None:
        """Create the volume or one of its snapshots, as `IncomingLayers.create`."""
        target = self.volume if snapshot is None else self.volume.snapshot_named(snapshot)
        idmap = self.idmap if snapshot is None else _UNMAPPED
        revert = partial(self.threads.remove.run, self.pool.driver.delete_volume, target)
        create = self.layers.create
        await self.threads.mount.make(self.undo, revert, create, target, idmap, chain, beside)


class LayerTransfers:
    """Sends and receives volumes of pools with layers."""

    def __init__(
        self,
        pools: PoolManager,
        arrivals: Arrivals,
        copies: CopyManager,
        images: PoolImages,
        threads: StorageThreads,
        locks: NamedLocks,
    ) -> None:
        self._pools = pools
        self._arrivals = arrivals
        self._copies = copies
        self._images = images
        self._threads = threads
        self._locks = locks

    # Sending

    async def can_send(
        self, pool: str, volume: Volume, snapshots: Sequence[Volume], mounted: IdMap | None
    ) -> bool:
        """Return whether a volume can be sent layer by layer. Raises NotFound, Unavailable, HostError."""
        at = await self._pools.ensure_available(pool)
        driver = at.driver
        if not isinstance(driver, LayerTransferDriver):
            return False
        return await self._threads.count.run(driver.can_send_layers, volume, snapshots, mounted)

    @contextlib.asynccontextmanager
    async def outgoing(
        self,
        pool: str,
        volume: Volume,
        snapshots: Sequence[Volume],
        mounted: IdMap | None,
        quiet: contextlib.AbstractAsyncContextManager[None],
    ) -> AsyncIterator[OutgoingLayers]:
        """Freeze what a volume has changed; its layers and those of snapshots are kept for the block.

        `mounted` is the id map of its mount, if that belongs to a running instance, none of whose processes
        runs within `quiet`. Raises OutOfSpace, HostError.
        """
        at, driver = await self._driver(pool)
        stopper = Stopper()
        run = self._threads.fill.stopped_by(stopper.stop).run
        found: list[OutgoingLayers] = []  # which end also if this is cancelled while they are being frozen

        def freeze() -> None:
            found.append(driver.outgoing(volume, snapshots, stopper, mounted=mounted))

        try:
            async with self._locks.hold(pool, volume.whole), quiet:
                await run(freeze)
            yield found[0]
        finally:
            for layers in found:
                await self._threads.remove.run(layers.end)
            self._copies.merge_later(at, volume)

    # Receiving

    async def can_receive(self, pool: str) -> bool:
        """Raises NotFound, Unavailable."""
        driver = (await self._pools.ensure_available(pool)).driver
        return isinstance(driver, LayerTransferDriver) and driver.can_receive_layers()

    @contextlib.asynccontextmanager
    async def created(self, pool: str, volume: Volume, size: str) -> AsyncIterator[LayeredVolume]:
        """Create a volume with snapshots, which the block creates. As `VolumeManager.create`."""
        at, _ = await self._driver(pool)
        async with (
            self._arrivals.created(at, volume, size) as undo,
            self._incoming(at, volume, _UNMAPPED, undo, ()) as found,
        ):
            yield found

    @contextlib.asynccontextmanager
    async def replaced(
        self, pool: str, volume: Volume, idmap: IdMap, also: Change, new: Sequence[str], gone: Sequence[str]
    ) -> AsyncIterator[LayeredVolume]:
        """Replace a volume by what the block creates, which may use its layers. As `Arrivals.replaced`."""
        at, _ = await self._driver(pool)
        async with self._arrivals.replaced(at, volume, also, new, gone) as (staging, undo):
            names = await self._threads.quick.run(at.driver.snapshots, volume)
            like = [volume, *map(volume.snapshot_named, names)]
            async with self._incoming(at, staging, idmap, undo, like) as found:
                yield found

    @contextlib.asynccontextmanager
    async def _incoming(
        self, pool: KnownPool, volume: Volume, idmap: IdMap, undo: Rollback, like: Sequence[Volume]
    ) -> AsyncIterator[LayeredVolume]:
        _, driver = await self._driver(pool.name)
        found: list[IncomingLayers] = []

        def begin() -> None:
            found.append(driver.incoming(like))

        try:
            await self._threads.quick.run(begin)
            (layers,) = found
            async with contextlib.AsyncExitStack() as held:
                yield LayeredVolume(pool, volume, idmap, undo, layers, self._images, held, self._threads)
        finally:
            for layers in found:
                await self._threads.remove.run(layers.end)

    async def _driver(self, pool: str) -> tuple[KnownPool, LayerTransferDriver]:
        at = await self._pools.ensure_available(pool)
        if not isinstance(at.driver, LayerTransferDriver):
            raise Unavailable(f"Storage pool {pool!r} has no layers")
        return at, at.driver
