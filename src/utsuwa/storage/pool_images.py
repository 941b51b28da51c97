"""Images on pools: stored there for the instances created from them, removed when unused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from utsuwa.core.errors import UtsuwaError
from utsuwa.core.image_source import ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.volumes import image_volume
from utsuwa.db import images as image_rows
from utsuwa.db import storage_pools, storage_volumes
from utsuwa.db.codes import VOLUME_IMAGE
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction
from utsuwa.host.processes.run import Stopper
from utsuwa.storage.ahead import Ahead
from utsuwa.storage.known_pools import KnownPool, KnownPools
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volume_rows import new_row, replace_rows

log = logging.getLogger(__name__)

_SYNC_SECONDS = 40.0
"""After so long the kernel has written most of a new file by itself."""


class PoolImages:
    """The images on all pools of the daemon. Each image on each pool has a lock."""

    def __init__(self, database: Database, pools: KnownPools, threads: StorageThreads) -> None:
        self._database = database
        self._pools = pools
        self._threads = threads
        self._locks = NamedLocks()
        self._holds: Counter[tuple[str, str]] = Counter()
        self._known_rows: set[tuple[str, str]] = set()
        """Pools and fingerprints of images known to be stored, with their rows."""
        self._ahead = Ahead(self._bring_ahead)
        self._background: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """The pools have been mounted."""
        self._in_background(self._sync())

    async def stop(self) -> None:
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._ahead.end()
        await self._sync(after=0)

    def prepare(self, image: ImageSource) -> None:
        """Start to prefetch a new image on the pools where instances of it are likely to be created."""
        self._in_background(self._prepare(image))

    async def delete(self, fingerprint: str) -> None:
        """Remove an image whose row is gone from all pools on which no instance depends on it."""
        for pool in self._pools.all_available():
            if self._holds[pool.name, fingerprint] <= 1:  # by nobody but who brings it there ahead
                await self._ahead.end(pool.name, fingerprint)
        for pool in self._pools.all_available():
            await self._forget(pool, fingerprint)

    @contextlib.asynccontextmanager
    async def held(
        self, pool: KnownPool, image: ImageSource, stopper: Stopper, *, ahead: bool = False
    ) -> AsyncIterator[None]:
        """Store an image on the pool and keep it there for the duration of the block."""
        key = (pool.name, image.fingerprint)
        self._holds[key] += 1
        try:
            async with self._locks.hold(*key):
                # A stored image takes little time: it must not queue behind others that are being unpacked.
                threads = self._threads.mount if key in self._known_rows else self._threads.fill
                ensure = threads.stopped_by(stopper.stop).run
                await ensure(pool.images.ensure_image, image, stopper, ahead=ahead)
                if pool.shares_images:
                    await self._note_row(*key)
            yield
        finally:
            self._holds[key] -= 1
            if not self._holds[key]:
                del self._holds[key]
            await self.forget_if_possible(pool, image.fingerprint)

    async def forget_if_possible(self, pool: KnownPool, fingerprint: str, *, trim: bool = False) -> None:
        """Take an image off a pool where neither the daemon nor an instance needs it any more.

        `trim` is for one of whose instances one has gone: its form may have been that one's alone.
        What was done with an instance stands, whatever becomes of its image: the next start looks.
        """
        try:
            await self._forget(pool, fingerprint, trim=trim)
        except UtsuwaError as error:
            log.warning("image %s stays on storage pool %r: %s", fingerprint[:12], pool.name, error)

    async def leave(self, pool: KnownPool) -> None:
        """Stop prefetching on a pool that is being deleted."""
        await self._ahead.end(pool=pool.name)

    async def bring_anew(self, pool: KnownPool) -> None:
        """Drop unused images after a change of config; the next use stores them in the new form."""
        await self._ahead.end(pool=pool.name)
        for fingerprint in await self._threads.quick.run(pool.images.images):
            await self._bring_anew(pool, fingerprint)

    async def sweep(self, pool: KnownPool) -> None:
        """Remove unused images from a pool that was just mounted, and match rows to those that stay."""
        for fingerprint in await self._threads.quick.run(pool.images.images):
            await self._forget(pool, fingerprint, trim=True)
        there = set(await self._threads.quick.run(pool.images.images)) if pool.shares_images else set()
        await self._database.write("sweep image volumes", _agree, pool.name, there)
        self._known_rows.update((pool.name, fingerprint) for fingerprint in there)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _prepare(self, image: ImageSource) -> None:
        use = await self._database.read("use of pools", storage_pools.used_by)
        for pool in self._pools.all_available():
            if use[pool.name].profiles and pool.shares_images:
                self._ahead.begin(pool.name, image)

    async def _bring_ahead(self, pool: str, image: ImageSource, stopper: Stopper) -> None:
        if not await self._database.read("projects with image", image_rows.projects_with, image.fingerprint):
            return
        async with self.held(self._pools.available(pool), image, stopper, ahead=True):
            pass

    async def _sync(self, after: float = _SYNC_SECONDS) -> None:
        """Sync recently stored images to disk."""
        await asyncio.sleep(after)
        for pool in self._pools.all_available():
            try:
                await self._threads.remove.run(pool.images.sync_images)
            except UtsuwaError as error:
                log.warning("storage pool %r: %s", pool.name, error)

    async def _note_row(self, pool: str, fingerprint: str) -> None:
        if (pool, fingerprint) not in self._known_rows:
            await self._database.write("image is on the pool", _note, pool, fingerprint)
            self._known_rows.add((pool, fingerprint))
            self._in_background(self._sync())

    async def _forget(self, pool: KnownPool, fingerprint: str, *, trim: bool = False) -> None:
        async with self._locks.hold(pool.name, fingerprint):
            if self._holds[pool.name, fingerprint]:
                return
            projects = await self._database.read("projects with image", image_rows.projects_with, fingerprint)
            if projects or await self._threads.quick.run(pool.images.image_users, fingerprint):
                if trim:
                    await self._threads.remove.run(pool.images.trim_image, fingerprint)
                return
            await self._take_off(pool, fingerprint)

    async def _bring_anew(self, pool: KnownPool, fingerprint: str) -> None:
        async with self._locks.hold(pool.name, fingerprint):
            if self._holds[pool.name, fingerprint]:
                return
            self._known_rows.discard((pool.name, fingerprint))
            if await self._threads.quick.run(pool.images.image_users, fingerprint):
                await self._threads.remove.run(pool.images.trim_image, fingerprint)
            else:
                await self._take_off(pool, fingerprint)

    async def _take_off(self, pool: KnownPool, fingerprint: str) -> None:
        """Remove an image from a pool; the caller holds its lock."""
        self._known_rows.discard((pool.name, fingerprint))
        await self._threads.remove.run(pool.images.delete_image, fingerprint)
        await self._database.write("image is off the pool", _forget_row, pool.name, fingerprint)


def _agree(tx: Transaction, pool: str, there: set[str]) -> None:
    """Have exactly one row for each image that is stored on the pool."""
    rows = storage_volumes.get_here(tx, pool, VOLUME_IMAGE)
    stale = [row.id for row in rows if row.name not in there]
    lacking = sorted(there - {row.name for row in rows})
    replace_rows(tx, stale, [new_row(pool, image_volume(fingerprint)) for fingerprint in lacking])


def _note(tx: Transaction, pool: str, fingerprint: str) -> None:
    known = storage_volumes.get_here(tx, pool, VOLUME_IMAGE)
    if all(row.name != fingerprint for row in known):
        storage_volumes.insert(tx, new_row(pool, image_volume(fingerprint)))


def _forget_row(tx: Transaction, pool: str, fingerprint: str) -> None:
    for row in storage_volumes.get_here(tx, pool, VOLUME_IMAGE):
        if row.name == fingerprint:
            storage_volumes.delete(tx, row.id)
