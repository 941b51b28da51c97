"""Images on pools: brought there for the instances made of them, taken off when nobody needs them."""

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
from utsuwa.core.threads import Threads
from utsuwa.core.volumes import image_volume
from utsuwa.db import images as image_rows
from utsuwa.db import storage_pools, storage_volumes
from utsuwa.db.codes import VOLUME_IMAGE
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction
from utsuwa.host.processes.run import Stopper
from utsuwa.storage.ahead import Ahead
from utsuwa.storage.base import Driver
from utsuwa.storage.known_pools import KnownPools
from utsuwa.storage.volume_rows import new_row, replace_rows

log = logging.getLogger(__name__)

_SYNC_SECONDS = 40.0
"""After so long the kernel has written most of a new file by itself."""


class PoolImages:
    """The images on all pools of the daemon. Each image on each pool has a lock."""

    def __init__(self, database: Database, pools: KnownPools, threads: Threads) -> None:
        self._database = database
        self._pools = pools
        self._threads = threads
        self._locks = NamedLocks()
        self._holds: Counter[tuple[str, str]] = Counter()
        self._known_rows: set[tuple[str, str]] = set()
        """Pools and fingerprints of which it is known that their rows are there."""
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
        """Begin to bring a new image onto the pools where its first instances are likely to come."""
        self._in_background(self._prepare(image))

    async def delete(self, fingerprint: str) -> None:
        """The image's row is gone: take it off every pool, but for those where instances stand on it."""
        for pool, _ in self._pools.usable():
            if self._holds[pool, fingerprint] <= 1:  # by nobody but who brings it there ahead
                await self._ahead.end(pool, fingerprint)
        for pool, driver in self._pools.usable():
            await self._forget(pool, driver, fingerprint)

    @contextlib.asynccontextmanager
    async def held(
        self, pool: str, driver: Driver, image: ImageSource | None, ahead: Stopper | None = None
    ) -> AsyncIterator[None]:
        """Bring an image onto the pool and keep it there for the block."""
        if image is None:
            yield
            return
        key = (pool, image.fingerprint)
        self._holds[key] += 1
        try:
            async with self._locks.hold(*key):
                await self._threads.run(driver.ensure_image, image, ahead)
                if driver.capabilities.copy_on_write_images:
                    await self._note_row(*key)
            yield
        finally:
            self._holds[key] -= 1
            if not self._holds[key]:
                del self._holds[key]
            await self.forget_if_possible(pool, driver, image.fingerprint)

    async def forget_if_possible(
        self, pool: str, driver: Driver, fingerprint: str, *, trim: bool = False
    ) -> None:
        """Take an image off a pool where neither the daemon nor an instance needs it any more.

        `trim` is for one of whose instances one has gone: its form may have been that one's alone.
        What was done with an instance stands, whatever becomes of its image: the next start looks.
        """
        try:
            await self._forget(pool, driver, fingerprint, trim=trim)
        except UtsuwaError as error:
            log.warning("image %s stays on storage pool %r: %s", fingerprint[:12], pool, error)

    async def leave(self, pool: str) -> None:
        """The pool goes: nothing is brought there ahead any more."""
        await self._ahead.end(pool=pool)

    async def bring_anew(self, pool: str, driver: Driver) -> None:
        """The pool's config has changed: let the next use of each image bring it there by the new one."""
        await self._ahead.end(pool=pool)
        for fingerprint in await self._threads.run(driver.images):
            await self._bring_anew(pool, driver, fingerprint)

    async def sweep(self, pool: str, driver: Driver) -> None:
        """A pool was mounted: take off what nobody needs, and have a row for each image that stays."""
        for fingerprint in await self._threads.run(driver.images):
            await self._forget(pool, driver, fingerprint, trim=True)
        keeps = driver.capabilities.copy_on_write_images
        there = set(await self._threads.run(driver.images)) if keeps else set()
        await self._database.write("sweep image volumes", _agree, pool, there)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _prepare(self, image: ImageSource) -> None:
        use = await self._database.read("use of pools", storage_pools.used_by)
        for pool, driver in self._pools.usable():
            if use[pool].profiles and driver.capabilities.copy_on_write_images:
                self._ahead.begin(pool, image)

    async def _bring_ahead(self, pool: str, image: ImageSource, stopper: Stopper) -> None:
        if not await self._database.read("projects with image", image_rows.projects_with, image.fingerprint):
            return
        async with self.held(pool, self._pools.driver(pool), image, stopper):
            pass

    async def _sync(self, after: float = _SYNC_SECONDS) -> None:
        """Have the images on the disk that were brought onto the pools of late."""
        await asyncio.sleep(after)
        for pool, driver in self._pools.usable():
            try:
                await self._threads.run(driver.sync_images)
            except UtsuwaError as error:
                log.warning("storage pool %r: %s", pool, error)

    async def _note_row(self, pool: str, fingerprint: str) -> None:
        if (pool, fingerprint) not in self._known_rows:
            await self._database.write("image is on the pool", _note, pool, fingerprint)
            self._known_rows.add((pool, fingerprint))
            self._in_background(self._sync())

    async def _forget(self, pool: str, driver: Driver, fingerprint: str, *, trim: bool = False) -> None:
        async with self._locks.hold(pool, fingerprint):
            if self._holds[pool, fingerprint]:
                return
            projects = await self._database.read("projects with image", image_rows.projects_with, fingerprint)
            if projects or await self._threads.run(driver.image_users, fingerprint):
                if trim:
                    await self._threads.run(driver.trim_image, fingerprint)
                return
            await self._take_off(pool, driver, fingerprint)

    async def _bring_anew(self, pool: str, driver: Driver, fingerprint: str) -> None:
        async with self._locks.hold(pool, fingerprint):
            if self._holds[pool, fingerprint]:
                return
            self._known_rows.discard((pool, fingerprint))
            if await self._threads.run(driver.image_users, fingerprint):
                await self._threads.run(driver.trim_image, fingerprint)
            else:
                await self._take_off(pool, driver, fingerprint)

    async def _take_off(self, pool: str, driver: Driver, fingerprint: str) -> None:
        """Remove an image from a pool; the caller has its lock."""
        self._known_rows.discard((pool, fingerprint))
        await self._threads.run(driver.delete_image, fingerprint)
        await self._database.write("image is off the pool", _forget_row, pool, fingerprint)


def _agree(tx: Transaction, pool: str, there: set[str]) -> None:
    """One row for each image that the pool keeps for its instances, and for no other."""
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
