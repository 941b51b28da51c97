"""Moves of running instances from another server: the side on which they go on.

Images of a running state decide which processes are created as root of the guest, so only callers who may do
anything on this server may have them received.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import Forbidden, InvalidRequest, UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Scope
from utsuwa.core.tasks import finish
from utsuwa.core.threads import in_thread
from utsuwa.db import instances as instance_rows
from utsuwa.host import lxc
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances import identity
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import create, delete, device_host, device_steps, recover
from utsuwa.instances.running_state import saved
from utsuwa.migration import image_ids, images, received_snapshots
from utsuwa.migration.channel import ControlChannel, Stream
from utsuwa.migration.instance_receiving import (
    Reception,
    agree_on,
    announce_new,
    base_of,
    fill_new,
)
from utsuwa.migration.live_sending import STAGE, record_of, terms
from utsuwa.migration.messages import LIVE, Control, Header
from utsuwa.migration.negotiation import owners_of
from utsuwa.migration.progress import Progress
from utsuwa.migration.racing import all_of
from utsuwa.migration.receiving import receive_offer
from utsuwa.migration.takeover import Start, Verdict
from utsuwa.migration.undecided import Record, UndecidedMoves
from utsuwa.operations.operations import Operation, Ticket, forbid_cancellation
from utsuwa.security import idmap
from utsuwa.wire.instances import InstancesPost

log = logging.getLogger(__name__)

_CONFIRMATION = 10.0
"""Seconds that the source has to confirm the decision, before that is told in the background."""


def check_request(scope: Scope, request: InstancesPost) -> None:
    """Raise Forbidden or InvalidRequest if a caller may not have a running instance received."""
    if scope.restricted or scope.policy.restricted:
        raise Forbidden(
            "Running instances may only be moved to this server by callers without restrictions, as their "
            "state determines what runs as root: use --stateless"
        )
    if not request.config.get("volatile.cloud-init.instance-id"):
        raise InvalidRequest(
            "The running state of an instance can be moved, but not copied, as both would have the same "
            "addresses: use --stateless"
        )


async def receive_live(
    reception: Reception, moves: UndecidedMoves, start: Start, operation: Operation
) -> None:
    """Receive a running instance, whose row in the state `creating` exists, and have it go on here.

    On failure, remove everything. Raises as `instance_receiving.receive`, Forbidden, StartFailed.
    """
    ctx, instance = reception.ctx, reception.instance
    arrival = _Arrival(reception, moves, operation)
    async with ctx.connected_live(operation, reception.remote) as (control, files, state):
        try:
            async with Rollback() as undo, ctx.instances.locks.hold("instance", instance.ref):
                undo.push(create.discard, ctx.instances, instance)
                await arrival.receive(control, files, state)
                undo.keep()
            announce_new(ctx.instances, instance)
            await arrival.go_on(start)
        except BaseException as error:
            await finish(arrival.fail(control, error))
            raise
        await finish(arrival.tell(control))


class _Arrival:
    """One instance on its way."""

    def __init__(self, reception: Reception, moves: UndecidedMoves, operation: Operation) -> None:
        self._reception = reception
        self._ctx = reception.ctx.instances
        self._instance = reception.instance
        self._moves = moves
        self._operation = operation
        self._record: Record | None = None
        self._their_ids = IdMap()
        """Those of the instance at the source."""

    def _phase(self, text: str) -> None:
        self._operation.set_progress(STAGE, f"{self._instance.name}: {text}")

    async def receive(self, control: ControlChannel, files: Stream, state: Stream) -> None:
        """Receive files and running state. The caller holds the instance's lock."""
        reception, remote = self._reception, self._reception.remote
        offer = await receive_offer(control, without_snapshots=reception.without_snapshots)
        await self._check(offer)
        ticket = Ticket.new() if remote is None else None
        theirs = offer.own.live if offer.own is not None else None
        assert theirs is not None  # noqa: S101 - `_check`
        self._record = record_of("target", self._instance, remote, ticket, theirs)
        found = await received_snapshots.offered(self._ctx, self._instance, offer, reception.scope.policy)
        names = [row.ref.name for row in found]
        self._phase("files")
        agreed = await agree_on(reception, control, offer, names, live=terms(self._instance.name, ticket))
        await asyncio.to_thread(self._moves.store, self._record)

        async def images_of(folder: Path) -> None:
            await self._receive_images(state, folder)

        base = await base_of(reception)
        fill = fill_new(reception, files, agreed, found, base, Verdict(control), self._operation, images_of)
        await all_of(fill, watched_by=self._watch(control))

    async def _watch(self, control: ControlChannel) -> None:
        try:
            await control.verdict()
        except InvalidRequest:  # its own word that it goes on there
            await self._forget()
            raise

    async def _check(self, offer: Header) -> None:
        """Raise what can be seen before anything is transferred."""
        instance = self._instance
        theirs = offer.own.live if offer.own is not None else None
        if offer.criu != LIVE or theirs is None:
            raise InvalidRequest(
                "The other server does not offer the running state in a form that this one can restore: "
                "use --stateless"
            )
        if theirs.name != instance.name:
            raise InvalidRequest(
                f"A running instance keeps its name when it is moved: {theirs.name!r} cannot become "
                f"{instance.name!r}"
            )
        await self._ctx.criu.find()
        ids, self._their_ids = identity.next_idmap(instance), owners_of(offer.idmap)
        if ids.privileged or self._their_ids.privileged:
            raise InvalidRequest(
                f"{instance.name!r} is privileged on one of the servers, so its running state cannot move: "
                "unset security.privileged, or use --stateless"
            )
        await device_steps.check_all(device_host.host_of(self._ctx, instance, ids))

    async def _receive_images(self, state: Stream, folder: Path) -> None:
        """Receive the running state in rounds, and wait until it is allowed to go on here."""
        progress = Progress(self._operation, f"{self._instance.name}: memory")
        receiver, last = images.Receiver(state, progress.add), False
        while not last:
            fresh = await in_thread(saved.begin_round, folder)
            last = await receiver.receive(fresh, folder / saved.ROUND)
            faults.point("memory round received")
        await in_thread(self._take, folder)
        if await state.document():
            raise InvalidRequest("The other server sent more than the running state")
        faults.point("running state received")

    def _take(self, folder: Path) -> None:
        """Take over the images that were received, for the ids that the instance has here."""
        ids = identity.next_idmap(self._instance)
        if ids != self._their_ids:
            image_ids.change(folder / saved.FRESH, self._their_ids, ids)
        saved.complete_received(folder, idmap.to_json(ids))

    async def go_on(self, start: Start) -> None:
        """Restore the processes; if that fails before they run, remove the instance. Raises StartFailed."""
        forbid_cancellation()
        self._phase("starting")
        faults.point("moved instance is about to start")
        try:
            await start()
        except BaseException:
            if not await finish(has_run(self._ctx, self._instance.ref)):
                await finish(remove(self._ctx, self._instance.ref))
                raise
            log.exception("the moved instance %r has ended", self._instance.name)
        assert self._record is not None  # noqa: S101
        self._record.runs = True
        await finish(asyncio.to_thread(self._moves.store, self._record))
        faults.point("moved instance runs")

    async def fail(self, control: ControlChannel, error: BaseException) -> None:
        """Tell the source that the instance does not run here."""
        if self._record is None or self._record.runs is None:
            await control.fail(error)
        if self._record is not None and self._record.runs is None:
            self._record.runs = False
            await asyncio.to_thread(self._moves.store, self._record)
            await self._confirmed(control)

    async def tell(self, control: ControlChannel) -> None:
        """Tell the source that the instance runs here."""
        try:
            await control.send(Control(success=True, message=""))
        except UtsuwaError as error:
            log.info("the source of %r is told later that it runs here: %s", self._instance.name, error)
        await self._confirmed(control)

    async def _confirmed(self, control: ControlChannel) -> None:
        record = self._record
        assert record is not None  # noqa: S101
        try:
            async with asyncio.timeout(_CONFIRMATION):
                await self._moves.confirmed(record, control)
        except (TimeoutError, UtsuwaError):
            self._moves.in_background(self._moves.tell(record), record.name)

    async def _forget(self) -> None:
        if self._record is not None:
            await asyncio.to_thread(self._moves.forget, self._record)
            self._record = None


