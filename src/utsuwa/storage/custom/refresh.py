"""Refreshing a copy of a custom volume: its files and snapshots become those of its source again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.names import check_volume_name
from utsuwa.db import volume_snapshots
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_snapshots import VolumeSnapshotRow
from utsuwa.storage.copying import Copying
from utsuwa.storage.custom.context import CustomContext, get, is_taken, readable
from utsuwa.storage.custom.copy import CopyRequest, Source, source_of


@dataclass(frozen=True)
class _Plan:
    """The source, the copy, the snapshots that it gets, oldest first, and those that it loses."""

    source: Source
    target: VolumeRow
    new: Sequence[VolumeSnapshotRow]
    gone: Sequence[VolumeSnapshotRow]


async def check(ctx: CustomContext, request: CopyRequest) -> bool:
    """Raise what `refresh` would raise now; return whether there is a copy: otherwise, it has to be made."""
    pool, volume = request.target
    check_volume_name(volume.name)
    await ctx.pools.ensure_available(pool)
    await ctx.pools.ensure_available(request.source[0])
    if not await ctx.database.read("copy of volume", is_taken, request.target):
        return False
    if request.source[1].snapshot is not None:
        raise InvalidRequest("A copy is refreshed from a volume, not from one of its snapshots")
    if request.source == request.target:
        raise InvalidRequest(f"The storage volume {volume.name!r} cannot be refreshed from itself")
    await ctx.database.read("check refresh of volume", _planned, request)
    with ctx.uses.excluded(request.target, "refreshed"):
        return True


async def refresh(ctx: CustomContext, request: CopyRequest) -> None:
    """Refresh a copy, completely or not at all. Its config and description stay.

    Snapshots are compared by name and date. What has not changed is not copied, as far as can be told.
    Raises NotFound (pools, volumes), Unavailable, InvalidRequest, InvalidName, OutOfSpace, HostError, and
    InUse while running instances use the copy; those that use the source do not run meanwhile.
    """
    source_at = await ctx.pools.ensure_available(request.source[0])
    at, target = await ctx.pools.ensure_available(request.target[0]), request.target[1]
    with ctx.uses.excluded(request.target, "refreshed"):
        async with (
            ctx.quiet(ctx.uses.instances(request.source)),
            ctx.copies.both(request.source, request.target),
        ):
            plan = await ctx.database.read("refresh of volume", _planned, request)
            new, gone = [row.name for row in plan.new], [row.name for row in plan.gone]

            def store(tx: Transaction) -> None:
                for name in gone:
                    volume_snapshots.delete(tx, plan.target.id, name)
                for row in plan.new:
                    volume_snapshots.insert(tx, plan.target.id, row)

            async with (
                readable(ctx, source_at, plan.source.row) as mounted,
                ctx.copies.replaced(at, target, nullcontext(), store, new, gone) as (staging, undo),
            ):
                made = Copying(*request.source, at.name, staging, snapshots=new, mounted=mounted, like=target)
                await ctx.copies.copy_all(made, undo)
    ctx.lifecycle("updated", request.target)


def _planned(tx: Transaction, request: CopyRequest) -> _Plan:
    """Raises NotFound (volumes), OtherMember."""
    source = source_of(tx, request.source, with_snapshots=request.with_snapshots)
    target: VolumeRow = get(tx, request.target)
    if not request.with_snapshots:
        return _Plan(source, target, (), ())
    there = volume_snapshots.get_of(tx, target.id)
    return _Plan(source, target, _lacking(source.snapshots, there), _lacking(there, source.snapshots))


def _lacking(
    snapshots: Sequence[VolumeSnapshotRow], others: Sequence[VolumeSnapshotRow]
) -> list[VolumeSnapshotRow]:
    """Return the snapshots that are not among the others, by name and date."""
    known = {(other.name, other.created_at) for other in others}
    return [row for row in snapshots if (row.name, row.created_at) not in known]
