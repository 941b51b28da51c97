"""The daemon's storage: its pools, the volumes and the images on them. Drivers do the work on the host."""

from __future__ import annotations

from utsuwa.core.paths import StatePaths
from utsuwa.db.database import Database
from utsuwa.host.mounts.userns import close_user_namespaces
from utsuwa.operations.events import EventHub
from utsuwa.storage.known_pools import KnownPools
from utsuwa.storage.links import Links
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.sweep import Sweep
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volumes import VolumeManager


class StorageManager:
    """The parts of the storage, and their start and end."""

    def __init__(self, database: Database, paths: StatePaths, events: EventHub) -> None:
        known, threads, links = KnownPools(), StorageThreads(), Links(paths.containers)
        self._threads = threads
        self._links = links
        self.images = PoolImages(database, known, threads)
        self._sweep = Sweep(database, self.images, links, threads)
        self.pools = PoolManager(database, paths, events, known, self.images, self._sweep, threads)
        self.volumes = VolumeManager(database, known, self.pools, self.images, links, threads)

    async def start(self) -> None:
        """Mount every pool, and take away what a kill left half-made."""
        known = await self._sweep.known()
        await self.pools.start(known)
        await self._threads.quick.run(self._links.sweep, known)
        self.images.start()

    async def stop(self, *, unmount: bool = False) -> None:
        """Let go of what the daemon holds. Mounts stay, for containers run on.

        `unmount` is for the shutdown of all: no container runs any more, and no mount is left.
        """
        await self.images.stop()
        if unmount:
            await self.pools.unmount_all()
        await self._threads.quick.run(close_user_namespaces)
