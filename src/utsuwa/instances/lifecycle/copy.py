"""Copies of instances and snapshots on one host: a new instance with the same files and configuration."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from utsuwa.core import clock, faults
from utsuwa.core.errors import Forbidden, InvalidRequest, NotFound
from utsuwa.core.names import check_instance_name
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Scope
from utsuwa.core.threads import in_thread
from utsuwa.core.volumes import Volume
from utsuwa.db import instances as instance_rows
from utsuwa.db import storage_volumes, volume_snapshots
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.instances import InstanceRow
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction
from utsuwa.instances import allocations, identity
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import create, freeze
from utsuwa.instances.model import Loaded, not_found
from utsuwa.instances.running_state import saved
from utsuwa.instances.snapshots import loading, rows
from utsuwa.security import idmap
from utsuwa.storage.copying import Copying
from utsuwa.wire.instances import InstancesPost

Devices = Mapping[str, Mapping[str, str]]

_UNIQUE = ("ipv4.address", "ipv6.address", "hwaddr")
"""Keys of nics whose values another instance cannot have as well."""


@dataclass(frozen=True)
class Source:
    """What is copied: an instance with its snapshots, or one snapshot of it."""

    instance: Loaded
    snapshot: SnapshotRow | None
    snapshots: Sequence[SnapshotRow]
    """Those that are copied as well, oldest first."""
    with_state: bool = False
    """Whether the new instance goes on with the running state of the snapshot."""

    @property
    def pool(self) -> str:
        return self.instance.pool

    @property
    def data(self) -> InstanceData:
        return self.instance.data if self.snapshot is None else self.snapshot.data

    @property
    def volume(self) -> Volume:
        return self.instance.ref.volume if self.snapshot is None else self.snapshot.ref.volume


async def reserve(ctx: Context, scope: Scope, project: str, request: InstancesPost) -> tuple[Loaded, Source]:
    """Judge the request and reserve the name: a row in the state `creating` that `build` or `discard` ends.

    Raises as `create.reserve`, also NotFound for the source.
    """
    create.reject_unsupported(request)
    source = await find_source(ctx, scope, project, request)
    ref = InstanceRef(project, check_instance_name(request.name or create.random_name()))
    if request.stateful:
        _check_state(scope, source, ref)
        source = replace(source, with_state=True)
    row = InstanceRow(id=0, ref=ref, data=_data(source.data, request), created_at=clock.now())
    instance = await create.check_and_store(ctx, scope.policy, row, request.config)
    await ctx.networks.follow({instance.ref}, allocations.ports(instance))
    return instance, source


async def find_source(ctx: Context, scope: Scope, project: str, request: InstancesPost) -> Source:
    """Return what a request wants to have copied. Raises NotFound."""
    name, slash, snapshot = request.source.source.partition("/")
    ref = InstanceRef(request.source.project or project, name)
    if not name or not scope.sees(ref.project):
        raise not_found(name)
    try:
        instance = await load(ctx, ref)
    except NotFound as error:
        raise not_found(name) from error
    if slash:
        return Source(instance, (await loading.find(ctx, SnapshotRef(ref, snapshot))).row, ())
    if request.source.instance_only or request.source.container_only:
        return Source(instance, None, ())
    return Source(instance, None, [found.row for found in await loading.find_of(ctx, ref)])


def _check_state(scope: Scope, source: Source, ref: InstanceRef) -> None:
    """Raise InvalidRequest or Forbidden if a new instance cannot go on with a copied running state."""
    if source.snapshot is None:
        raise InvalidRequest(
            f"The instance {source.instance.name!r} has a saved running state, which a copy would share: "
            "start it, and stop it without `--stateful`, or copy a stateful snapshot"
        )
    what = f"the snapshot {source.snapshot.ref.name!r} of {source.instance.name!r}"
    if not source.snapshot.data.stateful:
        raise InvalidRequest(f"There is no running state in {what}: copy it with `--stateless`")
    if ref.name != source.instance.name:
        raise InvalidRequest(
            f"The running state of {what} {saved.KEEPS_NAME}, not {ref.name!r}: {saved.INSTEAD}"
        )
    if scope.restricted:
        raise Forbidden(f"The running state of {what} {saved.UNRESTRICTED}: {saved.INSTEAD}")


def _data(old: InstanceData, request: InstancesPost) -> InstanceData:
    """Return the configuration of the copy: that of the source, overridden by the request.

    Addresses, ids and whatever else only one instance can have stays with the source, also if a client
    repeats it.
    """
    kept = _shared(old.config)
    repeated = {key for key, value in request.config.items() if value == old.config.get(key)}
    given = {
        key: value
        for key, value in request.config.items()
        if not (create.is_own_volatile(key) or (key.startswith("volatile.") and key in repeated))
    }
    fresh = {
        "volatile.apply_template": "copy",
        "volatile.uuid": str(uuid.uuid4()),
        **identity.new_cloud_init_id(),
    }
    return replace(
        old,
        ephemeral=request.ephemeral,
        stateful=False,
        description=request.description or old.description,
        config={**kept, **given, **fresh},
        devices=_devices(old.devices, request.devices),
        profiles=old.profiles if request.profiles is None else list(request.profiles),
    )


def _shared(config: Mapping[str, str]) -> dict[str, str]:
    """Return the config that an instance and its copies have in common: none that is stored for one alone."""
    return {k: v for k, v in config.items() if not k.startswith("volatile.") or k == "volatile.base_image"}


def _devices(old: Devices, requested: Devices) -> dict[str, dict[str, str]]:
    devices = {name: dict(device) for name, device in {**old, **requested}.items()}
    for name, device in devices.items():
        for key in _UNIQUE:
            if key in device and device[key] == old.get(name, {}).get(key):
                del device[key]
    return devices


async def build(ctx: Context, instance: Loaded, source: Source) -> None:
    """Create the reserved instance's files and make it visible; on failure, remove everything."""
    refs = sorted({instance.ref, source.instance.ref})
    async with Rollback() as undo, AsyncExitStack() as locks:
        undo.push(create.discard, ctx, instance)
        for ref in refs:
            await locks.enter_async_context(ctx.locks.hold("instance", ref))
        source = await _found_again(ctx, source)
        if source.with_state:
            await _check_ids(ctx, source, instance)
        undo.push(ctx.storage.volumes.delete, instance.pool, instance.ref.volume)
        await _copy(ctx, source, instance)
        if source.with_state:
            folders = _folder(ctx, source), ctx.storage.volumes.folder(instance.pool, instance.ref.volume)
            await in_thread(saved.copy_snapshot, *folders)
        faults.point("instance copied")
        await in_thread(create.create_log_folder, ctx, instance)
        await ctx.database.write("instance is ready", _made, instance, source)
        undo.keep()
    context = {"location": ctx.database.member.name, "storage-pool": instance.pool, "type": "container"}
    ctx.lifecycle("created", instance.ref, context)


