"""Snapshots of custom volumes: by hand and by schedule, their expiry, and restores."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from datetime import datetime
from functools import partial
from typing import Any

from utsuwa.core import clock
from utsuwa.core.errors import AlreadyExists, NotFound
from utsuwa.core.schedules import default_expiry, is_due
from utsuwa.core.snapshot_names import DEFAULT_PATTERN, check_snapshot_name, next_name
from utsuwa.core.volumes import Volume
from utsuwa.db import storage_volumes, volume_snapshots
from utsuwa.db.codes import VOLUME_CUSTOM
from utsuwa.db.storage_volumes import CREATION, DELETION, VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_snapshots import VolumeSnapshotRow
from utsuwa.projects import restrictions
from utsuwa.storage import intentions
from utsuwa.storage.copying import Copying
from utsuwa.storage.custom.context import CustomContext, get, place_of, readable
from utsuwa.storage.custom.uses import Place
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.storage import StorageVolumeSnapshotPut, StorageVolumeSnapshotsPost

log = logging.getLogger(__name__)


def find(tx: Transaction, place: Place) -> tuple[VolumeRow, VolumeSnapshotRow]:
    """Return a snapshot and its volume. Raises NotFound, OtherMember."""
    row = get(tx, place)
    return row, volume_snapshots.get(tx, row, place[1].snapshot or "")


async def check_create(ctx: CustomContext, place: Place, request: StorageVolumeSnapshotsPost) -> None:
    """Raise what `create` would raise now."""
    ctx.uses.check_not_reserved(place)
    await ctx.pools.ensure_available(place[0])
    await ctx.database.read("check snapshot of volume", _planned, place, request, clock.now())


def _planned(
    tx: Transaction,
    place: Place,
    request: StorageVolumeSnapshotsPost,
    now: datetime,
    *,
    scheduled: bool = False,
) -> tuple[VolumeRow, str, datetime | None]:
    """Return the volume, and name and expiry of its new snapshot."""
    row = get(tx, place)
    restrictions.get(tx, row.project).check_snapshot()
    taken = volume_snapshots.names(tx, row.id)
    if request.name in taken:
        raise AlreadyExists(f"Snapshot {request.name!r} of storage volume {row.name!r} already exists")
    pattern = row.config.get("snapshots.pattern") or DEFAULT_PATTERN
    name = check_snapshot_name(request.name or next_name(pattern, taken, now.astimezone()))
    if request.expires_at is None:
        return row, name, default_expiry(row.config, now, scheduled=scheduled)
    return row, name, clock.from_wire(request.expires_at)


async def create(
    ctx: CustomContext, place: Place, request: StorageVolumeSnapshotsPost, *, scheduled: bool = False
) -> None:
    """Take a snapshot; processes of running instances that use the volume do not run meanwhile.

    Raises NotFound, InvalidName, AlreadyExists, InvalidRequest (time), InUse (by the server itself),
    Unavailable, OutOfSpace, HostError.
    """
    pool, volume = place
    at = await ctx.pools.ensure_available(pool)
    async with ctx.quiet(ctx.uses.instances(place)), ctx.locks.hold(pool, volume):
        ctx.uses.check_not_reserved(place)
        now = clock.now()
        planned = partial(_planned, scheduled=scheduled)
        row, name, expires = await ctx.database.read("new snapshot", planned, place, request, now)
        snapshot = volume.snapshot_named(name)
        also = partial(volume_snapshots.take, volume=row, name=name, created_at=now, expires_at=expires)
        intention = intentions.of_snapshot(CREATION, name)
        async with (
            ctx.copies.changed(at, volume, intention, also, locked=True) as undo,
            readable(ctx, at, row) as mounted,
        ):
            await ctx.copies.copy_files(Copying(pool, volume, pool, snapshot, mounted=mounted), undo)
    ctx.lifecycle("created", (pool, snapshot), {"type": "custom"})


async def edit(
    ctx: CustomContext, place: Place, change: Change[StorageVolumeSnapshotPut], if_match: IfMatch
) -> None:
    """Change description and expiry. Raises NotFound, PreconditionFailed, InvalidRequest (time)."""

    def store(tx: Transaction) -> None:
        row, snapshot = find(tx, place)
        new = edited(editable(snapshot), change, if_match)
        expires = clock.from_wire(new.expires_at)
        volume_snapshots.update(tx, row.id, snapshot.name, new.description, expires)

    await ctx.database.write("edit snapshot of volume", store)
    ctx.lifecycle("updated", place)


def editable(row: VolumeSnapshotRow) -> StorageVolumeSnapshotPut:
    return StorageVolumeSnapshotPut(description=row.description, expires_at=clock.to_wire(row.expires_at))


async def check_rename(ctx: CustomContext, place: Place, new: str) -> None:
    """Raise what `rename` would raise now."""
    check_snapshot_name(new)
    await ctx.pools.ensure_available(place[0])

    def check(tx: Transaction) -> None:
        row, _ = find(tx, place)
        if new in volume_snapshots.names(tx, row.id):
            raise AlreadyExists(f"Snapshot {new!r} of storage volume {row.name!r} already exists")

    await ctx.database.read("name of snapshot", check)


async def rename(ctx: CustomContext, place: Place, new: str) -> None:
    """Raises NotFound, InvalidName, AlreadyExists, Unavailable, HostError."""
    pool, snapshot = place
    await check_rename(ctx, place, new)
    row, _ = await ctx.database.read("snapshot of volume", find, place)
    also = partial(volume_snapshots.rename, volume_id=row.id, old=snapshot.snapshot or "", new=new)
    await ctx.copies.rename_snapshot(pool, snapshot, new, also)
    ctx.lifecycle("renamed", (pool, snapshot.snapshot_named(new)), {"old_name": snapshot.snapshot})


async def delete(ctx: CustomContext, place: Place) -> None:
    """Delete a snapshot; a daemon that is killed meanwhile completes this at its next start.

    Raises NotFound, Unavailable, HostError.
    """
    pool, snapshot = place
    at = await ctx.pools.ensure_available(pool)
    volume, name = snapshot.whole, snapshot.snapshot or ""
    async with ctx.locks.hold(pool, volume):
        row, _ = await ctx.database.read("snapshot of volume", find, place)
        also = partial(volume_snapshots.delete, volume_id=row.id, name=name)
        intention = intentions.of_snapshot(DELETION, name)
        async with ctx.copies.changed(at, volume, intention, also, locked=True):
            await ctx.threads.remove.run(at.driver.delete_volume, snapshot)
    ctx.lifecycle("deleted", place)


async def restore(ctx: CustomContext, place: Place, name: str) -> None:
    """Give a volume the files of a snapshot; config and description stay.

    Raises NotFound, Unavailable, OutOfSpace, HostError, and InUse while running instances use the volume.
    """
    pool, volume = place
    snapshot = volume.snapshot_named(name.removeprefix(f"{volume.name}/"))
    with ctx.uses.excluded(place, "restored"):
        await ctx.database.read("snapshot of volume", find, (pool, snapshot))
        await ctx.copies.replace(Copying(pool, snapshot, pool, volume))
    ctx.lifecycle("restored", place, {"snapshot": snapshot.snapshot})


async def look(ctx: CustomContext, now: datetime) -> None:
    """Do what is due in the minute of `now`, one volume after the other: the look at schedules."""
    for pool, snapshot in await ctx.database.read("expired", volume_snapshots.expired, now):
        await _try(snapshot, "an expired snapshot", delete(ctx, (pool, snapshot)))
    rows = await ctx.database.read("schedules", storage_volumes.get_all, None, type=VOLUME_CUSTOM)
    for row in rows:
        schedule = row.config.get("snapshots.schedule", "")
        if schedule and row.here and not row.half_made and is_due(schedule, now.astimezone(), row.id):
            work = create(ctx, place_of(row), StorageVolumeSnapshotsPost(), scheduled=True)
            await _try(place_of(row)[1], "a scheduled snapshot", work)


async def _try(volume: Volume, what: str, work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except NotFound:
        pass  # deleted meanwhile
    except Exception:
        log.exception("storage volume %r: %s failed", volume.name, what)
