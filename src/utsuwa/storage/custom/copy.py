"""Copying custom volumes on this host, renaming them, and moving them to another pool or project."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from utsuwa.core.errors import AlreadyExists, UtsuwaError
from utsuwa.core.names import check_volume_name
from utsuwa.core.volumes import Volume
from utsuwa.db import storage_volumes, volume_snapshots, volume_users
from utsuwa.db.codes import VOLUME_CUSTOM
from utsuwa.db.storage_volumes import DELETION, VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_snapshots import VolumeSnapshotRow
from utsuwa.projects import limits
from utsuwa.storage import intentions
from utsuwa.storage.copying import Copying
from utsuwa.storage.custom.context import (
    Created,
    CustomContext,
    config_of_copy,
    creation,
    first_config,
    get,
    is_taken,
    readable,
)
from utsuwa.storage.custom.create import check_unused
from utsuwa.storage.custom.uses import Place
from utsuwa.storage.known_pools import KnownPool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What is copied, as its rows say: a volume with some of its snapshots, or one snapshot."""

    row: VolumeRow
    volume: Volume
    config: Mapping[str, str]
    description: str
    snapshots: Sequence[VolumeSnapshotRow]


def source_of(tx: Transaction, place: Place, *, with_snapshots: bool) -> Source:
    """Raises NotFound (volume, snapshot), OtherMember."""
    row = get(tx, place)
    volume = place[1]
    if volume.snapshot is not None:
        snapshot = volume_snapshots.get(tx, row, volume.snapshot)
        return Source(row, volume, snapshot.config, snapshot.description, ())
    kept = volume_snapshots.get_of(tx, row.id) if with_snapshots else ()
    return Source(row, volume, row.config, row.description, kept)


@dataclass(frozen=True)
class CopyRequest:
    """A copy to be made. An absent config or empty description is that of the source."""

    source: Place
    target: Place
    config: Mapping[str, str] | None = None
    description: str = ""
    with_snapshots: bool = True


async def check_copy(ctx: CustomContext, request: CopyRequest) -> None:
    """Raise what `copy` would raise now."""
    pool, volume = request.target
    check_volume_name(volume.name)
    at = await ctx.pools.ensure_available(pool)
    await ctx.pools.ensure_available(request.source[0])

    def check(tx: Transaction) -> Source:
        source = source_of(tx, request.source, with_snapshots=False)
        _check_free(tx, request.target)
        return source

    _config(at, request, await ctx.database.read("check copy of volume", check))


def _check_free(tx: Transaction, place: Place) -> None:
    if is_taken(tx, place):
        raise AlreadyExists(f"Storage volume {place[1].name!r} already exists on pool {place[0]!r}")


def _config(at: KnownPool, request: CopyRequest, source: Source) -> dict[str, str]:
    """Return the config of the copy: keys of another driver are left out of what it takes over."""
    if request.config is not None:
        return first_config(at, request.config)
    return config_of_copy(at, source.config)


async def copy(
    ctx: CustomContext, request: CopyRequest, also: Created | None = None, *, within_limits: bool = True
) -> None:
    """Copy a volume, with its snapshots or without, or make a volume of a snapshot.

    Processes of running instances that use the source do not run meanwhile. Raises InvalidName, NotFound
    (pools, source), Unavailable, AlreadyExists, InvalidConfig, Forbidden (limits and restrictions of the
    project), OutOfSpace, HostError.
    """
    (source_pool, source), (pool, target) = request.source, request.target
    check_volume_name(target.name)
    source_at = await ctx.pools.ensure_available(source_pool)
    at = await ctx.pools.ensure_available(pool)
    async with (
        ctx.quiet(ctx.uses.instances((source_pool, source.whole))),
        ctx.copies.both(request.source, request.target),
    ):
        found = await ctx.database.read(
            "source of copy", source_of, request.source, with_snapshots=request.with_snapshots
        )

        def store(tx: Transaction, row_id: int) -> None:
            for snapshot in found.snapshots:
                volume_snapshots.insert(tx, row_id, snapshot)
            if also is not None:
                also(tx, row_id)

        async with creation(
            ctx,
            at,
            target,
            _config(at, request, found),
            request.description or found.description,
            store,
            within_limits=within_limits,
        ) as undo:
            copying = Copying(*request.source, *request.target)
            for snapshot in found.snapshots:
                await ctx.copies.copy_files(copying.of_snapshot(snapshot.name), undo)
            if source.snapshot is not None:
                await ctx.copies.copy_files(copying, undo)
            else:
                async with readable(ctx, source_at, found.row) as mounted:
                    await ctx.copies.copy_files(replace(copying, mounted=mounted), undo)
    ctx.lifecycle("created", request.target, {"type": "custom"})


