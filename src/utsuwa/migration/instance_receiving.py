"""Instances that come from other servers: new ones, and copies that are refreshed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.image_source import ImageSource
from utsuwa.core.names import check_instance_name
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Scope
from utsuwa.db import instances as instance_rows
from utsuwa.db import storage_volumes, volume_snapshots
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction
from utsuwa.instances import identity
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import create
from utsuwa.instances.model import Loaded
from utsuwa.instances.snapshots import rows
from utsuwa.migration import ahead, layers_receiving, received_snapshots
from utsuwa.migration.ahead import LayerTransfers
from utsuwa.migration.channel import ControlChannel, Stream, reporting
from utsuwa.migration.connecting import Remote
from utsuwa.migration.context import MigrationContext
from utsuwa.migration.index import Index
from utsuwa.migration.messages import Control, Header, LiveTerms
from utsuwa.migration.negotiation import owners_of
from utsuwa.migration.progress import Progress
from utsuwa.migration.racing import Work, all_of
from utsuwa.migration.receiving import Agreed, agree, receive_index, receive_offer, receive_trees
from utsuwa.migration.states import Own, ReceivedStates
from utsuwa.migration.states import wanted as states_wanted
from utsuwa.migration.takeover import Start, Verdict, take_over
from utsuwa.operations.operations import Operation
from utsuwa.storage.layered import LayeredVolume
from utsuwa.wire.instances import InstancesPost

_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Reception:
    """Who receives an instance from where, and how."""

    ctx: MigrationContext
    scope: Scope
    instance: Loaded
    remote: Remote | None
    without_snapshots: bool
    start: Start | None = None
    """Starts a new instance, if that is wanted."""
    own_state: Own = Own.LEFT_OUT
    """What becomes of the saved running state of a new instance itself."""


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
        ):
            async with ctx.locks.hold("instance", instance.ref):
                base = await base_of(reception)  # meanwhile, the other server prepares its offer
                offer = await receive_offer(control, without_snapshots=reception.without_snapshots)
                _check_handover(reception, offer)
                found = await received_snapshots.offered(ctx, instance, offer, reception.scope.policy)
                names = [row.ref.name for row in found]
                agreed = await agree_on(reception, control, offer, names, empty=base is None)
                verdict = Verdict(control)
                fill = fill_new(reception, files, agreed, found, base, verdict, operation)
                await all_of(fill, watched_by=verdict.wait())
                undo.keep()
            announce_new(ctx, instance)
            if agreed.handover and reception.start is not None:
                await take_over(ctx, instance.ref, reception.start, control)
                return
            await control.send(Control(success=True, message=""))
    if reception.start is not None:
        await reception.start()


def announce_new(ctx: Context, instance: Loaded) -> None:
    """Publish that an instance has been received."""
    ctx.warn_of_keys(instance)
    context = {"location": ctx.database.member.name, "storage-pool": instance.pool}
    ctx.lifecycle("created", instance.ref, context | {"type": "container"})


def _check_handover(reception: Reception, offer: Header) -> None:
    """Raise InvalidRequest for an instance that is to be started here if the request does not say so."""
    if offer.own is not None and offer.own.handover and reception.start is None:
        raise InvalidRequest("The instance is to be started here, which was not asked for")


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
        agreed = await agree_on(reception, control, offer, [row.ref.name for row in new], refresh=True)
        await all_of(_fill_copy(reception, files, agreed, new, gone, operation), watched_by=control.verdict())
        ctx.lifecycle("updated", ref)
        await control.send(Control(success=True, message=""))


async def agree_on(
    reception: Reception,
    control: ControlChannel,
    offer: Header,
    names: list[str],
    *,
    refresh: bool = False,
    empty: bool = False,
    live: LiveTerms | None = None,
) -> Agreed:
    """Answer an offer, as `receiving.agree`."""
    ctx, instance = reception.ctx, reception.instance
    states = _states(reception, offer, [] if refresh else names)
    return await agree(
        control,
        offer,
        names,
        name=instance.name,
        owners=owners_of(offer.idmap),
        compress=await ctx.compresses(instance.pool),
        refresh=refresh,
        beside=ctx.folder,
        layers=await ctx.storage.layers.can_receive(instance.pool),
        empty=empty,
        states=states,
        live=live,
    )


def _states(reception: Reception, offer: Header, names: list[str]) -> ReceivedStates | None:
    """Return what is received of the states of these snapshots, and of the instance itself."""
    instance, own = reception.instance, reception.own_state
    wanted, reason = states_wanted(offer, instance, reception.scope, names, own)
    return None if wanted is None else ReceivedStates(wanted, identity.next_idmap(instance), own, lost=reason)


# Files


async def fill_new(
    reception: Reception,
    files: Stream,
    agreed: Agreed,
    snapshots: Sequence[SnapshotRow],
    base: ImageSource | None,
    verdict: Verdict,
    operation: Operation,
    running_state: Callable[[Path], Work] | None = None,
) -> None:
    """Receive what a new instance consists of, and make it visible; on failure, remove its volume.

    Its `running_state` is received at the same time, into the directory of its volume.
    """
    ctx, instance = reception.ctx, reception.instance
    place = (instance.pool, instance.ref.volume, instance.expanded.root_size)
    receive_states = partial(_receive_states, reception, files, agreed, operation)
    async with Rollback() as undo, _transfers(reception, agreed) as transfers:
        found = await receive_index(files, agreed)
        await ctx.instances.database.settle()
        if agreed.own.layers:
            async with ctx.storage.layers.created(*place) as layered:
                await _receive_layers(reception, files, agreed, layered, transfers, operation, base)
                await receive_states()
        else:
            async with ctx.storage.receiving.created(*place, base) as incoming:
                trees = receive_trees(files, agreed, incoming, operation, receive_states)
                await all_of(trees, *([] if running_state is None else [running_state(incoming.folder)]))
        undo.push(ctx.storage.volumes.delete, instance.pool, instance.ref.volume)
        await asyncio.to_thread(create.create_log_folder, ctx.instances, instance)
        faults.point("instance is received")
        if agreed.handover:
            await verdict.permission()
        received = agreed.states
        if received is not None:
            snapshots = received_snapshots.with_states(snapshots, received.snapshots)
            received.tell(operation)
        stateful = running_state is not None or (received is not None and received.own)
        await ctx.instances.database.write(
            "instance is ready",
            partial(_made, running=agreed.handover, stateful=stateful),
            instance,
            snapshots,
            found,
        )
        undo.keep()


def _transfers(reception: Reception, agreed: Agreed) -> AbstractAsyncContextManager[LayerTransfers]:
    """Have what receives layers, which is started now if there will be any."""
    return ahead.transfers(reception.ctx.instances.helper.sandbox, start=bool(agreed.own.layers))


async def _receive_states(reception: Reception, files: Stream, agreed: Agreed, operation: Operation) -> None:
    if agreed.states is None:
        return
    volumes, volume, pool = (
        reception.ctx.storage.volumes,
        reception.instance.ref.volume,
        reception.instance.pool,
    )

    def folder(name: str | None) -> Path:
        return volumes.folder(pool, volume if name is None else volume.snapshot_named(name))

    await agreed.states.receive(files, folder, agreed.name, operation)


async def _receive_layers(
    reception: Reception,
    files: Stream,
    agreed: Agreed,
    layered: LayeredVolume,
    transfers: LayerTransfers,
    operation: Operation,
    base: ImageSource | None = None,
) -> None:
    """Receive layers. The image of which the instance was made need not be looked for if it is known."""

    async def find_image(fingerprint: str) -> ImageSource | None:
        if base is not None and base.fingerprint == fingerprint:
            return base
        return await _image(reception, fingerprint)

    await layers_receiving.receive(
        files,
        layered,
        agreed.answer.snapshot_names,
        find_image,
        transfers,
        scratch=reception.ctx.folder,
        progress=Progress(operation, agreed.name),
    )


async def base_of(reception: Reception) -> ImageSource | None:
    """Return the image of which the instance was made, if it is here: then only the differences are sent."""
    fingerprint = reception.instance.data.config.get("volatile.base_image", "")
    return await _image(reception, fingerprint) if _FINGERPRINT.match(fingerprint) else None


async def _image(reception: Reception, fingerprint: str) -> ImageSource | None:
    """Return an image, if it is here and belongs to the instance's project."""
    ctx, instance = reception.ctx.instances, reception.instance
    try:
        image = await ctx.images.resolve(instance.project, fingerprint=fingerprint)
        return ctx.images.source(ctx.images.check_here(image))
    except NotFound:
        return None


