"""The storage pools of the daemon: rows, creation and deletion on the host, lifecycle events."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from utsuwa.core.config_keys import without_volatile
from utsuwa.core.errors import (
    InUse,
    InvalidConfig,
    NotFound,
    OtherMember,
    Unavailable,
    UtsuwaError,
)
from utsuwa.core.locks import NamedLocks
from utsuwa.core.names import check_object_name
from utsuwa.core.paths import StatePaths
from utsuwa.core.pool_keys import MEMBER_KEYS
from utsuwa.core.rollback import Rollback
from utsuwa.core.urls import object_url
from utsuwa.core.warning_types import POOL_UNAVAILABLE
from utsuwa.db import storage_pools
from utsuwa.db.codes import HALF_MADE, PENDING, UNKNOWN, VOLUME_IMAGE, State
from utsuwa.db.database import Database
from utsuwa.db.storage_pools import PoolRow, PoolUse
from utsuwa.db.transaction import Transaction
from utsuwa.db.warnings import Subject
from utsuwa.operations.events import EventHub
from utsuwa.operations.retries import Retries
from utsuwa.operations.warnings import Warnings
from utsuwa.storage.base import DriverType, Usage
from utsuwa.storage.drivers import DEFAULT_DRIVER, driver_type
from utsuwa.storage.known_pools import DELETED, KnownPool, KnownPools
from utsuwa.storage.pool_images import PoolImages
from utsuwa.storage.sweep import Known, Sweep
from utsuwa.storage.threads import StorageThreads
from utsuwa.wire import edits
from utsuwa.wire.storage import StoragePoolPut

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """A pool as returned to callers; `available` is False if it is not mounted on this member."""

    row: PoolRow
    use: PoolUse
    available: bool


_VISIBLE = ("ready", PENDING)


class PoolManager:
    """All pools of the daemon. Each has a lock."""

    def __init__(
        self,
        database: Database,
        paths: StatePaths,
        events: EventHub,
        known: KnownPools,
        images: PoolImages,
        sweep: Sweep,
        threads: StorageThreads,
        warnings: Warnings,
        retries: Retries,
    ) -> None:
        self._database = database
        self._paths = paths
        self._events = events
        self._known = known
        self._images = images
        self._sweep = sweep
        self._threads = threads
        self._warnings = warnings
        self._retries = retries
        self._locks = NamedLocks()

    # Start and end of the daemon

    async def start(self, known: Known) -> None:
        """Mount every pool, and remove incomplete ones. `known` is for the sweep.

        A pool that cannot be mounted is shown as unavailable, and tried again; the daemon starts anyway.
        """
        for row in await self._database.read("storage pools", storage_pools.get_all):
            if row.state in (UNKNOWN, PENDING):
                continue
            pool = self._of(row)
            if row.state in HALF_MADE:
                await self._discard(row, pool)
                continue
            self._known.add(pool)
            try:
                await self._open(pool, known)
            except UtsuwaError:
                self._retries.add(f"storage pool {row.name}", partial(self._is_settled, pool))

    async def _is_settled(self, pool: KnownPool) -> bool:
        """Try to mount a pool; return whether it can be used now, or is gone."""
        if pool not in self._known.all():
            return True
        return await self.is_available(pool.name)

    def _of(self, row: PoolRow) -> KnownPool:
        return KnownPool(row.name, driver_type(row.driver), self._paths.pool(row.name), row.config, row.id)

    async def unmount_all(self) -> None:
        """Unmount all pools, when no container is running any more."""
        for pool in self._known.all_available():
            try:
                await self._threads.mount.run(pool.driver.unmount)
            except UtsuwaError as error:
                log.warning("cannot unmount storage pool %r: %s", pool.name, error)
            pool.available = False

    async def _discard(self, row: PoolRow, pool: KnownPool) -> None:
        log.info("removing the incomplete storage pool %r", row.name)
        try:
            # The creation may have been interrupted before it checked the source for foreign files.
            await self._threads.remove.run(
                pool.driver.discard if row.state == "creating" else pool.driver.delete
            )
        except UtsuwaError as error:
            log.warning("cannot remove all directories of storage pool %r: %s", row.name, error)
        await self._remove_row(row)

    # Reading

    @property
    def drivers_in_use(self) -> set[str]:
        """Return the names of the drivers of all pools."""
        return {pool.kind.name for pool in self._known.all()}

    def has(self, name: str) -> bool:
        """Return whether a pool is known to exist on this member, without the database."""
        return any(pool.name == name for pool in self._known.all_available())

    async def get(self, name: str) -> PoolRow:
        """Return a pool of this member. Raises NotFound, also if it is incomplete, OtherMember."""
        row = await self._database.read("storage pool", _shown_row, name)
        if row.state == PENDING:
            raise OtherMember(
                f"Storage pool {name!r} is on {' and '.join(row.locations)} only: "
                "create it on this member, too"
            )
        return row

    async def show(self, name: str) -> Pool:
        """Return a pool of any member with its users. Raises NotFound."""

        def fetch(tx: Transaction) -> tuple[PoolRow, Mapping[str, PoolUse]]:
            return _shown_row(tx, name), storage_pools.used_by(tx)

        return self._shown(*await self._database.read("storage pool", fetch))

    async def all(self) -> list[Pool]:
        """Return the pools of all members, sorted by name."""

        def fetch(tx: Transaction) -> tuple[list[PoolRow], Mapping[str, PoolUse]]:
            return storage_pools.get_all(tx), storage_pools.used_by(tx)

        rows, use = await self._database.read("storage pools", fetch)
        return [self._shown(row, use) for row in rows if row.state in _VISIBLE]

    def _shown(self, row: PoolRow, use: Mapping[str, PoolUse]) -> Pool:
        available = any(pool.name == row.name for pool in self._known.all_available())
        return Pool(row, use.get(row.name, PoolUse()), available)

    async def resources(self, name: str) -> Usage:
        """Return space and inodes of a pool's file system. Raises NotFound, Unavailable."""
        await self.get(name)
        pool = await self.ensure_available(name)
        return await self._threads.quick.run(pool.driver.usage)

    # Creating, changing and deleting

    async def create(
        self,
        name: str,
        driver: str = "",
        description: str = "",
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Create a pool, with the default driver unless given, or this member's part of one of others.

        Raises InvalidName, InvalidRequest (driver), InvalidConfig, AlreadyExists, HostError.
        """
        check_object_name("Storage pool", name)
        row = self._first_row(name, driver_type(driver or DEFAULT_DRIVER), description, config or {})
        async with self._locks.hold(name), Rollback() as undo:
            row = _joined(row, config or {}, await self._database.read("storage pool", _of_others, name))
            pool = self._of(row)
            row = replace(row, id=await self._database.begin("reserve storage pool", _reserve, row))
            pool.subject = Subject("storage-pool", row.id)
            undo.push(self._remove_row, row)
            revert = partial(self._threads.remove.run, pool.driver.delete)
            await self._threads.mount.make(undo, revert, pool.driver.create)
            await self._threads.mount.run(pool.check_mounts)
            await self._set_state(row, "ready")
            pool.available = True
            self._known.add(pool)
            undo.keep()
        self._lifecycle("created", name, {"driver": row.driver})

    def _first_row(self, name: str, kind: DriverType, description: str, config: Mapping[str, str]) -> PoolRow:
        given = kind.pool_keys.set_only(without_volatile(config))
        kind.pool_keys.check(given)
        if "source" in given:
            given["source"] = str(self._checked_source(name, given["source"]))
            given["volatile.initial_source"] = config["source"]
        else:
            given["source"] = str(self._paths.pool(name))
        # Fixed keys keep their value even if the daemon's defaults change.
        defaults = {key: default for key, default in kind.fixed.items() if default}
        config = {**defaults, **given}
        return PoolRow(id=0, name=name, driver=kind.name, description=description, config=config)

    def _checked_source(self, name: str, source: str) -> Path:
        """Resolve symlinks of the source. Raises InvalidConfig if it conflicts with the state directory."""
        path = Path(source).resolve()
        if path != self._paths.pool(name) and (path == self._paths.root or self._paths.root in path.parents):
            raise InvalidConfig(
                f"The source {source} is inside the daemon's state directory: use another one"
            )
        if path in self._paths.root.parents:
            raise InvalidConfig(f"The source {source} contains the daemon's state directory: use another one")
        return path

    async def edit(self, name: str, change: edits.Change[StoragePoolPut], if_match: edits.IfMatch) -> None:
        """Change description and config; keys that are fixed at creation keep their value if omitted.

        Raises NotFound, PreconditionFailed, InvalidConfig.
        """
        async with self._locks.hold(name):
            row = await self.get(name)
            new = edits.edited(editable(row), change, if_match)
            pool = self._known.get(name)
            wanted = pool.kind.pool_keys.set_only(new.config, row.config)
            for key in pool.kind.fixed:
                if key in row.config:
                    wanted.setdefault(key, row.config[key])
                if wanted.get(key) != row.config.get(key):
                    raise InvalidConfig(f"{key} of a storage pool can only be set on creation")
            pool.kind.pool_keys.check(wanted)
            changed = replace(row, description=new.description, config=wanted)
            await self._database.write("update storage pool", storage_pools.update, changed)
            await self._configure(pool, wanted)
        self._lifecycle("updated", name)

    async def follow_others(self) -> None:
        """Apply other members' changes to pools that this one has as well."""
        rows = await self._database.read("storage pools", storage_pools.get_all)
        stored = {row.name: row.config for row in rows if row.state == "ready"}
        for pool in self._known.all():
            if stored.get(pool.name, pool.config) != pool.config:
                async with self._locks.hold(pool.name):
                    log.info("storage pool %r was changed on another member", pool.name)
                    await self._configure(pool, (await self.get(pool.name)).config)

    async def _configure(self, pool: KnownPool, config: Mapping[str, str]) -> None:
        """Apply the config to the driver, and drop images that it would store in another form now."""
        pool.config = config
        if await self._threads.quick.run(pool.driver.configure, config) and pool.available:
            await self._images.refresh(pool)

    async def delete(self, name: str) -> None:
        """Remove a pool with the images on it from this member.

        Raises NotFound, OtherMember, InUse (instances here, profiles), HostError. The files of an unavailable
        pool are kept.
        """
        await self.get(name)
        if not await self.is_available(name):
            reason = self._known.get(name).unavailable().message
            log.warning("storage pool %r is deleted without its files: %s", name, reason)
        async with self._locks.hold(name):
            await self.get(name)
            pool = self._known.get(name)
            row = await self._closed_for_deletion(pool)
            await self._images.leave(pool)
            async with Rollback() as undo:
                undo.push(self._set_state, row, "ready")
                await self._threads.remove.run(pool.driver.delete)
                undo.keep()
            self._known.remove(pool)
            await self._forget(row)
        self._lifecycle("deleted", name)

    async def _closed_for_deletion(self, pool: KnownPool) -> PoolRow:
        """Make a pool unavailable, and check that it is unused.

        The order matters: a concurrent creation is either seen, or sees that the pool is unavailable. It is
        available again if this raises InUse or OutOfSpace. A pool that is obviously in use is not closed, so
        that its instances are not disturbed.
        """
        await self._unused(pool.name)
        async with Rollback() as undo:
            undo.push(setattr, pool, "available", pool.available)
            pool.available = False
            row = await self._unused(pool.name)
            await self._database.begin("delete storage pool", storage_pools.set_state, row.id, "deleting")
            undo.keep()
        return row

    async def _unused(self, name: str) -> PoolRow:
        """Return an unused pool. Raises NotFound, InUse."""
        pool = await self.show(name)
        if pool.use.profiles or any(kind != VOLUME_IMAGE for kind in pool.use.here):
            raise InUse(f"The storage pool {name!r} is currently in use: remove what uses it first")
        return pool.row

    async def _set_state(self, row: PoolRow, state: State) -> None:
        await self._database.write(f"storage pool is {state}", storage_pools.set_state, row.id, state)

    async def _forget(self, row: PoolRow) -> None:
        """Remove the row of a pool that is removed from the host; if that fails, the next start does it."""
        try:
            await self._remove_row(row)
        except UtsuwaError as error:
            log.warning("cannot remove the row of storage pool %r before the next start: %s", row.name, error)

    async def _remove_row(self, row: PoolRow) -> None:
        await self._database.write("delete storage pool", storage_pools.delete, row.id)

    # Pools that cannot be mounted

    async def ensure_available(self, name: str) -> KnownPool:
        """Return an available pool, after another attempt to mount it if it is not.

        Raises NotFound, or Unavailable with the reason.
        """
        if not self._known.get(name).available:
            await self._try_again(name)
        return self._known.available(name)

    async def is_available(self, name: str) -> bool:
        """Return whether a pool is available, after another attempt to mount it. Raises NotFound."""
        with contextlib.suppress(Unavailable):
            await self.ensure_available(name)
        return self._known.get(name).available

    async def _try_again(self, name: str) -> None:
        async with self._locks.hold(name):
            pool = self._known.get(name)
            if pool.available:
                return
            known = await self._sweep.known()
            try:
                await self._open(pool, known)
            except UtsuwaError as error:
                raise pool.unavailable() from error
            log.info("storage pool %r is available again", name)

    async def _open(self, pool: KnownPool, known: Known) -> None:
        try:
            await self._threads.mount.run(pool.driver.mount)
            pool.available = True
            await self._sweep.run(pool, known)
        except UtsuwaError as error:
            pool.reason = error.message
            self._warnings.report(
                POOL_UNAVAILABLE,
                f"storage pool {pool.name!r} cannot be used: {error.message}",
                pool.subject,
            )
            raise
        pool.reason = DELETED
        self._warnings.resolve(POOL_UNAVAILABLE, pool.subject)

    def _lifecycle(self, action: str, pool: str, context: Mapping[str, str] | None = None) -> None:
        url = object_url("storage-pools", pool)
        self._events.publish_lifecycle(f"storage-pool-{action}", url, "", context)


def _shown_row(tx: Transaction, name: str) -> PoolRow:
    row = storage_pools.get(tx, name)
    if row.state not in _VISIBLE:
        raise NotFound(f"Storage pool {name!r} not found")
    return row


def _of_others(tx: Transaction, name: str) -> PoolRow | None:
    """Return a pool that only other members have."""
    try:
        row = storage_pools.get(tx, name)
    except NotFound:
        return None
    return row if row.state == PENDING else None


def _joined(row: PoolRow, asked: Mapping[str, str], others: PoolRow | None) -> PoolRow:
    """Return the row with this member's part of a pool of others. Raises InvalidConfig on differences."""
    if others is None:
        return row
    if row.driver != others.driver:
        raise InvalidConfig(
            f"Storage pool {row.name!r} has the driver {others.driver!r} on other members: use that one here"
        )
    for key, value in asked.items():
        if value and key not in MEMBER_KEYS and value != others.config.get(key):
            raise InvalidConfig(f"{key} of storage pool {row.name!r} is shared by all members: omit it")
    own = {key: value for key, value in row.config.items() if key in MEMBER_KEYS}
    return replace(others, config={**others.config, **own}, state="creating")


def editable(row: PoolRow) -> StoragePoolPut:
    return StoragePoolPut(config=row.config, description=row.description)


def _reserve(tx: Transaction, new: PoolRow) -> int:
    """Insert the row, replacing one left by a failed creation; the lock excludes concurrent ones."""
    for row in storage_pools.get_all(tx):
        if row.name == new.name and row.state in HALF_MADE:
            storage_pools.delete(tx, row.id)
    return storage_pools.insert(tx, new)