async def has_run(ctx: Context, ref: InstanceRef) -> bool:
    """Return whether the processes of a received instance run here, or have run."""
    if ctx.runtime.get(ref) is not None:
        return True
    try:
        instance = await load(ctx, ref)
    except UtsuwaError:
        return False
    folder = ctx.storage.volumes.folder(instance.pool, instance.ref.volume)
    return not instance.data.stateful or await asyncio.to_thread(saved.is_obsolete, folder)


async def remove(ctx: Context, ref: InstanceRef) -> None:
    """Remove a received instance that has not run."""
    instance = await load(ctx, ref)
    async with ctx.locks.hold("instance", ref):
        await ctx.database.write("begin removal of instance", instance_rows.set_deleting, instance.row.id)
        await delete.remove(ctx, instance)
    await asyncio.to_thread(remove_tree, ctx.paths.instance_logs(ref.storage_name))


async def decide_interrupted(ctx: Context, record: Record) -> bool:
    """Decide whether an instance runs here that was being received when the daemon died.

    Called before instances are recovered. One that was restored, or is about to be, is left to that.
    """
    try:
        instance = await load(ctx, record.ref)
    except UtsuwaError:
        return False
    if instance.row.id != record.row_id:
        return False
    busy = record.ref.storage_name in await asyncio.to_thread(lxc.active, ctx.paths.containers)
    if await recover.find_init(ctx, instance, busy=busy) is not None or await has_run(ctx, record.ref):
        return True
    await remove(ctx, record.ref)
    return False
