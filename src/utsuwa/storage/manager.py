"""The daemon's storage: pools, with the volumes and images on them. Drivers access the host."""

from __future__ import annotations

from utsuwa.core.locks import NamedLocks
from utsuwa.core.paths import StatePaths
from utsuwa.db.database import Database
from utsuwa.host.mounts.userns import close_user_namespaces
from utsuwa.operations.operations import Operations
from utsuwa.operations.retries import Retries
from utsuwa.operations.warnings import Warnings
from utsuwa.storage.arrivals import Arrivals
from utsuwa.storage.copies import CopyManager
from utsuwa.storage.custom.context import CustomContext
from utsuwa.storage.custom.manager import CustomVolumes
from utsuwa.storage.known_pools import KnownPools
from utsuwa.storage.layered import LayerTransfers
from utsuwa.storage.links import Links
from utsuwa.storage.moves import MoveManager
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.receiving import Receiving
from utsuwa.storage.sweep import Sweep
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volumes import VolumeManager


class StorageManager:
    """The managers of pools, volumes and images, and their start and stop."""

    def __init__(
        self,
        database: Database,
        paths: StatePaths,
        operations: Operations,
        warnings: Warnings,
        retries: Retries,
    ) -> None:
        known, threads, links = KnownPools(), StorageThreads(), Links(paths.containers, paths.snapshots)
        self._threads = threads
        self._links = links
        self.images = PoolImages(database, known, threads)
        self._sweep = Sweep(database, self.images, links, threads)
        self.pools = PoolManager(
            database, paths, operations.events, known, self.images, self._sweep, threads, warnings, retries
        )
        locks = NamedLocks()
        self.volumes = VolumeManager(
            database, known, self.pools, self.images, links, threads, warnings, locks
        )
        self.copies = CopyManager(database, self.pools, self.volumes, self.images, links, threads, locks)
        arrivals = Arrivals(self.volumes, self.copies, locks)
        self.receiving = Receiving(self.pools, self.volumes, arrivals, self.copies, threads)
        self.layers = LayerTransfers(self.pools, arrivals, self.copies, self.images, threads, locks)
        self.custom = CustomVolumes(
            CustomContext(database, known, self.pools, self.volumes, self.copies, threads, locks, operations)
        )
        self.moves = MoveManager(database, self.pools, self.volumes, self.copies, self.images, links, threads)

    async def start(self) -> None:
        """Mount every pool, and remove what an interrupted daemon left incomplete."""
        known = await self._sweep.known()
        await self.pools.start(known)
        await self._threads.quick.run(self._links.sweep, known)
        self.images.start()

    async def stop(self, *, unmount: bool = False) -> None:
        """Release all resources. Mounts are kept, as containers keep running.

        With `unmount`, which requires that no container is running, all mounts are removed.
        """
        await self.copies.stop()
        await self.images.stop()
        if unmount:
            await self.pools.unmount_all()
        await self._threads.quick.run(close_user_namespaces)
