"""Restoring an instance to a snapshot: its files, configuration, devices and profiles."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from utsuwa.core.errors import InvalidRequest, NotFound, UtsuwaError
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.scope import Policy
from utsuwa.db import volume_snapshots
from utsuwa.db.instances import InstanceRow
from utsuwa.db.transaction import Transaction
from utsuwa.instances import identity
from utsuwa.instances.context import Context, check_here, merge
from utsuwa.instances.lifecycle import device_host, device_steps, update
from utsuwa.instances.model import Loaded
from utsuwa.instances.running_state import saved
from utsuwa.instances.running_state.saved import Saved
from utsuwa.instances.snapshots import rows
from utsuwa.instances.snapshots.loading import LoadedSnapshot, fetch_with_instance
from utsuwa.storage.copying import Copying
from utsuwa.wire.edits import IfMatch


def named(instance: InstanceRef, name: str) -> SnapshotRef:
    """Return the snapshot that a request names, as `snapshot` or `instance/snapshot`. Raises NotFound."""
    owner, slash, snapshot = name.rpartition("/")
    if slash and owner != instance.name:
        raise NotFound(f"Snapshot {name!r} does not belong to the instance {instance.name!r}")
    return SnapshotRef(instance, snapshot)


@dataclass(frozen=True)
class Judged:
    """An instance and a snapshot as they were loaded, and the valid result of a restore."""

    instance: Loaded
    snapshot: LoadedSnapshot
    new: Loaded
    moment: int | None = None
    """When they were read, for `Database.unchanged_since`."""


@dataclass(frozen=True)
class _Found:
    """An instance and a snapshot as they were loaded, and the result of a restore, or why there is none."""

    instance: Loaded
    snapshot: LoadedSnapshot
    proposal: update.Proposal | UtsuwaError


async def check(ctx: Context, policy: Policy, ref: SnapshotRef, if_match: IfMatch) -> Judged:
    """Raise what `restore` would raise now; NotFound if the snapshot does not exist, PreconditionFailed.

    Returns what was checked, for a `restore` that follows.
    """
    moment = ctx.database.moment()
    found = await _load(ctx, ref)
    if_match(update.editable(found.instance.data))
    await ctx.storage.pools.ensure_available(found.instance.pool)
    return replace(await _judged(ctx, policy, found), moment=moment)


async def _load(ctx: Context, ref: SnapshotRef) -> _Found:
    """Raises as `load_with_instance`."""

    def fetch(tx: Transaction) -> _Found:
        parts, snapshot = fetch_with_instance(tx, ref)
        instance = check_here(merge(*parts))
        row = _restored(instance, snapshot)
        try:
            proposal = update.proposed_alone(parts, instance, row) or update.proposed(tx, instance, row)
        except UtsuwaError as error:
            return _Found(instance, snapshot, error)
        return _Found(instance, snapshot, proposal)

    return await ctx.database.read("snapshot and instance", fetch)


async def _judged(ctx: Context, policy: Policy, found: _Found) -> Judged:
    """Return the restored instance, if it is valid and its profiles, pool and networks exist."""
    instance, snapshot, proposal = found.instance, found.snapshot, found.proposal
    try:
        if isinstance(proposal, UtsuwaError):
            raise proposal
        await update.check_proposal(ctx, policy, proposal)
        new = proposal.new
        await device_steps.check_all(device_host.host_of(ctx, new, identity.next_idmap(instance)))
    except UtsuwaError as error:
        raise InvalidRequest(
            f"The snapshot {snapshot.ref.name!r} of the instance {instance.name!r} cannot be restored: "
            f"{error.message}"
        ) from error
    return Judged(instance, snapshot, new)


def _restored(instance: Loaded, snapshot: LoadedSnapshot) -> InstanceRow:
    old = instance.data.config
    config = update.with_own_volatile(old, update.with_volatile(old, snapshot.row.data.config))
    return replace(instance.row, data=replace(snapshot.row.data, config=config, stateful=False))


async def saved_state(ctx: Context, judged: Judged) -> Saved:
    """Return the running state of a snapshot. Raises InvalidRequest if it has none, Unavailable (CRIU)."""
    snapshot, pool = judged.snapshot, judged.instance.pool
    what = f"the snapshot {snapshot.ref.name!r} of {judged.instance.name!r}"
    if not snapshot.row.data.stateful:
        raise InvalidRequest(f"There is no running state in {what}: restore it without `--stateful`")
    await ctx.criu.find()
    folder = ctx.storage.volumes.folder(pool, snapshot.ref.volume)
    return await asyncio.to_thread(saved.load, folder, what, own=False)


async def restore(ctx: Context, policy: Policy, ref: SnapshotRef, judged: Judged) -> None:
    """Restore a stopped instance, completely or not at all. Raises InvalidRequest, also while it runs.

    What `check` has `judged` is judged again only if instance, snapshot or profiles have changed since.
    """
    async with ctx.locks.hold("instance", ref.instance):
        if ctx.runtime.get(ref.instance) is not None:
            raise InvalidRequest(f"The instance {ref.instance.name!r} was started: stop it to restore it")
        instance = judged.instance
        if not ctx.database.unchanged_since(judged.moment):
            found = await _load(ctx, ref)
            instance = found.instance
            if (instance, found.snapshot) != (judged.instance, judged.snapshot):
                judged = await _judged(ctx, policy, found)
        new, moment = judged.new, judged.moment
        # The replacement of the files is recorded by one transaction before that which completes it.
        async with update.prepared(ctx, policy, instance, new.row, new, moment=moment, writes=1) as store:
            pool, idmap = instance.pool, identity.next_idmap(instance)

            def also(tx: Transaction) -> None:
                store(tx)
                volume_snapshots.restore(tx, rows.volume_of(tx, pool, ref.instance), ref.name)

            copying = Copying(pool, ref.volume, pool, ref.instance.volume, idmap)
            await ctx.storage.copies.replace(copying, also)
    ctx.snapshot_lifecycle("restored", ref)
