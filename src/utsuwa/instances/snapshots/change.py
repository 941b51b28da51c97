"""Changing, renaming and deleting snapshots. Their content and configuration cannot be changed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from utsuwa.core import clock
from utsuwa.core.errors import AlreadyExists, UtsuwaError
from utsuwa.core.refs import SnapshotRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.snapshot_names import check_snapshot_name
from utsuwa.db import snapshots as snapshot_rows
from utsuwa.db.codes import HALF_MADE
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction
from utsuwa.instances.context import Context, load, load_all
from utsuwa.instances.model import Loaded
from utsuwa.instances.snapshots import rows
from utsuwa.instances.snapshots.loading import editable, find, load_with_instance
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.snapshots import SnapshotPut

log = logging.getLogger(__name__)


async def check_edit(ctx: Context, ref: SnapshotRef, change: Change[SnapshotPut], if_match: IfMatch) -> None:
    """Raise what `edit` would raise now: NotFound, PreconditionFailed, InvalidRequest (time)."""
    clock.from_wire(edited(editable((await find(ctx, ref)).row), change, if_match).expires_at)


async def edit(ctx: Context, ref: SnapshotRef, change: Change[SnapshotPut], if_match: IfMatch) -> None:
    """Change the expiry and the description. Raises as `check_edit`."""

    def store(tx: Transaction) -> None:
        row = snapshot_rows.get(tx, ref)
        new = edited(editable(row), change, if_match)
        description = new.description if isinstance(new.description, str) else row.data.description
        snapshot_rows.update(tx, row.id, description, clock.from_wire(new.expires_at))

    await ctx.database.write("edit snapshot", store)
    ctx.snapshot_lifecycle("updated", ref)


async def check_rename(ctx: Context, ref: SnapshotRef, new: str) -> SnapshotRow:
    """Return the row of a snapshot that may get that name. Raises NotFound, AlreadyExists, InvalidName."""
    check_snapshot_name(new)
    await load(ctx, ref.instance)
    row = (await find(ctx, ref)).row
    if new in await ctx.database.read("names of snapshots", snapshot_rows.names, ref.instance):
        raise AlreadyExists(f"The instance {ref.instance.name!r} already has a snapshot named {new!r}")
    return row


async def rename(ctx: Context, ref: SnapshotRef, new: str) -> None:
    """Raises as `check_rename`."""
    async with ctx.locks.hold("instance", ref.instance):
        instance = await load(ctx, ref.instance)
        row = await check_rename(ctx, ref, new)
        also = partial(rows.rename, pool=instance.pool, row=row, new=new)
        await ctx.storage.copies.rename_snapshot(instance.pool, ref.volume, new, also)
    ctx.snapshot_lifecycle("renamed", SnapshotRef(ref.instance, new), {"old_name": ref.name})


@dataclass(frozen=True)
class Deletion:
    """A snapshot that may be deleted, and its instance, as they were loaded."""

    instance: Loaded
    row: SnapshotRow
    moment: int | None
    """When they were read, for `Database.unchanged_since`."""


async def check_delete(ctx: Context, ref: SnapshotRef) -> Deletion:
    """Return what a `delete` that follows would delete. Raises NotFound, OtherMember."""
    moment = ctx.database.moment()
    instance, snapshot = await load_with_instance(ctx, ref)
    return Deletion(instance, snapshot.row, moment)


async def delete(ctx: Context, ref: SnapshotRef, checked: Deletion | None = None) -> None:
    """Delete a snapshot; a daemon that is killed meanwhile completes this at its next start.

    What was `checked` is checked again if anything has changed since. Raises as `check_delete`.
    """
    async with ctx.locks.hold("instance", ref.instance), Rollback() as undo:
        if checked is None or not ctx.database.unchanged_since(checked.moment):
            checked = await check_delete(ctx, ref)
        instance, row = checked.instance, checked.row
        undo.push(ctx.database.write, "snapshot stays", snapshot_rows.set_ready, row.id)
        await ctx.database.commit("snapshot is deleted", snapshot_rows.set_deleting, row.id)
        ctx.database.sync_soon()
        await remove(ctx, instance, row)
        undo.keep()
    ctx.snapshot_lifecycle("deleted", ref)


async def sweep(ctx: Context) -> None:
    """Remove what interrupted creations and deletions of snapshots left on this member."""
    found = await ctx.database.read("snapshots", snapshot_rows.get_here)
    instances = {instance.ref: instance for instance in await load_all(ctx)}
    for row in found:
        if row.state not in HALF_MADE or row.ref.instance not in instances:
            continue
        log.info("removing the incomplete snapshot %r of %r", row.ref.name, row.ref.instance.name)
        try:
            await remove(ctx, instances[row.ref.instance], row)
        except UtsuwaError as error:  # such as an unavailable pool: the next start tries again
            log.error("the incomplete snapshot %r cannot be removed: %s", row.ref.name, error)


async def remove(ctx: Context, instance: Loaded, row: SnapshotRow) -> None:
    """Remove a snapshot's files and then its row, as far as they exist."""
    await ctx.storage.copies.delete_snapshot(instance.pool, row.ref.volume)
    await ctx.database.commit("delete snapshot", rows.delete, instance.pool, row)
