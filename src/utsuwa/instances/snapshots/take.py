"""Taking snapshots of stopped and running instances."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

from utsuwa.core import clock, faults
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.schedules import default_expiry
from utsuwa.core.snapshot_names import DEFAULT_PATTERN, check_snapshot_name, next_name
from utsuwa.db import snapshots as snapshot_rows
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import freeze
from utsuwa.instances.model import Loaded, Running
from utsuwa.instances.running_state import save, saved
from utsuwa.instances.snapshots import rows
from utsuwa.wire.snapshots import SnapshotsPost


async def reserve(
    ctx: Context, ref: InstanceRef, request: SnapshotsPost, *, scheduled: bool = False
) -> SnapshotRow:
    """Reserve the name: a row in the state `creating` that `take` or `discard` ends.

    Raises NotFound, OtherMember, InvalidName, InvalidRequest (time, state), AlreadyExists, Forbidden, or
    Unavailable without CRIU.
    """
    name = check_snapshot_name(request.name) if request.name else ""
    instance = await load(ctx, ref)
    instance.restrictions.check_snapshot()
    if request.stateful:
        await save.check(ctx, _running(ctx, ref))
    now = clock.now()
    if request.expires_at is None:
        expires = default_expiry(instance.expanded.config, now, scheduled=scheduled)
    else:
        expires = clock.from_wire(request.expires_at)
    data = replace(instance.data, stateful=request.stateful)
    row = SnapshotRow(0, instance.row.id, SnapshotRef(ref, name), data, now, expires)
    pattern = instance.expanded.config.get("snapshots.pattern") or DEFAULT_PATTERN
    return await ctx.database.begin("reserve snapshot", _insert, row, pattern)


def _running(ctx: Context, ref: InstanceRef) -> Running:
    found = ctx.runtime.get(ref)
    if found is None:
        raise InvalidRequest(f"The instance {ref.name!r} is not running, so it has no running state to save")
    return found


def _insert(tx: Transaction, row: SnapshotRow, pattern: str) -> SnapshotRow:
    """Insert the row, named by the pattern if it has no name."""
    ref = row.ref
    if not ref.name:
        taken = snapshot_rows.names(tx, ref.instance)
        ref = replace(ref, name=next_name(pattern, taken, row.created_at.astimezone()))
    named = replace(row, ref=ref)
    return replace(named, id=snapshot_rows.insert(tx, named))


async def take(ctx: Context, row: SnapshotRow) -> None:
    """Copy the files for a reserved snapshot and make it visible; on failure, remove everything."""
    async with Rollback() as undo:
        undo.push(discard, ctx, row)
        async with ctx.locks.hold("instance", row.ref.instance):
            await _take(ctx, row)
        undo.keep()
    ctx.snapshot_lifecycle("created", row.ref)


async def _take(ctx: Context, row: SnapshotRow) -> None:
    instance = await load(ctx, row.ref.instance)
    container = ctx.runtime.get(instance.ref)
    async with Rollback() as undo:
        create = partial(ctx.storage.copies.create_snapshot, instance.pool, row.ref.volume)
        if row.data.stateful:
            await _save(ctx, instance, row)
        elif container is None:
            await create()
        else:
            async with freeze.held(ctx, container):
                await create(mounted=container.idmap)
        undo.push(ctx.storage.copies.delete_snapshot, instance.pool, row.ref.volume)
        faults.point("snapshot copied")
        # The instance may have been changed since the name was reserved.
        data = replace(instance.data, stateful=row.data.stateful)
        ready = replace(row, data=data, state="ready")
        await ctx.database.write("snapshot is ready", rows.complete, instance.pool, ready)
        undo.keep()


async def _save(ctx: Context, instance: Loaded, row: SnapshotRow) -> None:
    """Save the running state of a container, and copy its disk in the same moment."""
    container = _running(ctx, instance.ref)
    criu = await save.check(ctx, container)

    async def copy(fresh: Path) -> None:
        async with Rollback() as undo:
            await ctx.storage.copies.create_snapshot(instance.pool, row.ref.volume, mounted=container.idmap)
            undo.push(ctx.storage.copies.delete_snapshot, instance.pool, row.ref.volume)
            folder = ctx.storage.volumes.folder(instance.pool, row.ref.volume)
            await asyncio.to_thread(saved.publish, fresh, folder)
            undo.keep()

    await save.save(ctx, instance, container, criu, copy)


async def discard(ctx: Context, row: SnapshotRow) -> None:
    """Release a reserved name."""
    await ctx.database.write("discard snapshot", snapshot_rows.delete, row.id)
