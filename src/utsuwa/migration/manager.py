"""Copies and moves between servers, for the API."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path

import msgspec

from utsuwa.core.errors import InvalidRequest, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Scope
from utsuwa.core.volumes import Volume
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances.lifecycle import create
from utsuwa.instances.manager import InstanceManager
from utsuwa.instances.running_state import leave, saved
from utsuwa.migration import handover, instance_receiving, live_receiving, volumes
from utsuwa.migration.connecting import LIVE_SOCKETS, SOCKETS, Remote
from utsuwa.migration.context import MigrationContext, remote_of_source
from utsuwa.migration.instance_receiving import Reception
from utsuwa.migration.instance_sending import Wanted, check, send_instance
from utsuwa.migration.live_sending import check_live, send_live
from utsuwa.migration.states import Own
from utsuwa.migration.undecided import SUFFIX, Record, UndecidedMoves
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Run
from utsuwa.projects import scope as scopes
from utsuwa.storage.custom.context import place_of
from utsuwa.wire.instances import InstancePost, InstancesPost
from utsuwa.wire.migration import MigrationTarget
from utsuwa.wire.snapshots import SnapshotPost
from utsuwa.wire.storage import StorageVolumePost, StorageVolumesPost

log = logging.getLogger(__name__)


class MigrationManager:
    """Operations that send something to another server, or receive it."""

    def __init__(self, ctx: MigrationContext, instances: InstanceManager) -> None:
        self._ctx = ctx
        self._instances = instances
        self._moves = UndecidedMoves(ctx)

    async def start(self) -> None:
        """Remove what interrupted migrations left. Called before instances are recovered."""
        await asyncio.to_thread(_empty, self._ctx.folder)
        for record in await asyncio.to_thread(self._moves.load):
            if record.side == "target" and record.runs is None:
                await self._decide_interrupted(record)

    async def _decide_interrupted(self, record: Record) -> None:
        try:
            record.runs = await live_receiving.decide_interrupted(self._ctx.instances, record)
        except UtsuwaError as error:  # such as a monitor that does not respond: left to the next start
            log.error("cannot determine whether instance %r has moved here: %s", record.name, error.message)
        else:
            await asyncio.to_thread(self._moves.store, record)

    async def settle(self) -> None:
        """Find out what has become of moves that were undecided when the daemon died.

        Instances have been recovered: those that are undecided are frozen.
        """
        for record in await asyncio.to_thread(self._moves.load):
            if record.side == "source":
                work = self._moves.ask(record, partial(self._decided, record))
            elif record.runs is not None:
                work = self._moves.tell(record)
            else:  # `start` could not find it out
                continue
            self._moves.in_background(work, record.name)

    async def _decided(self, record: Record, runs: bool) -> None:  # noqa: FBT001 - the type of `undecided.Act`
        """Do what follows from the decision on a move of which no operation holds the instance's lock."""
        move = (record.ref, record.row_id, record.operation)
        if await leave.decide(self._ctx.instances, *move, runs=runs):
            try:
                await self._instances.start(record.ref)
            except UtsuwaError as error:
                log.error("instance %r, which has not moved, is not started: %s", record.name, error)

    async def is_undecided(self, operation: str) -> bool:
        """Whether there is a record of the move whose decision is told by an operation with this id."""
        return await asyncio.to_thread(self._moves.knows, operation)

    async def stop(self) -> None:
        """Leave undecided moves to the next start of the daemon."""
        await self._moves.stop()

    # Instances

    async def send_instance(self, ref: InstanceRef, request: InstancePost) -> Operation:
        """Offer an instance to another server. Raises as `instance_sending.check`, and InvalidRequest."""
        with_snapshots = not (request.instance_only or request.container_only)
        wanted = Wanted(
            ref,
            with_snapshots=with_snapshots,
            inconsistent=request.allow_inconsistent,
            handover=request.planned_downtime,
        )
        if wanted.handover:
            return await self._hand_over(wanted, request.target)
        return await self._send_instance(wanted, request.target, live=request.live)

    async def send_snapshot(self, ref: InstanceRef, name: str, request: SnapshotPost) -> Operation:
        """Offer a snapshot, of which the other server makes an instance. Raises as `send_instance`."""
        wanted = Wanted(ref, name, with_state=request.live)
        if request.live and request.name and request.name != ref.name:
            raise InvalidRequest(
                f"The running state of {ref.name!r} {saved.KEEPS_NAME}, not {request.name!r}: {saved.INSTEAD}"
            )
        return await self._send_instance(wanted, request.target, live=False)

    async def _send_instance(
        self, wanted: Wanted, target: MigrationTarget | None, *, live: bool
    ) -> Operation:
        ctx, ref = self._ctx, wanted.ref
        live = live and ctx.instances.runtime.get(ref) is not None
        remote = await self._target(ref.project, target, live=live)
        if live:
            await check_live(ctx, wanted)
            work = partial(send_live, ctx, self._moves, self._decided, wanted, remote)
        else:
            seen = await check(ctx, wanted)
            work = partial(send_instance, ctx, wanted, remote, seen)
        sockets = () if remote is not None else LIVE_SOCKETS if live else SOCKETS
        return ctx.instances.operations.start(
            kinds.INSTANCE_SEND, ref.project, work, names=[ref.name], websockets=sockets
        )

    async def _hand_over(self, wanted: Wanted, target: MigrationTarget | None) -> Operation:
        ctx, ref = self._ctx, wanted.ref
        remote = await self._target(ref.project, target)
        await handover.check_handover(ctx, wanted)
        work = partial(handover.hand_over, ctx, self._instances, wanted, remote)
        sockets = (*(() if remote is not None else SOCKETS), handover.CLIENT)
        return ctx.instances.operations.start(
            kinds.INSTANCE_SEND, ref.project, work, names=[ref.name], websockets=sockets
        )

    async def _target(
        self, project: str, target: MigrationTarget | None, *, live: bool = False
    ) -> Remote | None:
        """Return the server to which is pushed, if it is given. Raises InvalidRequest, Forbidden."""
        if target is None:
            return None
        remote = Remote.of(target.operation, target.secrets, target.certificate, live=live)
        await self._ctx.allowed(project, remote)
        return remote

    async def receive_instance(self, scope: Scope, project: str, request: InstancesPost) -> Operation:
        """Receive an instance from another server, or refresh a copy of it.

        Raises as `create.reserve_received`, and InvalidRequest.
        """
        ctx, source = self._ctx, request.source
        ref = instance_receiving.ref_of(project, request)
        request = msgspec.structs.replace(request, name=ref.name)
        own_state = Own.of(request)
        live = source.live and not source.refresh and own_state is not Own.COPIED
        if live:
            live_receiving.check_request(scope, request)
        remote = remote_of_source(
            source.mode, source.operation, source.secrets, source.certificate, live=live
        )
        await ctx.allowed(project, remote)
        found = await instance_receiving.find_copy(ctx, ref) if source.refresh else None
        without_snapshots = source.instance_only or source.container_only
        if found is not None:
            reception = Reception(ctx, scope, found, remote, without_snapshots)
            return self._receive(reception, partial(instance_receiving.refresh, reception))
        instance = await create.reserve_received(ctx.instances, scope.policy, project, request)
        start = partial(self._instances.start, instance.ref) if request.start else None
        reception = Reception(ctx, scope, instance, remote, without_snapshots, start, own_state)
        work: Run = partial(instance_receiving.receive, reception)
        if live:
            go_on = partial(self._instances.start, instance.ref)
            work = partial(live_receiving.receive_live, reception, self._moves, go_on)
        async with Rollback() as undo:
            undo.push(create.discard, ctx.instances, instance)
            operation = self._receive(reception, work, live=live)
            undo.keep()
        return operation

    def _receive(self, reception: Reception, run: Run, *, live: bool = False) -> Operation:
        ref = reception.instance.ref
        sockets = () if reception.remote is not None else LIVE_SOCKETS if live else SOCKETS
        return self._ctx.instances.operations.start(
            kinds.INSTANCE_RECEIVE, ref.project, run, names=[ref.name], websockets=sockets
        )

    # Custom volumes

    async def send_volume(self, row: VolumeRow, project: str, request: StorageVolumePost) -> Operation:
        """Offer a volume to another server. Raises InvalidRequest, Forbidden, Unavailable (pool)."""
        ctx = self._ctx
        remote = await self._target(project, request.target)
        await ctx.storage.pools.ensure_available(row.pool)
        work = partial(volumes.send_volume, ctx, place_of(row), not request.volume_only, remote)
        sockets = () if remote is not None else SOCKETS
        return ctx.instances.operations.start(
            kinds.VOLUME_SEND, project, work, names=[row.name], websockets=sockets
        )

    async def receive_volume(self, pool: str, project: str, request: StorageVolumesPost) -> Operation:
        """Receive a volume from another server, or refresh a copy of it.

        Raises as `volumes.check_new`, and InvalidRequest, InUse.
        """
        ctx, source = self._ctx, request.source
        if request.content_type not in ("", "filesystem"):
            raise InvalidRequest("Only volumes of the content type filesystem can be received")
        remote = remote_of_source(source.mode, source.operation, source.secrets, source.certificate)
        await ctx.allowed(project, remote)
        holder = await scopes.effective(ctx.instances.database, project, "storage.volumes")
        place = (pool, Volume("custom", holder, request.name))
        reception = volumes.Reception(
            place, request.config or {}, request.description, remote, source.volume_only
        )
        if source.refresh and await volumes.exists(ctx, place):
            work = partial(volumes.refresh, ctx, reception)
        else:
            await volumes.check_new(ctx, reception)
            work = partial(volumes.receive, ctx, reception)
        sockets = SOCKETS if remote is None else ()
        return ctx.instances.operations.start(
            kinds.VOLUME_RECEIVE, project, work, names=[request.name], websockets=sockets
        )


def _empty(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in folder.iterdir():
        if path.suffix != SUFFIX:
            remove_tree(path)
