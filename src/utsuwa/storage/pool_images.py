"""Images on pools: stored there for the instances created from them, removed when unused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from functools import partial
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
from utsuwa.host.processes.stopper import Reading, Stopper
from utsuwa.storage.known_pools import KnownPool, KnownPools
from utsuwa.storage.prefetch import Prefetcher
from utsuwa.storage.progress import shown
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volume_rows import new_row, replace_rows

log = logging.getLogger(__name__)

_SYNC_SECONDS = 40.0
"""By then, the kernel has written back most of a new file."""


class PoolImages:
    """The images on all pools of the daemon. Each image on each pool has a lock."""

    def __init__(self, database: Database, pools: KnownPools, threads: StorageThreads) -> None:
        self._database = database
        self._pools = pools
        self._threads = threads
        self._locks = NamedLocks()
        self._holds: Counter[tuple[str, str]] = Counter()
        self._storing: dict[tuple[str, str], Stopper] = {}
        """The stoppers of those that are being stored."""
        self._known_rows: set[tuple[str, str]] = set()
        """Pools and fingerprints of images known to be stored, with their rows."""
        self._prefetcher = Prefetcher(self._prefetch)
        self._background: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Called when the pools have been mounted."""
        self._run_in_background(self._sync())

    async def stop(self) -> None:
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._prefetcher.end()
        await self._sync(after=0)

    def prepare(self, image: ImageSource) -> None:
        """Start to prefetch a new image on the pools where instances of it are likely to be created."""
        self._run_in_background(self._prepare(image))

    async def store_as(self, fingerprint: str, image: ImageSource) -> None:
        """Store an image on every pool that has the one with this fingerprint, which it replaces.

        Errors are only logged: its first launch retries.
        """
        for pool in self._pools.all_available():
            if (pool.name, fingerprint) not in self._known_rows:
                continue
            try:
                async with self.held(pool, image, Stopper(), ahead=True):
                    pass
            except UtsuwaError as error:
                log.warning("image %s is not stored on pool %r: %s", image.fingerprint[:12], pool.name, error)

    async def delete(self, fingerprint: str) -> None:
        """Remove an image whose row is gone from all pools on which no instance depends on it."""
        for pool in self._pools.all_available():
            if self._holds[pool.name, fingerprint] <= 1:  # only by the prefetcher
                await self._prefetcher.end(pool.name, fingerprint)
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
            # Who waits for an image that another operation or the prefetch unpacks sees the same progress.
            quick = ahead or key in self._known_rows
            progress = contextlib.nullcontext() if quick else shown(partial(self._progress, key))
            async with progress, self._locks.hold(*key):
                await self._store(pool, image, stopper, ahead=ahead)
            yield
        finally:
            self._holds[key] -= 1
            if not self._holds[key]:
                del self._holds[key]
            await self.forget_if_possible(pool, image.fingerprint)

    async def _store(self, pool: KnownPool, image: ImageSource, stopper: Stopper, *, ahead: bool) -> None:
        """Store an image whose lock is held, if it is not stored yet."""
        key = (pool.name, image.fingerprint)
        # A stored image takes little time: it must not queue behind others that are being unpacked.
        threads = self._threads.mount if key in self._known_rows else self._threads.fill
        self._storing[key] = stopper
        try:
            ensure = threads.stopped_by(stopper.stop).run
            await ensure(pool.images.ensure_image, image, stopper, ahead=ahead)
        finally:
            del self._storing[key]
        if pool.shares_images:
            await self._note_row(*key)

    def _progress(self, key: tuple[str, str]) -> Reading | None:
        stopper = self._storing.get(key)
        return None if stopper is None else stopper.progress()

    async def forget_if_possible(
        self, pool: KnownPool, fingerprint: str, *, trim: bool = False, used: bool = False
    ) -> None:
        """Remove an image from a pool unless the daemon or an instance needs it.

        With `trim`, after the deletion of an instance, a form of the image that only this instance used is
        removed. `used` says that the image itself is certainly needed. Errors are only logged, as the change
        of the instance is complete: the next start retries.
        """
        try:
            await self._forget(pool, fingerprint, trim=trim, used=used)
        except UtsuwaError as error:
            log.warning("image %s is still on storage pool %r: %s", fingerprint[:12], pool.name, error)

    async def leave(self, pool: KnownPool) -> None:
        """Stop prefetching on a pool that is being deleted."""
        await self._prefetcher.end(pool=pool.name)

    async def refresh(self, pool: KnownPool) -> None:
        """Drop unused images after a change of config; the next use stores them in the new form."""
        await self._prefetcher.end(pool=pool.name)
        for fingerprint in await self._threads.quick.run(pool.images.images):
            await self._refresh_image(pool, fingerprint)

    async def sweep(self, pool: KnownPool) -> None:
        """Remove unused images from a pool that was just mounted, and match rows to those that stay."""
        for fingerprint in await self._threads.quick.run(pool.images.images):
            await self._forget(pool, fingerprint, trim=True)
        there = set(await self._threads.quick.run(pool.images.images)) if pool.shares_images else set()
        await self._database.write("sweep image volumes", _match_rows, pool.name, there)
        self._known_rows.update((pool.name, fingerprint) for fingerprint in there)

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _prepare(self, image: ImageSource) -> None:
        use = await self._database.read("use of pools", storage_pools.used_by)
        for pool in self._pools.all_available():
            if use[pool.name].profiles and pool.shares_images:
                self._prefetcher.begin(pool.name, image)

    async def _prefetch(self, pool: str, image: ImageSource, stopper: Stopper) -> None:
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
            self._run_in_background(self._sync())

    async def _forget(
        self, pool: KnownPool, fingerprint: str, *, trim: bool = False, used: bool = False
    ) -> None:
        async with self._locks.hold(pool.name, fingerprint):
            if self._holds[pool.name, fingerprint]:
                return
            if used or await self._is_needed(pool, fingerprint):
                if trim:
                    await self._threads.remove.run(pool.images.trim_image, fingerprint)
                return
            await self._remove(pool, fingerprint)

    async def _is_needed(self, pool: KnownPool, fingerprint: str) -> bool:
        projects = await self._database.read("projects with image", image_rows.projects_with, fingerprint)
        return bool(projects or await self._threads.quick.run(pool.images.image_users, fingerprint))

    async def _refresh_image(self, pool: KnownPool, fingerprint: str) -> None:
        async with self._locks.hold(pool.name, fingerprint):
            if self._holds[pool.name, fingerprint]:
                return
            self._known_rows.discard((pool.name, fingerprint))
            if await self._threads.quick.run(pool.images.image_users, fingerprint):
                await self._threads.remove.run(pool.images.trim_image, fingerprint)
            else:
                await self._remove(pool, fingerprint)

    async def _remove(self, pool: KnownPool, fingerprint: str) -> None:
        """Remove an image from a pool; the caller holds its lock."""
        self._known_rows.discard((pool.name, fingerprint))
        await self._threads.remove.run(pool.images.delete_image, fingerprint)
        await self._database.write("image is off the pool", _forget_row, pool.name, fingerprint)


def _match_rows(tx: Transaction, pool: str, there: set[str]) -> None:
    """Ensure that there is exactly one row for each image on the pool."""
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
