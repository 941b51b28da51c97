"""Refreshing a copy: its files and snapshots become those of its source again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.names import check_instance_name
from utsuwa.core.refs import InstanceRef
from utsuwa.core.scope import Scope
from utsuwa.db import instances as instance_rows
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import copy, create
from utsuwa.instances.lifecycle.copy import Source
from utsuwa.instances.model import Loaded, not_found
from utsuwa.instances.snapshots import loading, rows
from utsuwa.wire.instances import InstancesPost


async def check(
    ctx: Context, scope: Scope, project: str, request: InstancesPost
) -> tuple[Loaded, Source] | None:
    """Return the copy and its source; None if there is no copy yet, which has to be created.

    Raises InvalidRequest if the copy is running, or the source is a snapshot; InvalidName, NotFound (source).
    """
    create.reject_unsupported(request)
    source = await copy.find_source(ctx, scope, project, request)
    ref = InstanceRef(project, check_instance_name(request.name))
    if source.snapshot is not None:
        raise InvalidRequest("A copy is refreshed from an instance, not from one of its snapshots")
    if source.instance.ref == ref:
        raise InvalidRequest(f"The instance {ref.name!r} cannot be refreshed from itself")
    try:
        instance = await load(ctx, ref)
    except NotFound:
        return None
    if ctx.runtime.get(ref) is not None:
        raise InvalidRequest(f"The instance {ref.name!r} is running: stop it first to refresh it")
    return instance, source


async def refresh(ctx: Context, scope: Scope, instance: InstanceRef, request: InstancesPost) -> None:
    """Refresh a copy, completely or not at all. Raises as `check`, and NotFound.

    Snapshots are compared by name and date. The configuration of the copy stays.
    """
    first = await check(ctx, scope, instance.project, request)
    if first is None:
        raise not_found(instance.name)
    async with AsyncExitStack() as locks:
        for ref in sorted({instance, first[1].instance.ref}):
            await locks.enter_async_context(ctx.locks.hold("instance", ref))
        found = await check(ctx, scope, instance.project, request)
        if found is None:
            raise not_found(instance.name)
        await _refresh(ctx, *found, request)
    ctx.lifecycle("updated", instance)


async def _refresh(ctx: Context, instance: Loaded, source: Source, request: InstancesPost) -> None:
    new: Sequence[SnapshotRow] = ()
    gone: Sequence[SnapshotRow] = ()
    if not (request.source.instance_only or request.source.container_only):
        there = [snapshot.row for snapshot in await loading.find_of(ctx, instance.ref)]
        new, gone = _lacking(source.snapshots, there), _lacking(there, source.snapshots)

    def also(tx: Transaction) -> None:
        for snapshot in gone:
            rows.delete(tx, instance.pool, snapshot)
        old = rows.volume_of(tx, source.pool, source.instance.ref)
        volume = rows.volume_of(tx, instance.pool, instance.ref)
        rows.copy(tx, old, volume, [copy.copied(instance, snapshot) for snapshot in new])
        instance_rows.set_stateful(tx, instance.row.id, stateful=False)  # that of the files it had

    copying = copy.files_of(ctx, source, instance, new)
    await ctx.storage.copies.refresh(copying, also, [snapshot.ref.name for snapshot in gone])


def _lacking(snapshots: Sequence[SnapshotRow], others: Sequence[SnapshotRow]) -> list[SnapshotRow]:
    """Return the snapshots that are not among the others, by name and date."""
    known = {(other.ref.name, other.created_at) for other in others}
    return [row for row in snapshots if (row.ref.name, row.created_at) not in known]
