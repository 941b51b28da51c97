"""The services for the verbs of this package, and what several of them do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace

from utsuwa.core.config_keys import VOLATILE, without_volatile
from utsuwa.core.errors import InvalidConfig, NotFound, OtherMember
from utsuwa.core.idmap import IdMap
from utsuwa.core.locks import NamedLocks
from utsuwa.core.pool_keys import SHIFTED, UNMAPPED, is_shifted, is_unmapped
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.volumes import Volume
from utsuwa.db import storage_volumes
from utsuwa.db.codes import VOLUME_CUSTOM
from utsuwa.db.database import Database
from utsuwa.db.storage_volumes import CREATION, VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.operations.kinds import Kind
from utsuwa.operations.operations import Operation, Operations
from utsuwa.projects import limits, restrictions
from utsuwa.storage import intentions
from utsuwa.storage.base import DriverType
from utsuwa.storage.copies import CopyManager
from utsuwa.storage.custom.uses import Place, Uses
from utsuwa.storage.known_pools import KnownPool, KnownPools
from utsuwa.storage.pools import PoolManager
from utsuwa.storage.threads import StorageThreads
from utsuwa.storage.volume_rows import new_row
from utsuwa.storage.volumes import ENFORCED_KEY, VolumeManager, shown_size

NO_MAP = IdMap()
"""The owners of a custom volume on disk are those that instances see, if the kernel can map them."""

Quiet = Callable[[Collection[InstanceRef]], AbstractAsyncContextManager[None]]
"""Keeps the processes of running instances from running within the block."""

Created = Callable[[Transaction, int], None]
"""What else is stored when a new volume is complete; called with the id of its row."""


@asynccontextmanager
async def _not_quiet(_: Collection[InstanceRef]) -> AsyncIterator[None]:
    yield


@dataclass
class CustomContext:
    """The context of every verb. `locks` are those of the volumes."""

    database: Database
    known: KnownPools
    pools: PoolManager
    volumes: VolumeManager
    copies: CopyManager
    threads: StorageThreads
    locks: NamedLocks
    operations: Operations
    uses: Uses = field(default_factory=Uses)
    quiet: Quiet = _not_quiet

    def lifecycle(self, action: str, place: Place, context: Mapping[str, object] | None = None) -> None:
        """Publish a lifecycle event of a volume or snapshot (`created` becomes `storage-volume-created`)."""
        pool, volume = place
        what = "storage-volume" if volume.snapshot is None else "storage-volume-snapshot"
        self.operations.events.publish_lifecycle(
            f"{what}-{action}", volume.url(pool), volume.project, dict(context) if context else None
        )

    def in_background(
        self, kind: Kind, project: str, volume: Volume, work: Callable[[], Awaitable[object]]
    ) -> Operation:
        """Start an operation on a volume that does `work`, in the project of the request."""

        async def run(_: Operation) -> None:
            await work()

        return self.operations.start(kind, project, run, names=[volume.name])


def volume_of(row: VolumeRow) -> Volume:
    return Volume("custom", row.project, row.name)


def place_of(row: VolumeRow) -> Place:
    return row.pool, volume_of(row)


def get(tx: Transaction, place: Place) -> VolumeRow:
    """Return the row of a volume, or of the volume of a snapshot, on this member.

    Raises NotFound, also while it is being created or deleted, OtherMember.
    """
    pool, volume = place
    row = storage_volumes.get(tx, volume.project, pool, VOLUME_CUSTOM, volume.name)
    if row.half_made:
        raise storage_volumes.not_found(pool, volume.name)
    return check_here(row)


def check_here(row: VolumeRow) -> VolumeRow:
    """Return a row, or raise OtherMember if it is on another member."""
    if not row.here:
        raise OtherMember(f"The storage volume {row.name!r} is on {row.location!r}: ask that member")
    return row


def is_taken(tx: Transaction, place: Place) -> bool:
    """Whether a volume of that name exists, or is being created or deleted."""
    pool, volume = place
    try:
        storage_volumes.get(tx, volume.project, pool, VOLUME_CUSTOM, volume.name)
    except NotFound:
        return False
    return True


def check_config(kind: DriverType, config: Mapping[str, str]) -> None:
    """Raise InvalidConfig unless a volume on a pool of this driver may have the config."""
    kind.custom_keys.check(without_volatile(config))
    if is_shifted(config) and is_unmapped(config):
        raise InvalidConfig(f"{SHIFTED} and {UNMAPPED} cannot both be true: unset one of them")


def first_config(pool: KnownPool, given: Mapping[str, str]) -> dict[str, str]:
    """Return the config of a new volume, with the defaults of its pool. Raises InvalidConfig."""
    prefix = "volume."
    defaults = {
        key.removeprefix(prefix): value for key, value in pool.config.items() if key.startswith(prefix)
    }
    wanted = pool.kind.custom_keys.set_only(without_volatile(given))
    if is_unmapped(wanted) or is_shifted(wanted):  # the other one's default would contradict
        defaults = {key: value for key, value in defaults.items() if key not in (SHIFTED, UNMAPPED)}
    config = {**defaults, **wanted}
    check_config(pool.kind, config)
    return config


def config_of_copy(pool: KnownPool, config: Mapping[str, str]) -> dict[str, str]:
    """As `first_config`, for a volume that takes over the config of another one.

    Keys of another driver are left out.
    """
    known = pool.kind.custom_keys
    kept = {
        key: value
        for key, value in config.items()
        if known.find(key) is not None or key.startswith(known.free_prefixes)
    }
    return first_config(pool, kept)


def with_size_shown(pool: KnownPool, config: Mapping[str, str], old: Mapping[str, str]) -> dict[str, str]:
    """Return a config with the volatile keys of another one; they say whether the size is enforced."""
    kept = {key: value for key, value in old.items() if key.startswith(VOLATILE) and key != ENFORCED_KEY}
    free = pool.kind.custom_keys.set_only(without_volatile(config), old)
    return {**free, **kept, **shown_size(pool, free.get("size", ""))}


@asynccontextmanager
async def creation(
    ctx: CustomContext,
    pool: KnownPool,
    volume: Volume,
    config: Mapping[str, str],
    description: str,
    also: Created | None = None,
    *,
    within_limits: bool = True,
) -> AsyncIterator[Rollback]:
    """Create a volume whose files, and those of its snapshots, are created in the block.

    The caller holds the lock of the volume. It is visible when it is complete; if anything fails or is
    interrupted before, nothing is left. Raises AlreadyExists, Forbidden (limits and restrictions of the
    project, unless `within_limits` is false), Unavailable.
    """
    size = config.get("size", "")
    row = new_row(pool.name, volume, with_size_shown(pool, config, {}))
    row = replace(row, description=description, new_name=CREATION)
    async with Rollback() as undo:
        row_id = await ctx.database.begin("reserve custom volume", _reserve, row, within_limits)
        undo.push(ctx.database.write, "discard custom volume", storage_volumes.delete, row_id)
        # A concurrent deletion of the pool has either seen the row or closed the pool by now.
        ctx.known.available(pool.name)
        undo.push(ctx.threads.remove.run, intentions.delete_all, pool.driver, volume)
        yield undo
        if size:
            await ctx.volumes.apply_size(pool, volume, size)
        await ctx.database.write("custom volume is complete", _complete, row_id, also)
        undo.keep()
    ctx.volumes.judge_size(pool, volume, row_id, size)


def _reserve(tx: Transaction, row: VolumeRow, within_limits: bool) -> int:
    restrictions.get(tx, row.project).check_pool(row.pool)
    row_id = storage_volumes.insert(tx, row)
    if within_limits:
        limits.check(tx, row.project)
    return row_id


def _complete(tx: Transaction, row_id: int, also: Created | None) -> None:
    storage_volumes.set_new_name(tx, row_id, "")
    if also is not None:
        also(tx, row_id)


@asynccontextmanager
async def readable(ctx: CustomContext, pool: KnownPool, row: VolumeRow) -> AsyncIterator[IdMap | None]:
    """Have the files of a volume ready to be copied; the caller holds its lock.

    Yields the id map with which they are mounted, if running instances use the volume through that one;
    without idmapped mounts, the owners on disk are theirs.
    """
    volume = volume_of(row)
    idmap = ctx.uses.idmap((pool.name, volume))
    if idmap is None or idmap.privileged or is_shifted(row.config) or is_unmapped(row.config):
        yield None
        return
    await ctx.threads.mount.run(pool.driver.mount_volume, volume, idmap)
    try:
        yield idmap
    finally:
        await ctx.threads.quick.run(pool.driver.unmount_volume, volume)
