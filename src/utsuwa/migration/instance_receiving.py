"""Instances that come from other servers: new ones, and copies that are refreshed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from utsuwa.core import clock, faults
from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.image_source import ImageSource
from utsuwa.core.names import check_instance_name
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Policy, Scope
from utsuwa.db import codes, profiles, storage_volumes, volume_snapshots
from utsuwa.db import instances as instance_rows
from utsuwa.db import snapshots as snapshot_rows
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.projects import effective
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_snapshots import FREE_PREFIX, VolumeSnapshotRow
from utsuwa.instances import identity
from utsuwa.instances.context import load
from utsuwa.instances.lifecycle import copy, create
from utsuwa.instances.model import Loaded
from utsuwa.instances.policy import judge
from utsuwa.instances.snapshots import loading, rows
from utsuwa.migration.channel import ControlChannel, Stream, reporting
from utsuwa.migration.connecting import Remote
from utsuwa.migration.context import MigrationContext
from utsuwa.migration.index import Index
from utsuwa.migration.instance_sending import seconds
from utsuwa.migration.messages import Control, Header, KeyValue, SnapshotMessage
from utsuwa.migration.negotiation import owners_of
from utsuwa.migration.racing import all_of
from utsuwa.migration.receiving import Agreed, agree, lacking, receive_index, receive_offer, receive_trees
from utsuwa.operations.operations import Operation
from utsuwa.profiles.expand import expand
from utsuwa.wire.instances import InstancesPost

_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")
_LAST = 253402300799
"""The last second of the year 9999."""


@dataclass(frozen=True)
class Reception:
    """Who receives an instance from where, and how."""

    ctx: MigrationContext
    scope: Scope
    instance: Loaded
    remote: Remote | None
    without_snapshots: bool


def ref_of(project: str, request: InstancesPost) -> InstanceRef:
    """Raises InvalidName, InvalidRequest for what cannot be received."""
    create.reject_unsupported(request)
    return InstanceRef(project, check_instance_name(request.name or create.random_name()))


async def find_copy(ctx: MigrationContext, ref: InstanceRef) -> Loaded | None:
    """Return the instance to be refreshed, if there is one. Raises InvalidRequest if it is running."""
    try:
        instance = await load(ctx.instances, ref)
    except NotFound:
        return None
    if ctx.instances.runtime.get(ref) is not None:
        raise InvalidRequest(f"The instance {ref.name!r} is running: stop it first to refresh it")
    return instance


async def receive(reception: Reception, operation: Operation) -> None:
    """Receive a new instance, whose row in the state `creating` exists; on failure, remove everything.

    Raises InvalidRequest and its kinds, Unavailable, Forbidden, OutOfSpace, HostError.
    """
    ctx, instance = reception.ctx.instances, reception.instance
    async with Rollback() as undo:
        undo.push(create.discard, ctx, instance)
        async with (
            reception.ctx.connected(operation, reception.remote) as (control, files),
            reporting(control),
            ctx.locks.hold("instance", instance.ref),
        ):
            offer = await receive_offer(control, without_snapshots=reception.without_snapshots)
            found = await _snapshots(reception, offer)
            agreed = await _agree(reception, control, offer, [row.ref.name for row in found])
            await all_of(_fill_new(reception, files, agreed, found, operation), watched_by=control.verdict())
            undo.keep()
            ctx.warn_of_keys(instance)
            context = {"location": ctx.database.member.name, "storage-pool": instance.pool}
            ctx.lifecycle("created", instance.ref, context | {"type": "container"})
            await control.send(Control(success=True, message=""))


async def refresh(reception: Reception, operation: Operation) -> None:
    """Bring an instance up to date with its source on the other server, completely or not at all.

    Raises as `receive`. Its configuration stays.
    """
    ctx, ref = reception.ctx.instances, reception.instance.ref
    async with (
        reception.ctx.connected(operation, reception.remote) as (control, files),
        reporting(control),
        ctx.locks.hold("instance", ref),
    ):
        instance = await find_copy(reception.ctx, ref)
        if instance is None or instance.row.id != reception.instance.row.id:
            raise NotFound(f"Instance {ref.name!r} not found")
        reception = replace(reception, instance=instance)
        offer = await receive_offer(control, without_snapshots=reception.without_snapshots)
        new, gone = await _compared(reception, offer)
        agreed = await _agree(reception, control, offer, [row.ref.name for row in new], refresh=True)
        await all_of(_fill_copy(reception, files, agreed, new, gone, operation), watched_by=control.verdict())
        ctx.lifecycle("updated", ref)
        await control.send(Control(success=True, message=""))


async def _agree(
    reception: Reception, control: ControlChannel, offer: Header, names: list[str], *, refresh: bool = False
) -> Agreed:
    ctx, instance = reception.ctx, reception.instance
    return await agree(
        control,
        offer,
        names,
        name=instance.name,
        owners=owners_of(offer.idmap),
        compress=await ctx.compresses(instance.pool),
        refresh=refresh,
        beside=ctx.folder,
    )


# Files


async def _fill_new(
    reception: Reception,
    files: Stream,
    agreed: Agreed,
    snapshots: Sequence[SnapshotRow],
    operation: Operation,
) -> None:
    ctx, instance = reception.ctx, reception.instance
    found = await receive_index(files, agreed)
    created = ctx.storage.receiving.created(
        instance.pool, instance.ref.volume, instance.expanded.root_size, await _base(reception)
    )
    async with Rollback() as undo:
        async with created as incoming:
            await receive_trees(files, agreed, incoming, operation)
        undo.push(ctx.storage.volumes.delete, instance.pool, instance.ref.volume)
        await asyncio.to_thread(create.create_log_folder, ctx.instances, instance)
        faults.point("instance is received")
        await ctx.instances.database.write("instance is ready", _made, instance, snapshots, found)
        undo.keep()


async def _base(reception: Reception) -> ImageSource | None:
    """Return the image of which the instance was made, if it is here: then only the differences are sent."""
    ctx, instance = reception.ctx.instances, reception.instance
    fingerprint = instance.data.config.get("volatile.base_image", "")
    if not _FINGERPRINT.match(fingerprint):
        return None
    try:
        image = await ctx.images.resolve(instance.project, fingerprint=fingerprint)
        return ctx.images.source(ctx.images.check_here(image))
    except NotFound:
        return None


def _made(tx: Transaction, instance: Loaded, snapshots: Sequence[SnapshotRow], found: Index) -> None:
    volume = rows.volume_of(tx, instance.pool, instance.ref)
    described = volume_snapshots.with_free_config(volume, found.description, found.config)
    storage_volumes.update(tx, described)
    _insert(tx, volume.id, snapshots, found)
    instance_rows.set_ready(tx, instance.row.id)


def _insert(tx: Transaction, volume_id: int, snapshots: Sequence[SnapshotRow], found: Index) -> None:
    for row in snapshots:
        snapshot_rows.insert(tx, row)
        said = found.snapshots.get(row.ref.name)
        config = {} if said is None else said.config
        free = {key: value for key, value in config.items() if key.startswith(FREE_PREFIX)}
        description = "" if said is None else said.description
        volume_snapshots.insert(
            tx,
            volume_id,
            VolumeSnapshotRow(row.ref.name, description, row.created_at, row.expires_at, free),
        )


async def _fill_copy(
    reception: Reception,
    files: Stream,
    agreed: Agreed,
    new: Sequence[SnapshotRow],
    gone: Sequence[SnapshotRow],
    operation: Operation,
) -> None:
    ctx, instance = reception.ctx, reception.instance
    found = await receive_index(files, agreed)

    def also(tx: Transaction) -> None:
        for snapshot in gone:
            rows.delete(tx, instance.pool, snapshot)
        _insert(tx, rows.volume_of(tx, instance.pool, instance.ref).id, new, found)

    async with ctx.storage.receiving.replaced(
        instance.pool,
        instance.ref.volume,
        identity.next_idmap(instance),
        also,
        [row.ref.name for row in new],
        [row.ref.name for row in gone],
    ) as incoming:
        await receive_trees(files, agreed, incoming, operation)


# Snapshots


async def _compared(reception: Reception, offer: Header) -> tuple[list[SnapshotRow], list[SnapshotRow]]:
    """Return the snapshots that a copy lacks, and those that it has in excess."""
    if reception.without_snapshots:
        return [], []
    ctx, instance = reception.ctx.instances, reception.instance
    there = [found.row for found in await loading.find_of(ctx, instance.ref)]
    known = [(row.ref.name, seconds(row.created_at)) for row in there]
    offered = [(message.name or "", message.creation_date or 0) for message in _described(offer)]
    lacks, exceeds = set(lacking(offered, known)), set(lacking(known, offered))
    new = [row for row in await _snapshots(reception, offer) if row.ref.name in lacks]
    return new, [row for row in there if row.ref.name in exceeds]


def _described(offer: Header) -> list[SnapshotMessage]:
    """Return the offered snapshots; servers of long ago only say their names."""
    return offer.snapshots or [SnapshotMessage(name=name) for name in offer.snapshot_names]


async def _snapshots(reception: Reception, offer: Header) -> list[SnapshotRow]:
    """Return the rows of the offered snapshots, each of which is judged as the instance is.

    Raises InvalidConfig, InvalidRequest, Forbidden.
    """
    found = _described(offer)
    if not found:
        return []
    instance = reception.instance
    instance.restrictions.check_snapshot()
    known = await reception.ctx.instances.database.read("profiles", _profiles, instance.project)
    return [_judged(instance, message, known, reception.scope.policy) for message in found]


def _profiles(tx: Transaction, project: str) -> dict[str, ProfileRow]:
    found = profiles.get_all(tx, effective(tx, project, "profiles"))
    return {profile.name: profile for profile in found if profile.readable}


def _judged(
    instance: Loaded, message: SnapshotMessage, known: Mapping[str, ProfileRow], policy: Policy
) -> SnapshotRow:
    row = copy.copied(instance, _row(instance, message))
    expanded = expand((known[name] for name in row.data.profiles if name in known), row.data)
    root, config = instance.expanded.root_disk()
    if not any(d.get("type") == "disk" and d.get("path") == "/" for d in expanded.devices.values()):
        data = replace(row.data, devices={**row.data.devices, root: dict(config)})  # of a profile not here
        row = replace(row, data=data)
        expanded = expand((known[name] for name in data.profiles if name in known), data)
    try:
        judge(row.data, expanded, instance.restrictions, policy)
    except InvalidRequest as error:
        raise error.concerning(f"The snapshot {row.ref.name!r}") from error
    return row


def _row(instance: Loaded, message: SnapshotMessage) -> SnapshotRow:
    ref = SnapshotRef(instance.ref, message.name or "")
    if message.architecture is None:  # only the name is known
        return SnapshotRow(0, instance.row.id, ref, instance.data, clock.now(), state="ready")
    data = InstanceData(
        architecture=codes.ARCHITECTURES.words.get(message.architecture, "unknown"),
        ephemeral=bool(message.ephemeral),
        config=config_of(message.config),
        devices={device.name or "": config_of(device.config) for device in message.devices},
        profiles=list(message.profiles),
    )
    expires = message.expiry_date or 0
    return SnapshotRow(
        *(0, instance.row.id, ref, data),
        moment(message.creation_date or 0) or clock.now(),
        moment(expires),
        state="ready",
    )


def config_of(entries: Sequence[KeyValue]) -> dict[str, str]:
    return {entry.key or "": entry.value or "" for entry in entries}


def moment(second: int) -> datetime | None:
    """Return a time that the other server states; None for times before 1970, which mean none.

    Raises InvalidRequest.
    """
    if second <= 0:
        return None
    if second > _LAST:
        raise InvalidRequest("The other server states an invalid date of a snapshot")
    return datetime.fromtimestamp(second, UTC)