async def _found_again(ctx: Context, source: Source) -> Source:
    """Return what is left of the source since it was found, before its locks were held. Raises NotFound."""
    ref = source.instance.ref
    instance = await load(ctx, ref)
    there = {found.row.id for found in await loading.find_of(ctx, ref)}
    if instance.row.id != source.instance.row.id or instance.pool != source.pool:
        raise not_found(ref.name)
    if source.snapshot is not None and source.snapshot.id not in there:
        raise NotFound(f"Snapshot {source.snapshot.ref.name!r} of instance {ref.name!r} not found")
    return replace(source, snapshots=[row for row in source.snapshots if row.id in there])


def _folder(ctx: Context, source: Source) -> Path:
    return ctx.storage.volumes.folder(source.pool, source.volume)


async def _check_ids(ctx: Context, source: Source, instance: Loaded) -> None:
    """Raise InvalidRequest if a copied running state could not be restored: for its ids, or if damaged."""
    state = await in_thread(saved.load, _folder(ctx, source), "the snapshot", own=False)
    if state.record.idmap != idmap.to_json(identity.next_idmap(instance)):
        raise InvalidRequest(
            f"The running state of the snapshot has other ids than the copy: {saved.INSTEAD}"
        )


async def _copy(ctx: Context, source: Source, instance: Loaded) -> None:
    """Copy the root volume with snapshots."""
    copying = files_of(ctx, source, instance, source.snapshots)
    await ctx.storage.copies.copy(copying, instance.expanded.root_size)


def files_of(ctx: Context, source: Source, instance: Loaded, snapshots: Sequence[SnapshotRow]) -> Copying:
    """Return the copy of the source's files with these snapshots; a source that runs is frozen for it."""
    copying = Copying(
        *(source.pool, source.volume, instance.pool, instance.ref.volume),
        identity.next_idmap(instance),
        [snapshot.ref.name for snapshot in snapshots],
    )
    container = ctx.runtime.get(source.instance.ref) if source.snapshot is None else None
    if container is None:
        return copying
    return replace(copying, mounted=container.idmap, held=partial(freeze.held, ctx, container))


def of_instance(instance: Loaded, snapshot: SnapshotRow, *, with_state: bool = False) -> SnapshotRow:
    """Return the row of a snapshot that belongs to an instance from now on, as a copy or after a move.

    Dates and configuration stay, except the pool. A running state stays only `with_state`, where the files of
    the snapshot are the same.
    """
    ref = SnapshotRef(instance.ref, snapshot.ref.name)
    root, config = instance.expanded.root_disk()
    devices = dict(snapshot.data.devices)
    if root in devices or root in instance.data.devices:
        devices[root] = {**devices.get(root, config), "pool": instance.pool}
    stateful = with_state and snapshot.data.stateful
    data = replace(snapshot.data, devices=devices, stateful=stateful)
    return replace(snapshot, id=0, instance_id=instance.row.id, ref=ref, data=data)


def copied(instance: Loaded, snapshot: SnapshotRow) -> SnapshotRow:
    """Return the row of a copied snapshot, which an instance can be restored to beside the original one."""
    row = of_instance(instance, snapshot)
    return replace(row, data=replace(row.data, config=_shared(row.data.config)))


def _made(tx: Transaction, instance: Loaded, source: Source) -> None:
    old = rows.volume_of(tx, source.pool, source.instance.ref)
    new = rows.volume_of(tx, instance.pool, instance.ref)
    storage_volumes.update(tx, volume_snapshots.with_free_config(new, old.description, old.config))
    rows.copy(tx, old, new, [copied(instance, snapshot) for snapshot in source.snapshots])
    if source.with_state:
        instance_rows.set_stateful(tx, instance.row.id, stateful=True)
    instance_rows.set_ready(tx, instance.row.id)
