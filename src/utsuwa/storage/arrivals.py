"""What is around the receiving of a volume, however its files are transferred: locks, records, undo steps."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from utsuwa.core.locks import NamedLocks
from utsuwa.core.rollback import Rollback
from utsuwa.core.volumes import Volume
from utsuwa.storage.copies import CopyManager
from utsuwa.storage.known_pools import KnownPool
from utsuwa.storage.volumes import Change, VolumeManager


class Arrivals:
    """Creates and replaces volumes with what is received; if the block fails, nothing is left of it."""

    def __init__(self, volumes: VolumeManager, copies: CopyManager, locks: NamedLocks) -> None:
        self._volumes = volumes
        self._copies = copies
        self._locks = locks

    @contextlib.asynccontextmanager
    async def created(self, pool: KnownPool, volume: Volume, size: str) -> AsyncIterator[Rollback]:
        """Have the block create the files of a volume. As `VolumeManager.creation`."""
        async with self._locks.hold(pool.name, volume), self._volumes.creation(pool, volume, size) as undo:
            yield undo
            await self._copies.update_link(pool, volume)
        self._copies.merge_later(pool, volume)

    @contextlib.asynccontextmanager
    async def replaced(
        self, pool: KnownPool, volume: Volume, also: Change, new: Sequence[str], gone: Sequence[str]
    ) -> AsyncIterator[tuple[Volume, Rollback]]:
        """Have the block create the files of a staging volume, which replace those of a volume.

        That is not in use; it gets the `new` snapshots of the staging volume, and loses those that are
        `gone`. As `CopyManager.refresh`, with the same errors.
        """
        held = self._locks.hold(pool.name, volume)
        async with self._copies.replaced(pool, volume, held, also, new, gone) as found:
            yield found
        if new or gone:
            await self._copies.update_link(pool, volume)
        self._copies.merge_later(pool, volume)