def _made(
    tx: Transaction,
    instance: Loaded,
    snapshots: Sequence[SnapshotRow],
    found: Index,
    *,
    running: bool,
    stateful: bool,
) -> None:
    """Complete a new instance. If it is to be `running`, the next start of the daemon starts it as well."""
    volume = rows.volume_of(tx, instance.pool, instance.ref)
    described = volume_snapshots.with_free_config(volume, found.description, found.config)
    storage_volumes.update(tx, described)
    received_snapshots.insert(tx, volume.id, snapshots, found)
    if running:
        instance_rows.patch_config(tx, instance.row.id, {"volatile.last_state.power": "RUNNING"})
    if stateful:
        instance_rows.set_stateful(tx, instance.row.id, stateful=True)
    instance_rows.set_ready(tx, instance.row.id)


async def _fill_copy(
    reception: Reception,
    files: Stream,
    agreed: Agreed,
    new: Sequence[SnapshotRow],
    gone: Sequence[SnapshotRow],
    operation: Operation,
) -> None:
    ctx, instance = reception.ctx, reception.instance

    def also(tx: Transaction) -> None:
        for snapshot in gone:
            rows.delete(tx, instance.pool, snapshot)
        received_snapshots.insert(tx, rows.volume_of(tx, instance.pool, instance.ref).id, new, found)
        instance_rows.set_stateful(tx, instance.row.id, stateful=False)  # that of the files it had

    replacement = (
        instance.pool,
        instance.ref.volume,
        identity.next_idmap(instance),
        also,
        [row.ref.name for row in new],
        [row.ref.name for row in gone],
    )
    async with _transfers(reception, agreed) as transfers:
        found = await receive_index(files, agreed)
        if agreed.own.layers:
            async with ctx.storage.layers.replaced(*replacement) as layered:
                await _receive_layers(reception, files, agreed, layered, transfers, operation)
        else:
            async with ctx.storage.receiving.replaced(*replacement) as incoming:
                await receive_trees(files, agreed, incoming, operation)


async def _compared(reception: Reception, offer: Header) -> tuple[list[SnapshotRow], list[SnapshotRow]]:
    if reception.without_snapshots:
        return [], []
    ctx, instance = reception.ctx.instances, reception.instance
    return await received_snapshots.compared(ctx, instance, offer, reception.scope.policy)
