"""Storage pools and what lies on them: locks, rows, undo, events. Drivers do the work on the host."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from utsuwa.core import clock
from utsuwa.core.config_keys import KeyTable, without_volatile
from utsuwa.core.errors import (
    HostError,
    InUse,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    Unavailable,
    UtsuwaError,
)
from utsuwa.core.locks import NamedLocks
from utsuwa.core.names import DEFAULT_PROJECT, check_object_name, storage_name
from utsuwa.core.paths import StatePaths
from utsuwa.core.pool_keys import DEFAULT_OVERLAY_OPTIONS, FIXED_KEYS, POOL_KEYS
from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import finish
from utsuwa.core.urls import object_url
from utsuwa.db import images as image_rows
from utsuwa.db import instances as instance_rows
from utsuwa.db import storage_pools, storage_volumes
from utsuwa.db.codes import HALF_MADE, PENDING, UNKNOWN, VOLUME_CONTAINER, VOLUME_IMAGE, State
from utsuwa.db.database import Database
from utsuwa.db.instances import InstanceRow
from utsuwa.db.storage_pools import PoolRow, PoolUse
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.mounts.userns import close_user_namespaces
from utsuwa.host.processes.run import Stopper
from utsuwa.operations.events import EventHub
from utsuwa.storage.ahead import Ahead
from utsuwa.storage.base import Driver, ImageSource, InstanceVolume, Usage
from utsuwa.storage.drivers import DEFAULT_DRIVER, load_driver
from utsuwa.wire import edits
from utsuwa.wire.storage import StoragePoolPut

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

Change = Callable[[Transaction], None]
"""What is to be stored in the same transaction as something else."""


@dataclass(frozen=True)
class Pool:
    """A pool as callers see it; `available` is False where it could not be mounted."""

    row: PoolRow
    use: PoolUse
    available: bool


_SYNC_SECONDS = 40.0
"""After so long the kernel has written most of a new file by itself."""


class StorageManager:
    """All pools of the daemon.

    Each volume has a lock, and each image on each pool; what a driver does runs in a thread and is
    always awaited to its end, so that an undo step never meets work that still goes on.
    """

    def __init__(self, database: Database, paths: StatePaths, events: EventHub) -> None:
        self._database = database
        self._paths = paths
        self._events = events
        self._locks = NamedLocks()
        self._drivers: dict[str, Driver] = {}
        self._mounted: set[str] = set()
        self._reasons: dict[str, str] = {}
        """Why pools could not be mounted when that was tried last."""
        self._image_holds: Counter[tuple[str, str]] = Counter()
        self._image_rows: set[tuple[str, str]] = set()
        """Pools and fingerprints of which it is known that their rows are there."""
        self._ahead = Ahead(self._bring_ahead)
        self._background: set[asyncio.Task[None]] = set()

    # Start and end of the daemon

    async def start(self) -> None:
        """Mount every pool, and take away what a kill left half-made.

        A pool that cannot be mounted is shown as unavailable and does not keep the daemon from starting.
        """

        def fetch(tx: Transaction) -> tuple[list[PoolRow], list[InstanceRow]]:
            return storage_pools.get_all(tx), instance_rows.get_here(tx)

        rows, instances = await self._database.read("pools and instances", fetch)
        known = _by_storage_name(instances)
        for row in rows:
            if row.state in (UNKNOWN, PENDING):
                continue
            driver = load_driver(row.driver, self._paths.pool(row.name), row.config)
            if row.state in HALF_MADE:
                await self._discard_pool(row, driver)
                continue
            self._drivers[row.name] = driver
            try:
                await self._open(row.name, driver, known)
            except UtsuwaError as error:
                self._reasons[row.name] = error.message
                log.error("storage pool %r cannot be used: %s", row.name, error)
        await asyncio.to_thread(self._sweep_links, known)
        self._in_background(self._sync_images())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def stop(self, *, unmount: bool = False) -> None:
        """Let go of what the daemon holds. Mounts stay, for containers run on.

        `unmount` is for the shutdown of all: no container runs any more, and no mount is left.
        """
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._ahead.end()
        await self._sync_images(after=0)
        if unmount:
            for pool in sorted(self._mounted):
                try:
                    await _finished(self._drivers[pool].unmount)
                except UtsuwaError as error:
                    log.warning("storage pool %r stays mounted: %s", pool, error)
            self._mounted.clear()
        await asyncio.to_thread(close_user_namespaces)

    @property
    def drivers_in_use(self) -> set[str]:
        """The names of the drivers of all pools."""
        return {driver.capabilities.name for driver in self._drivers.values()}

    async def _discard_pool(self, row: PoolRow, driver: Driver) -> None:
        log.info("removing the half-made or half-deleted storage pool %r", row.name)
        try:
            # A creation may have been cut off before it saw that its source is somebody's already.
            await _finished(driver.discard if row.state == "creating" else driver.delete)
        except UtsuwaError as error:
            log.warning("the folders of storage pool %r are not all gone: %s", row.name, error)
        await self._remove_row(row)

    async def _sweep(self, pool: str, driver: Driver, known: Mapping[str, tuple[str, str]]) -> None:
        """Rows without an instance, missing links, images without a use; unknown folders are only named.

        `known` are the projects and names of all instances by their names in storage.
        """
        volumes = await self._database.read(
            "storage volumes", storage_volumes.get_here, pool, VOLUME_CONTAINER
        )
        await self._undo_renames(driver, known)
        there = await _finished(driver.instances)
        for name in there:
            if name in known:
                await asyncio.to_thread(self._link, driver, name)
            else:
                # Never removed: a database restored from a backup must not cost what it does not know.
                log.warning("no instance belongs to %s on storage pool %r: remove it by hand", name, pool)
        listed = {(volume.project, volume.name) for volume in volumes}
        stale = [v.id for v in volumes if storage_name(v.project, v.name) not in known]
        lacking = {known[name] for name in there if name in known} - listed
        new = [_volume(pool, VOLUME_CONTAINER, *owner) for owner in sorted(lacking)]
        if stale or new:
            await self._database.write("sweep storage volumes", _replace_volumes, stale, new)
        for fingerprint in await _finished(driver.images):
            await self._forget_image(pool, driver, fingerprint, trim=True)
        await self._agree_on_images(pool, driver)

    async def _agree_on_images(self, pool: str, driver: Driver) -> None:
        """One row for each image that the pool keeps for its instances, and for no other."""
        keeps = driver.capabilities.copy_on_write_images
        there = set(await _finished(driver.images)) if keeps else set()

        def agree(tx: Transaction) -> None:
            rows = storage_volumes.get_here(tx, pool, VOLUME_IMAGE)
            stale = [row.id for row in rows if row.name not in there]
            lacking = sorted(there - {row.name for row in rows})
            new = [_volume(pool, VOLUME_IMAGE, DEFAULT_PROJECT, fingerprint) for fingerprint in lacking]
            _replace_volumes(tx, stale, new)

        await self._database.write("sweep image volumes", agree)

    async def _undo_renames(self, driver: Driver, known: Container[str]) -> None:
        """Give folders their old name back where a kill came before the instance had its new one."""
        there = await _finished(driver.instances)
        for name in there:
            old = None if name in known else await _finished(driver.renamed_from, name)
            if old is not None and old in known and old not in there:
                log.info("undoing the renaming of %s to %s", old, name)
                await _finished(driver.undo_rename, name, old)

    # Pools

    async def get_pool(self, name: str) -> PoolRow:
        """Raises NotFound, also for a pool that is still being made."""
        row = await self._database.read("storage pool", storage_pools.get, name)
        if row.state != "ready":
            raise NotFound(f"Storage pool {name!r} not found")
        return row

    async def pool(self, name: str) -> Pool:
        """One pool with its use. Raises NotFound."""

        def fetch(tx: Transaction) -> tuple[PoolRow, Mapping[str, PoolUse]]:
            return storage_pools.get(tx, name), storage_pools.used_by(tx)

        row, use = await self._database.read("storage pool", fetch)
        if row.state != "ready":
            raise NotFound(f"Storage pool {name!r} not found")
        return self._shown(row, use)

    async def pools(self) -> list[Pool]:
        """All pools by name."""

        def fetch(tx: Transaction) -> tuple[list[PoolRow], Mapping[str, PoolUse]]:
            return storage_pools.get_all(tx), storage_pools.used_by(tx)

        rows, use = await self._database.read("storage pools", fetch)
        return [self._shown(row, use) for row in rows if row.state == "ready"]

    def _shown(self, row: PoolRow, use: Mapping[str, PoolUse]) -> Pool:
        return Pool(row, use.get(row.name, PoolUse()), row.name in self._mounted)

    async def create_pool(
        self,
        name: str,
        driver: str = "",
        description: str = "",
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Make a pool; without a driver an `overlay` one.

        Raises InvalidName, InvalidRequest (driver), InvalidConfig, AlreadyExists, HostError.
        """
        check_object_name("Storage pool", name)
        row = self._first_row(name, driver or DEFAULT_DRIVER, description, config or {})
        work = load_driver(row.driver, self._paths.pool(name), row.config)
        async with self._locks.hold("pool", name), Rollback() as undo:
            row = replace(row, id=await self._database.write("reserve storage pool", _reserve_pool, row))
            undo.push(self._remove_row, row)
            made: list[bool] = []
            undo.push(_undo_if, made, work.delete)
            await _finished(_noted, made, work.create)
            await self._set_pool_state(row, "ready")
            self._drivers[name] = work
            self._mounted.add(name)
            undo.keep()
        self._lifecycle("created", name, {"driver": row.driver})

    def _first_row(self, name: str, driver: str, description: str, config: Mapping[str, str]) -> PoolRow:
        given = {key: value for key, value in without_volatile(config).items() if value}
        keys_of(driver).check(given)
        if "source" in given:
            given["source"] = str(self._checked_source(name, given["source"]))
            given["volatile.initial_source"] = config["source"]
        else:
            given["source"] = str(self._paths.pool(name))
        if driver == "overlay":
            given.setdefault("overlay.mount_options", DEFAULT_OVERLAY_OPTIONS)
        return PoolRow(id=0, name=name, driver=driver, description=description, config=given)

    def _checked_source(self, name: str, source: str) -> Path:
        """The source without symlinks; nothing in the state folder but the pool's own place is one."""
        path = Path(source).resolve()
        if path != self._paths.pool(name) and (path == self._paths.root or self._paths.root in path.parents):
            raise InvalidConfig(f"The source {source} lies in the daemon's state folder: use another one")
        if path in self._paths.root.parents:
            raise InvalidConfig(f"The source {source} holds the daemon's state folder: use another one")
        return path

    async def edit_pool(
        self, name: str, change: edits.Change[StoragePoolPut], if_match: edits.IfMatch
    ) -> None:
        """Change description and config; keys that are fixed at creation keep their value where left out.

        Raises NotFound, PreconditionFailed, InvalidConfig.
        """
        async with self._locks.hold("pool", name):
            row = await self.get_pool(name)
            new = edits.edited(editable(row), change, if_match)
            wanted = {key: value for key, value in new.config.items() if value}
            for key in FIXED_KEYS & row.config.keys():
                wanted.setdefault(key, row.config[key])
            for key in FIXED_KEYS & (wanted.keys() | row.config.keys()):
                if wanted.get(key) != row.config.get(key):
                    raise InvalidConfig(f"{key} of a storage pool cannot be changed once the pool is there")
            keys_of(row.driver).check(wanted)
            changed = replace(row, description=new.description, config=wanted)
            await self._database.write("update storage pool", storage_pools.update, changed)
            await self._configure(name, wanted, row.config)
        self._lifecycle("updated", name)

    async def _configure(self, name: str, config: Mapping[str, str], old: Mapping[str, str]) -> None:
        """Let the driver know, and take off the pool what it would bring on in another form now."""
        driver = self._drivers[name]
        driver.configure(config)
        if name in self._mounted and config.get("overlay.unpack_images") != old.get("overlay.unpack_images"):
            await self._ahead.end(pool=name)
            for fingerprint in await _finished(driver.images):
                await self._bring_anew(name, driver, fingerprint)

    async def delete_pool(self, name: str) -> None:
        """Remove a pool with the images on it. Raises NotFound, InUse (instances, profiles), HostError.

        What is on one that is not available stays there.
        """
        await self.get_pool(name)
        if not await self._is_available(name):
            log.warning(
                "storage pool %r is deleted without what is on it: %s", name, self._unavailable(name).message
            )
        async with self._locks.hold("pool", name):
            await self.get_pool(name)
            driver = self._drivers[name]
            pool = await self._closed_for_deletion(name)
            await self._ahead.end(pool=name)
            async with Rollback() as undo:
                undo.push(self._set_pool_state, pool.row, "ready")
                await _finished(driver.delete)
                await self._remove_row(pool.row)
                undo.keep()
            del self._drivers[name]
        self._lifecycle("deleted", name)

    async def _closed_for_deletion(self, name: str) -> Pool:
        """Let nobody come to a pool any more, then look at its use: what is just being made is seen, or
        sees that the pool is closed. It is open again where this raises InUse, or OutOfSpace for want of
        room to note the deletion. One that is seen to be used is not closed: its instances go on.
        """
        await self._unused(name)
        async with Rollback() as undo:
            if name in self._mounted:
                self._mounted.discard(name)
                undo.push(self._mounted.add, name)
            pool = await self._unused(name)
            await self._set_pool_state(pool.row, "deleting")
            undo.keep()
        return pool

    async def _unused(self, name: str) -> Pool:
        """Raises NotFound, InUse."""
        pool = await self.pool(name)
        if pool.use.profiles or any(kind != VOLUME_IMAGE for kind, _, _ in pool.use.volumes):
            raise InUse(f"The storage pool {name!r} is currently in use: remove what uses it first")
        return pool

    async def _set_pool_state(self, row: PoolRow, state: State) -> None:
        await self._database.write(f"storage pool is {state}", storage_pools.set_state, row.id, state)

    async def _remove_row(self, row: PoolRow) -> None:
        await self._database.write("delete storage pool", storage_pools.delete, row.id)

    async def resources(self, name: str) -> Usage:
        """Space and inodes of the file system below a pool. Raises NotFound, Unavailable."""
        await self.get_pool(name)
        await self.ensure_available(name)
        return await _finished(self._driver(name).usage)

    async def ensure_available(self, pool: str) -> None:
        """Mount a pool that could not be mounted earlier: its disk may be there by now.

        Raises NotFound, or Unavailable with what keeps it from being mounted.
        """
        if pool in self._drivers and pool not in self._mounted:
            await self._try_again(pool)
        self._driver(pool)

    async def _try_again(self, pool: str) -> None:
        async with self._locks.hold("pool", pool):
            if pool in self._mounted or pool not in self._drivers:
                return
            instances = await self._database.read("instances", instance_rows.get_here)
            try:
                await self._open(pool, self._drivers[pool], _by_storage_name(instances))
            except UtsuwaError as error:
                self._reasons[pool] = error.message
                raise self._unavailable(pool) from error
            log.info("storage pool %r can be used again", pool)

    async def _open(self, pool: str, driver: Driver, known: Mapping[str, tuple[str, str]]) -> None:
        await _finished(driver.mount)
        self._mounted.add(pool)
        await self._sweep(pool, driver, known)

    def _driver(self, pool: str) -> Driver:
        driver = self._driver_of_any(pool)
        if pool not in self._mounted:
            raise self._unavailable(pool)
        return driver

    def _driver_of_any(self, pool: str) -> Driver:
        """Whether the pool is available or not. Raises NotFound, also where its row cannot be read."""
        if pool not in self._drivers:
            raise NotFound(f"Storage pool {pool!r} not found")
        return self._drivers[pool]

    def _unavailable(self, pool: str) -> Unavailable:
        reason = self._reasons.get(pool, "it is being deleted")
        return Unavailable(f"Storage pool {pool!r} is not available: {reason}")

    async def _is_available(self, pool: str) -> bool:
        """Whether a pool can be used, by now. Raises NotFound."""
        with contextlib.suppress(Unavailable):
            await self.ensure_available(pool)
        return pool in self._mounted

    # Volumes

    async def volumes(self, pool: str, project: str | None, kind: int | None = None) -> list[VolumeRow]:
        """The volumes of a project, or of all (None), on a pool; images belong to every project.

        Raises NotFound (pool).
        """
        await self.get_pool(pool)
        found = await self._database.read("storage volumes", storage_volumes.get_all, None, pool, kind)
        return [v for v in found if project is None or v.project == project or v.type == VOLUME_IMAGE]

    async def volume(self, pool: str, project: str, kind: int, name: str) -> VolumeRow:
        """Raises NotFound."""
        await self.get_pool(pool)
        owner = DEFAULT_PROJECT if kind == VOLUME_IMAGE else project
        return await self._database.read("storage volume", storage_volumes.get, owner, pool, kind, name)

    # Instances

    async def create_instance(
        self, pool: str, volume: InstanceVolume, image: ImageSource | None, project: str, name: str
    ) -> None:
        """Make the files of a new instance, its volume's row and its link in `containers/`; not mounted.

        Raises NotFound (pool), Unavailable, AlreadyExists, InvalidImage, OutOfSpace, HostError; nothing is
        left then.
        """
        await self.ensure_available(pool)
        driver = self._driver(pool)
        async with self._locks.hold("volume", pool, volume.name), Rollback() as undo:
            row = _volume(pool, VOLUME_CONTAINER, project, name)
            row_id = await self._database.write("insert storage volume", storage_volumes.insert, row)
            undo.push(self._remove_volume_row, row_id)
            self._driver(pool)  # whoever deletes the pool has seen the row, or has closed the pool by now
            if image is not None:
                undo.push(self._forget_if_possible, pool, driver, image.fingerprint)
            async with self._image_held(pool, driver, image):
                made: list[bool] = []
                undo.push(_undo_if, made, driver.delete_instance, volume.name)
                await _finished(_noted, made, driver.create_instance, volume, image)
            undo.push(self._unlink, volume.name)
            self._link(driver, volume.name)
            undo.keep()

    async def delete_instance(
        self, pool: str, stored: str, project: str, name: str, also: Change | None = None
    ) -> None:
        """Remove an instance's files, link and row; does nothing for what is not there.

        `also` is done in the transaction that removes the row. The files of an instance whose pool is not
        available stay where they are: a pool that is lost for good must not keep its instances for ever.
        """
        available = await self._is_available(pool)
        driver = self._drivers[pool]
        async with self._locks.hold("volume", pool, stored):
            self._unlink(stored)
            fingerprint = await _finished(driver.delete_instance, stored) if available else None
            if not available:
                log.warning(
                    "instance %s is deleted without its files, for storage pool %r is not available: "
                    "should its source come back, remove containers/%s there by hand",
                    stored,
                    pool,
                    stored,
                )

            def forget(tx: Transaction) -> None:
                with contextlib.suppress(NotFound):
                    row = storage_volumes.get(tx, project, pool, VOLUME_CONTAINER, name)
                    storage_volumes.delete(tx, row.id)
                if also is not None:
                    also(tx)

            await self._database.write("delete storage volume", forget)
        if fingerprint is not None:
            await self._forget_if_possible(pool, driver, fingerprint, trim=True)

    async def rename_instance(
        self,
        pool: str,
        stored: str,
        new_stored: str,
        project: str,
        name: str,
        new_name: str,
        also: Change | None = None,
    ) -> None:
        """Rename an instance's files, link and row; unmounts it first. Raises AlreadyExists, HostError.

        `also` is for what must be stored in the same transaction: files alone can be named back for sure.
        """
        await self.ensure_available(pool)
        driver = self._driver(pool)
        first, second = sorted((stored, new_stored))
        async with (
            self._locks.hold("volume", pool, first),
            self._locks.hold("volume", pool, second),
            Rollback() as undo,
        ):
            row = await self._database.read(
                "storage volume", storage_volumes.get, project, pool, VOLUME_CONTAINER, name
            )
            made: list[bool] = []
            undo.push(_undo_if, made, driver.undo_rename, new_stored, stored)
            await _finished(_noted, made, driver.rename_instance, stored, new_stored)
            undo.push(self._unlink, new_stored)
            self._link(driver, new_stored)

            def note(tx: Transaction) -> None:
                storage_volumes.rename(tx, row.id, new_name)
                if also is not None:
                    also(tx)

            await self._database.write("rename storage volume", note)
            undo.keep()
            # Not before: on a disk that is full it could not be made again.
            self._unlink(stored)

    async def mount_instance(self, pool: str, volume: InstanceVolume) -> Path:
        """Mount an instance's rootfs through its map (again, where the map changed) and give its path."""
        driver = self._driver(pool)
        async with self._locks.hold("volume", pool, volume.name):
            return await _finished(driver.mount_instance, volume)

    async def mount_folder(self, pool: str, volume: InstanceVolume, name: str) -> Path:
        """Show a folder beside a mounted rootfs, as the driver's method of that name, and give its path."""
        driver = self._driver(pool)
        async with self._locks.hold("volume", pool, volume.name):
            return await _finished(driver.mount_folder, volume, name)

    async def unmount_instance(self, pool: str, stored: str) -> None:
        """Unmount an instance's rootfs; does nothing where it is not mounted.

        It may be mounted although its pool is not available any more. Raises NotFound (pool).
        """
        driver = self._driver_of_any(pool)
        async with self._locks.hold("volume", pool, stored):
            await _finished(driver.unmount_instance, stored)

    async def instance_mounted(self, pool: str, stored: str) -> bool:
        return await asyncio.to_thread(self._driver(pool).instance_mounted, stored)

    def instance_folder(self, pool: str, stored: str) -> Path:
        """The folder that holds `rootfs/`, `metadata.yaml` and `templates/`. Raises NotFound, Unavailable."""
        return self._driver(pool).instance_folder(stored)

    async def instance_usage(self, pool: str, stored: str) -> int | None:
        """Bytes that an instance takes for itself; None where its driver cannot tell cheaply."""
        try:
            return await asyncio.to_thread(self._driver(pool).instance_usage, stored)
        except (HostError, Unavailable) as error:
            log.info("no disk usage of %s: %s", stored, error)
            return None

    def _link(self, driver: Driver, stored: str) -> None:
        """`containers/<name>` leads to the instance's folder: liblxc and people look there."""
        link, target = self._paths.containers / stored, driver.instance_folder(stored)
        if link.is_symlink():
            if link.readlink() == target:
                return
            link.unlink()
        link.symlink_to(target)

    def _sweep_links(self, known: Container[str]) -> None:
        """Remove those of names that no instance has (any more)."""
        for link in self._paths.containers.iterdir():
            if link.is_symlink() and link.name not in known:
                link.unlink()

    def _unlink(self, stored: str) -> None:
        (self._paths.containers / stored).unlink(missing_ok=True)

    async def _remove_volume_row(self, row_id: int) -> None:
        await self._database.write("discard storage volume", storage_volumes.delete, row_id)

    # Images

    def prepare_image(self, image: ImageSource) -> None:
        """Begin to bring a new image onto the pools where its first instances are likely to come."""
        self._in_background(self._prepare_image(image))

    async def _prepare_image(self, image: ImageSource) -> None:
        use = await self._database.read("use of pools", storage_pools.used_by)
        for pool in sorted(self._mounted):
            if use[pool].profiles and self._drivers[pool].capabilities.copy_on_write_images:
                self._ahead.begin(pool, image)

    async def _bring_ahead(self, pool: str, image: ImageSource, stopper: Stopper) -> None:
        if not await self._database.read("projects with image", image_rows.projects_with, image.fingerprint):
            return
        async with self._image_held(pool, self._driver(pool), image, stopper):
            pass

    async def _sync_images(self, after: float = _SYNC_SECONDS) -> None:
        """Have the images on the disk that were brought onto the pools of late."""
        await asyncio.sleep(after)
        for pool in sorted(self._mounted):
            try:
                await _finished(self._drivers[pool].sync_images)
            except UtsuwaError as error:
                log.warning("storage pool %r: %s", pool, error)

    async def delete_image(self, fingerprint: str) -> None:
        """The image's row is gone: take it off every pool, but for those where instances stand on it."""
        for pool in sorted(self._mounted):
            if self._image_holds[pool, fingerprint] <= 1:  # by nobody but who brings it there ahead
                await self._ahead.end(pool, fingerprint)
        for pool in sorted(self._mounted):
            await self._forget_image(pool, self._drivers[pool], fingerprint)

    @contextlib.asynccontextmanager
    async def _image_held(
        self, pool: str, driver: Driver, image: ImageSource | None, ahead: Stopper | None = None
    ) -> AsyncIterator[None]:
        """Bring an image onto the pool and keep it there for the block."""
        if image is None:
            yield
            return
        key = (pool, image.fingerprint)
        self._image_holds[key] += 1
        try:
            async with self._locks.hold("image", *key):
                await _finished(driver.ensure_image, image, ahead)
                if driver.capabilities.copy_on_write_images:
                    await self._image_row(*key)
            yield
        finally:
            self._image_holds[key] -= 1
            if not self._image_holds[key]:
                del self._image_holds[key]
            await self._forget_if_possible(pool, driver, image.fingerprint)

    async def _forget_if_possible(
        self, pool: str, driver: Driver, fingerprint: str, *, trim: bool = False
    ) -> None:
        """What was done with an instance stands, whatever becomes of its image: the next start looks."""
        try:
            await self._forget_image(pool, driver, fingerprint, trim=trim)
        except UtsuwaError as error:
            log.warning("image %s stays on storage pool %r: %s", fingerprint[:12], pool, error)

    async def _image_row(self, pool: str, fingerprint: str) -> None:
        def note(tx: Transaction) -> None:
            known = storage_volumes.get_here(tx, pool, VOLUME_IMAGE)
            if all(row.name != fingerprint for row in known):
                storage_volumes.insert(tx, _volume(pool, VOLUME_IMAGE, DEFAULT_PROJECT, fingerprint))

        if (pool, fingerprint) not in self._image_rows:
            await self._database.write("image is on the pool", note)
            self._image_rows.add((pool, fingerprint))
            self._in_background(self._sync_images())

    async def _forget_image(self, pool: str, driver: Driver, fingerprint: str, *, trim: bool = False) -> None:
        """Take an image off a pool where neither the daemon nor an instance needs it any more.

        `trim` is for one of whose instances one has gone: its form may have been that one's alone.
        """
        async with self._locks.hold("image", pool, fingerprint):
            if self._image_holds[pool, fingerprint]:
                return
            projects = await self._database.read("projects with image", image_rows.projects_with, fingerprint)
            if projects or await _finished(driver.image_users, fingerprint):
                if trim:
                    await _finished(driver.trim_image, fingerprint)
                return
            await self._take_off(pool, driver, fingerprint)

    async def _bring_anew(self, pool: str, driver: Driver, fingerprint: str) -> None:
        """The pool's config has changed: let the next use of an image bring it there by the new one."""
        async with self._locks.hold("image", pool, fingerprint):
            if self._image_holds[pool, fingerprint]:
                return
            self._image_rows.discard((pool, fingerprint))
            if await _finished(driver.image_users, fingerprint):
                await _finished(driver.trim_image, fingerprint)
            else:
                await self._take_off(pool, driver, fingerprint)

    async def _take_off(self, pool: str, driver: Driver, fingerprint: str) -> None:
        """Remove an image from a pool; the caller has its lock."""
        self._image_rows.discard((pool, fingerprint))
        await _finished(driver.delete_image, fingerprint)
        await self._database.write("image is off the pool", _forget_image_row, pool, fingerprint)

    def _lifecycle(self, action: str, pool: str, context: Mapping[str, str] | None = None) -> None:
        url = object_url("storage-pools", pool)
        self._events.publish_lifecycle(f"storage-pool-{action}", url, "", context)


