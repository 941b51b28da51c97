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
from utsuwa.db import storage_pools
from utsuwa.db.codes import HALF_MADE, PENDING, UNKNOWN, VOLUME_IMAGE, State
from utsuwa.db.database import Database
from utsuwa.db.storage_pools import PoolRow, PoolUse
from utsuwa.db.transaction import Transaction
from utsuwa.operations.events import EventHub
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
    """A pool as callers see it; `available` is False where it could not be mounted on this member."""

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
    ) -> None:
        self._database = database
        self._paths = paths
        self._events = events
        self._known = known
        self._images = images
        self._sweep = sweep
        self._threads = threads
        self._locks = NamedLocks()

    # Start and end of the daemon

    async def start(self, known: Known) -> None:
        """Mount every pool, and take away those that a kill left half-made. `known` is for the sweep.

        A pool that cannot be mounted is shown as unavailable and does not keep the daemon from starting.
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
            except UtsuwaError as error:
                log.error("storage pool %r cannot be used: %s", row.name, error)

    def _of(self, row: PoolRow) -> KnownPool:
        return KnownPool(row.name, driver_type(row.driver), self._paths.pool(row.name), row.config)

    async def unmount_all(self) -> None:
        """Unmount all pools, when no container is running any more."""
        for pool in self._known.all_available():
            try:
                await self._threads.mount.run(pool.driver.unmount)
            except UtsuwaError as error:
                log.warning("storage pool %r stays mounted: %s", pool.name, error)
            pool.available = False

    async def _discard(self, row: PoolRow, pool: KnownPool) -> None:
        log.info("removing the half-made or half-deleted storage pool %r", row.name)
        try:
            # The creation may have been interrupted before it saw that the source holds foreign files.
            await self._threads.remove.run(
                pool.driver.discard if row.state == "creating" else pool.driver.delete
            )
        except UtsuwaError as error:
            log.warning("the folders of storage pool %r are not all gone: %s", row.name, error)
        await self._remove_row(row)

    # Reading

    @property
    def drivers_in_use(self) -> set[str]:
        """The names of the drivers of all pools."""
        return {pool.kind.name for pool in self._known.all()}

    async def get(self, name: str) -> PoolRow:
        """A pool that this member has. Raises NotFound, also while it is still being made, OtherMember."""
        row = await self._database.read("storage pool", _shown_row, name)
        if row.state == PENDING:
            raise OtherMember(
                f"Storage pool {name!r} is on {' and '.join(row.locations)} only: "
                "create it on this member, too"
            )
        return row

    async def show(self, name: str) -> Pool:
        """One pool with its use, also one of other members. Raises NotFound."""

        def fetch(tx: Transaction) -> tuple[PoolRow, Mapping[str, PoolUse]]:
            return _shown_row(tx, name), storage_pools.used_by(tx)

        return self._shown(*await self._database.read("storage pool", fetch))

    async def all(self) -> list[Pool]:
        """All pools by name, also those of other members only."""

        def fetch(tx: Transaction) -> tuple[list[PoolRow], Mapping[str, PoolUse]]:
            return storage_pools.get_all(tx), storage_pools.used_by(tx)

        rows, use = await self._database.read("storage pools", fetch)
        return [self._shown(row, use) for row in rows if row.state in _VISIBLE]

    def _shown(self, row: PoolRow, use: Mapping[str, PoolUse]) -> Pool:
        available = any(pool.name == row.name for pool in self._known.all_available())
        return Pool(row, use.get(row.name, PoolUse()), available)

    async def resources(self, name: str) -> Usage:
        """Space and inodes of the file system below a pool. Raises NotFound, Unavailable."""
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
        """Make a pool, without a driver one of the default driver; or have one that other members have.

        Raises InvalidName, InvalidRequest (driver), InvalidConfig, AlreadyExists, HostError.
        """
        check_object_name("Storage pool", name)
        row = self._first_row(name, driver_type(driver or DEFAULT_DRIVER), description, config or {})
        async with self._locks.hold(name), Rollback() as undo:
            row = _joined(row, config or {}, await self._database.read("storage pool", _of_others, name))
            pool = self._of(row)
            row = replace(row, id=await self._database.begin("reserve storage pool", _reserve, row))
            undo.push(self._remove_row, row)
            revert = partial(self._threads.remove.run, pool.driver.delete)
            await self._threads.mount.make(undo, revert, pool.driver.create)
            await self._set_state(row, "ready")
            pool.available = True
            self._known.add(pool)
            undo.keep()
        self._lifecycle("created", name, {"driver": row.driver})

    def _first_row(self, name: str, kind: DriverType, description: str, config: Mapping[str, str]) -> PoolRow:
        given = {key: value for key, value in without_volatile(config).items() if value}
        kind.pool_keys.check(given)
        if "source" in given:
            given["source"] = str(self._checked_source(name, given["source"]))
            given["volatile.initial_source"] = config["source"]
        else:
            given["source"] = str(self._paths.pool(name))
        # Keys that are fixed keep their value even if the defaults of the daemon change.
        defaults = {key: default for key, default in kind.fixed.items() if default}
        config = {**defaults, **given}
        return PoolRow(id=0, name=name, driver=kind.name, description=description, config=config)

    def _checked_source(self, name: str, source: str) -> Path:
        """The source without symlinks; nothing in the state folder but the pool's own place is one."""
        path = Path(source).resolve()
        if path != self._paths.pool(name) and (path == self._paths.root or self._paths.root in path.parents):
            raise InvalidConfig(f"The source {source} lies in the daemon's state folder: use another one")
        if path in self._paths.root.parents:
            raise InvalidConfig(f"The source {source} holds the daemon's state folder: use another one")
        return path

    async def edit(self, name: str, change: edits.Change[StoragePoolPut], if_match: edits.IfMatch) -> None:
        """Change description and config; keys that are fixed at creation keep their value where left out.

        Raises NotFound, PreconditionFailed, InvalidConfig.
        """
        async with self._locks.hold(name):
            row = await self.get(name)
            new = edits.edited(editable(row), change, if_match)
            wanted = {key: value for key, value in new.config.items() if value}
            pool = self._known.get(name)
            for key in pool.kind.fixed:
                if key in row.config:
                    wanted.setdefault(key, row.config[key])
                if wanted.get(key) != row.config.get(key):
                    raise InvalidConfig(f"{key} of a storage pool cannot be changed once the pool is there")
            pool.kind.pool_keys.check(wanted)
            changed = replace(row, description=new.description, config=wanted)
            await self._database.write("update storage pool", storage_pools.update, changed)
            await self._configure(pool, wanted)
        self._lifecycle("updated", name)

    async def follow_others(self) -> None:
        """Take over what other members have changed in pools that this one has as well."""
        rows = await self._database.read("storage pools", storage_pools.get_all)
        stored = {row.name: row.config for row in rows if row.state == "ready"}
        for pool in self._known.all():
            if stored.get(pool.name, pool.config) != pool.config:
                async with self._locks.hold(pool.name):
                    log.info("storage pool %r was changed on another member", pool.name)
                    await self._configure(pool, (await self.get(pool.name)).config)

    async def _configure(self, pool: KnownPool, config: Mapping[str, str]) -> None:
        """Apply config to the driver, and drop images that it would store in another form now."""
        pool.config = config
        if await self._threads.quick.run(pool.driver.configure, config) and pool.available:
            await self._images.bring_anew(pool)

    async def delete(self, name: str) -> None:
        """Remove a pool with the images on it from this member.

        Raises NotFound, OtherMember, InUse (instances here, profiles), HostError. What is on one that is not
        available stays there.
        """
        await self.get(name)
        if not await self.is_available(name):
            reason = self._known.get(name).unavailable().message
            log.warning("storage pool %r is deleted without what is on it: %s", name, reason)
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
        """Let nobody come to a pool any more, then look at its use: what is just being made is seen, or
        sees that the pool is closed. It is open again where this raises InUse, or OutOfSpace for want of
        room to note the deletion. One that is seen to be used is not closed: its instances go on.
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
        """Raises NotFound, InUse."""
        pool = await self.show(name)
        if pool.use.profiles or any(kind != VOLUME_IMAGE for kind in pool.use.here):
            raise InUse(f"The storage pool {name!r} is currently in use: remove what uses it first")
        return pool.row

    async def _set_state(self, row: PoolRow, state: State) -> None:
        await self._database.write(f"storage pool is {state}", storage_pools.set_state, row.id, state)

    async def _forget(self, row: PoolRow) -> None:
        """Remove the row of a pool that is gone from the host; if that fails, the next start does it."""
        try:
            await self._remove_row(row)
        except UtsuwaError as error:
            log.warning("the row of storage pool %r stays until the next start: %s", row.name, error)

    async def _remove_row(self, row: PoolRow) -> None:
        await self._database.write("delete storage pool", storage_pools.delete, row.id)

    # Pools that cannot be mounted

    async def ensure_available(self, name: str) -> KnownPool:
        """A pool that can be used; one that could not be mounted earlier is tried again.

        Raises NotFound, or Unavailable with what keeps it from being mounted.
        """
        if not self._known.get(name).available:
            await self._try_again(name)
        return self._known.available(name)

    async def is_available(self, name: str) -> bool:
        """Whether a pool can be used, after another attempt to mount it. Raises NotFound."""
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
            log.info("storage pool %r can be used again", name)

    async def _open(self, pool: KnownPool, known: Known) -> None:
        try:
            await self._threads.mount.run(pool.driver.mount)
            pool.available = True
            await self._sweep.run(pool, known)
        except UtsuwaError as error:
            pool.reason = error.message
            raise
        pool.reason = DELETED

    def _lifecycle(self, action: str, pool: str, context: Mapping[str, str] | None = None) -> None:
        url = object_url("storage-pools", pool)
        self._events.publish_lifecycle(f"storage-pool-{action}", url, "", context)


def _shown_row(tx: Transaction, name: str) -> PoolRow:
    row = storage_pools.get(tx, name)
    if row.state not in _VISIBLE:
        raise NotFound(f"Storage pool {name!r} not found")
    return row


def _of_others(tx: Transaction, name: str) -> PoolRow | None:
    """A pool that other members have, and this one has not."""
    try:
        row = storage_pools.get(tx, name)
    except NotFound:
        return None
    return row if row.state == PENDING else None


def _joined(row: PoolRow, asked: Mapping[str, str], others: PoolRow | None) -> PoolRow:
    """The row of a new pool, with what it has in common with that of `others`. Raises InvalidConfig where
    something else was asked for.
    """
    if others is None:
        return row
    if row.driver != others.driver:
        raise InvalidConfig(
            f"Storage pool {row.name!r} has the driver {others.driver!r} on other members: use that one here"
        )
    for key, value in asked.items():
        if value and key not in MEMBER_KEYS and value != others.config.get(key):
            raise InvalidConfig(
                f"{key} of storage pool {row.name!r} is the same on all members: leave it out here"
            )
    own = {key: value for key, value in row.config.items() if key in MEMBER_KEYS}
    return replace(others, config={**others.config, **own}, state="creating")


def editable(row: PoolRow) -> StoragePoolPut:
    return StoragePoolPut(config=row.config, description=row.description)


def _reserve(tx: Transaction, new: PoolRow) -> int:
    """In place of one whose row could not be taken back, for want of space: nobody else is making one now."""
    for row in storage_pools.get_all(tx):
        if row.name == new.name and row.state in HALF_MADE:
            storage_pools.delete(tx, row.id)
    return storage_pools.insert(tx, new)