async def check_rename(ctx: CustomContext, place: Place, new_name: str) -> None:
    """Raise what `rename` would raise now."""
    check_volume_name(new_name)
    await ctx.database.read("name of volume", _check_free, (place[0], replace(place[1], name=new_name)))


async def rename(ctx: CustomContext, place: Place, new_name: str) -> None:
    """Rename a volume with its snapshots; devices of instances and profiles follow.

    Raises InvalidName, AlreadyExists, NotFound, Unavailable, HostError, and InUse while running instances
    use it.
    """
    pool, volume = place
    new = replace(volume, name=new_name)
    at = await ctx.pools.ensure_available(pool)
    with ctx.uses.excluded(place, "renamed"):
        async with ctx.copies.both(place, (pool, new)):
            row = await ctx.database.read("custom volume", get, place)
            await check_rename(ctx, place, new_name)

            def store(tx: Transaction) -> None:
                storage_volumes.move(tx, row.id, new.project, pool, new_name)
                volume_users.follow(tx, pool, volume, pool, new_name)

            async with ctx.copies.changed(at, volume, new_name, store, locked=True) as undo:
                for step in (at.driver.rename_volume, at.driver.rename_snapshots):
                    revert = partial(ctx.threads.quick.run, step, new, volume)
                    await ctx.threads.quick.make(undo, revert, step, volume, new)
    ctx.lifecycle("renamed", (pool, new), {"old_name": volume.name})


async def check_move(ctx: CustomContext, source: Place, target: Place) -> None:
    """Raise what `move` would raise now."""
    await check_copy(ctx, CopyRequest(source, target))
    if source[1].project != target[1].project:
        await ctx.database.read("users of volume", check_unused, source)
    with ctx.uses.excluded(source, "moved"):
        pass


async def move(ctx: CustomContext, source: Place, target: Place) -> None:
    """Move a volume with its snapshots to another pool, where devices follow it, or to another project.

    It is copied, and then deleted; if anything fails or is interrupted before both places are exchanged, it
    stays. Raises the errors of `copy`, and InUse while running instances use it, or if it would leave the
    project of instances and profiles with devices on it.
    """
    leaves_project = source[1].project != target[1].project

    def exchange(tx: Transaction, _: int) -> None:
        if leaves_project:
            check_unused(tx, source)
        else:
            volume_users.follow(tx, *source, target[0], target[1].name)
        storage_volumes.set_new_name(tx, get(tx, source).id, DELETION)
        limits.check(tx, target[1].project)

    with ctx.uses.excluded(source, "moved"):
        await copy(ctx, CopyRequest(source, target), exchange, within_limits=False)
        await _remove_moved(ctx, source)
    ctx.lifecycle("deleted", source)


async def _remove_moved(ctx: CustomContext, place: Place) -> None:
    """Remove the files and the row that a volume left behind; if that fails, the next start does it."""
    pool, volume = place
    try:
        async with ctx.locks.hold(pool, volume):
            await ctx.threads.remove.run(intentions.delete_all, ctx.known.get(pool).driver, volume)
            await ctx.database.write("delete moved volume", _forget, place)
    except UtsuwaError as error:
        log.warning("the old files of %s are kept until the next start: %s", volume.path, error)


def _forget(tx: Transaction, place: Place) -> None:
    pool, volume = place
    row = storage_volumes.get(tx, volume.project, pool, VOLUME_CUSTOM, volume.name)
    storage_volumes.delete(tx, row.id)