def _by_storage_name(instances: Iterable[InstanceRow]) -> dict[str, tuple[str, str]]:
    return {storage_name(row.project, row.name): (row.project, row.name) for row in instances}


def _volume(pool: str, kind: int, project: str, name: str) -> VolumeRow:
    """The row of a new volume."""
    return VolumeRow(
        id=0,
        project=project,
        pool=pool,
        name=name,
        type=kind,
        description="",
        created_at=clock.now(),
    )


def editable(row: PoolRow) -> StoragePoolPut:
    return StoragePoolPut(config=row.config, description=row.description)


def keys_of(driver: str) -> KeyTable:
    """The config keys of a driver's pools. Raises InvalidRequest for a driver that is not there."""
    table = POOL_KEYS.get(driver)
    if table is None:
        raise InvalidRequest(
            f"Unknown storage driver {driver[:40]!r}: use one of {', '.join(sorted(POOL_KEYS))}"
        )
    return table


async def _finished(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run blocking work in a thread and wait for its end, also when the caller is cancelled meanwhile."""
    return await finish(asyncio.to_thread(work, *args, **kwargs))


def _noted(made: list[bool], work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `work` and note in `made` that it came to its end: from then on it has to be undone."""
    result = work(*args, **kwargs)
    made.append(True)
    return result


def _reserve_pool(tx: Transaction, new: PoolRow) -> int:
    """In place of one whose row could not be taken back, for want of space: nobody else is making one now."""
    for row in storage_pools.get_all(tx):
        if row.name == new.name and row.state == "creating":
            storage_pools.delete(tx, row.id)
    return storage_pools.insert(tx, new)


def _replace_volumes(tx: Transaction, stale: list[int], new: list[VolumeRow]) -> None:
    for row_id in stale:
        storage_volumes.delete(tx, row_id)
    for row in new:
        storage_volumes.insert(tx, row)


def _forget_image_row(tx: Transaction, pool: str, fingerprint: str) -> None:
    for row in storage_volumes.get_here(tx, pool, VOLUME_IMAGE):
        if row.name == fingerprint:
            storage_volumes.delete(tx, row.id)


async def _undo_if(made: list[bool], work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    if made:
        await _finished(work, *args, **kwargs)
