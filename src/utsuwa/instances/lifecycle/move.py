"""Moves of stopped instances on one host: to another pool, project or name."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from utsuwa.core.errors import AlreadyExists, InvalidRequest
from utsuwa.core.names import check_instance_name
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.scope import Scope
from utsuwa.core.warning_types import KEYS_WITHOUT_EFFECT
from utsuwa.db import instances as instance_rows
from utsuwa.db import projects as project_rows
from utsuwa.db import snapshots as snapshot_rows
from utsuwa.db.instances import InstanceRow
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction
from utsuwa.instances import identity
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import copy, create, rename, update
from utsuwa.instances.model import Loaded
from utsuwa.instances.snapshots import change, loading
from utsuwa.wire.instances import InstancePost


def target(ref: InstanceRef, request: InstancePost) -> InstanceRef:
    """Return what an instance is called after the requested move. Raises InvalidName."""
    return InstanceRef(request.project or ref.project, check_instance_name(request.name or ref.name))


async def check(
    ctx: Context, scope: Scope, ref: InstanceRef, request: InstancePost
) -> tuple[Loaded, InstanceRow]:
    """Return the instance and its row after the move.

    Raises InvalidRequest if it is running, AlreadyExists, InvalidName, NotFound (instance, project, pool,
    profiles), InvalidConfig or Forbidden.
    """
    new = target(ref, request)
    instance = await load(ctx, ref)
    if ctx.runtime.get(ref) is not None:
        raise InvalidRequest(
            f"The instance {ref.name!r} is running: stop it to move it to another pool or project"
        )
    if instance.data.stateful:
        raise InvalidRequest(
            f"The instance {ref.name!r} has a saved running state, which does not move: start it and stop it "
            f"without `--stateful`, or discard the state with `utsuwa start --stateless {ref.name}`"
        )
    if not scope.sees(new.project):
        raise project_rows.not_found(new.project)
    if new != ref and await ctx.database.read("name of instance", instance_rows.is_taken, new):
        raise AlreadyExists(f"An instance named {new.name!r} already exists in the project {new.project!r}")
    row = _moved(instance, new, request)
    instance.restrictions.check_volatile(instance.data.config, request.config)
    moved = await update.checked(ctx, scope.policy, instance, row, moves=True)
    await ctx.storage.pools.ensure_available(moved.pool)
    return instance, row


def _moved(instance: Loaded, new: InstanceRef, request: InstancePost) -> InstanceRow:
    """Return the row after the move: everything stays but what the request and a new name change.

    The root disk becomes the instance's own device, as the profiles of another project may have another one.
    """
    data = instance.data
    name, root = instance.expanded.root_disk()
    devices = {key: dict(device) for key, device in {**data.devices, **request.devices}.items()}
    devices[name] = {**root, **devices.get(name, {})}
    if request.pool:
        devices[name]["pool"] = request.pool
    given = {key: value for key, value in request.config.items() if not create.is_own_volatile(key)}
    config = {key: value for key, value in {**data.config, **given}.items() if value != ""}
    if new.name != instance.name:
        config |= rename.config_of_renamed(config)
    profiles = data.profiles if request.profiles is None else list(request.profiles)
    return replace(
        instance.row, ref=new, data=replace(data, config=config, devices=devices, profiles=profiles)
    )


async def move(ctx: Context, scope: Scope, ref: InstanceRef, request: InstancePost) -> None:
    """Move a stopped instance with its snapshots, completely or not at all. Raises as `check`."""
    new = target(ref, request)
    async with AsyncExitStack() as locks:
        for one in sorted({ref, new}):
            await locks.enter_async_context(ctx.locks.hold("instance", one))
        instance, row = await check(ctx, scope, ref, request)
        found = [snapshot.row for snapshot in await loading.find_of(ctx, ref)]
        kept = [] if request.instance_only or request.container_only else found
        moved = await create.merged(ctx, row)
        async with update.prepared(ctx, scope.policy, instance, row, moves=True) as store:

            def also(tx: Transaction) -> None:
                instance_rows.rename(tx, row.id, new)
                store(tx)
                if new.project != ref.project:  # it has others of the same names
                    instance_rows.replace_profiles(tx, row)
                _move_snapshots(tx, moved, found, kept, with_state=instance.pool == moved.pool)

            await ctx.storage.moves.move(
                *(instance.pool, ref.volume, moved.pool, new.volume),
                identity.next_idmap(instance),
                moved.expanded.root_size,
                [snapshot.ref.name for snapshot in kept],
                also,
            )
            if new != ref:
                await asyncio.to_thread(rename.move_logs, ctx, ref, new)
        for snapshot in () if kept else found:
            left = replace(snapshot, ref=SnapshotRef(new, snapshot.ref.name))
            await change.remove(ctx, moved, left)
    if new.project != ref.project:
        ctx.warnings.judge(KEYS_WITHOUT_EFFECT, "", instance.subject)
    ctx.warn_of_keys(moved)
    ctx.lifecycle("renamed" if new != ref else "updated", new, {"old_name": ref.name} if new != ref else None)


def _move_snapshots(
    tx: Transaction, instance: Loaded, found: list[SnapshotRow], kept: list[SnapshotRow], *, with_state: bool
) -> None:
    """Have the rows of snapshots fit the instance; those that are not kept are removed after the move."""
    if not kept:
        for snapshot in found:
            snapshot_rows.set_deleting(tx, snapshot.id)
        return
    for snapshot in kept:
        snapshot_rows.delete(tx, snapshot.id)
        snapshot_rows.insert(tx, copy.of_instance(instance, snapshot, with_state=with_state))
