"""Copies and moves between servers, for the API."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import msgspec

from utsuwa.core.errors import InvalidRequest, NotSupportedYet
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Scope
from utsuwa.core.volumes import Volume
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances.lifecycle import create
from utsuwa.instances.manager import InstanceManager
from utsuwa.migration import instance_receiving, volumes
from utsuwa.migration.connecting import SOCKETS, Remote
from utsuwa.migration.context import MigrationContext, remote_of_source
from utsuwa.migration.instance_receiving import Reception
from utsuwa.migration.instance_sending import Wanted, check, send_instance
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Run
from utsuwa.projects import scope as scopes
from utsuwa.storage.custom.context import place_of
from utsuwa.wire.instances import InstancePost, InstancesPost
from utsuwa.wire.migration import MigrationTarget
from utsuwa.wire.storage import StorageVolumePost, StorageVolumesPost


class MigrationManager:
    """Operations that send something to another server, or receive it."""

    def __init__(self, ctx: MigrationContext, instances: InstanceManager) -> None:
        self._ctx = ctx
        self._instances = instances

    async def start(self) -> None:
        """Remove what interrupted migrations left."""
        await asyncio.to_thread(_empty, self._ctx.folder)

    # Instances

    async def send_instance(self, ref: InstanceRef, request: InstancePost) -> Operation:
        """Offer an instance to another server. Raises as `instance_sending.check`, and InvalidRequest."""
        with_snapshots = not (request.instance_only or request.container_only)
        wanted = Wanted(ref, None, with_snapshots, request.allow_inconsistent)
        return await self._send_instance(wanted, request.target, live=request.live)

    async def send_snapshot(self, ref: InstanceRef, name: str, target: MigrationTarget | None) -> Operation:
        """Offer a snapshot, of which the other server makes an instance."""
        return await self._send_instance(Wanted(ref, name), target, live=False)

    async def _send_instance(
        self, wanted: Wanted, target: MigrationTarget | None, *, live: bool
    ) -> Operation:
        ctx, ref = self._ctx, wanted.ref
        remote = await self._target(ref.project, target)
        await check(ctx, wanted, live=live)
        work = partial(send_instance, ctx, wanted, remote)
        sockets = () if remote is not None else SOCKETS
        return ctx.instances.operations.start(
            kinds.INSTANCE_SEND, ref.project, work, names=[ref.name], websockets=sockets
        )

    async def _target(self, project: str, target: MigrationTarget | None) -> Remote | None:
        """Return the server to which is pushed, if it is given. Raises InvalidRequest, Forbidden."""
        if target is None:
            return None
        remote = Remote.of(target.operation, target.secrets, target.certificate)
        await self._ctx.allowed(project, remote)
        return remote

    async def receive_instance(self, scope: Scope, project: str, request: InstancesPost) -> Operation:
        """Receive an instance from another server, or refresh a copy of it.

        Raises as `create.reserve_received`, and InvalidRequest.
        """
        ctx, source = self._ctx, request.source
        ref = instance_receiving.ref_of(project, request)
        request = msgspec.structs.replace(request, name=ref.name)
        if source.live:
            raise NotSupportedYet("Receiving the running state (live) is not supported yet: use --stateless")
        remote = remote_of_source(source.mode, source.operation, source.secrets, source.certificate)
        await ctx.allowed(project, remote)
        found = await instance_receiving.find_copy(ctx, ref) if source.refresh else None
        without_snapshots = source.instance_only or source.container_only
        if found is not None:
            reception = Reception(ctx, scope, found, remote, without_snapshots)
            return self._receive(reception, partial(instance_receiving.refresh, reception))
        instance = await create.reserve_received(ctx.instances, scope.policy, project, request)
        reception = Reception(ctx, scope, instance, remote, without_snapshots)

        async def run(operation: Operation) -> None:
            await instance_receiving.receive(reception, operation)
            if request.start:
                await self._instances.start(instance.ref)

        async with Rollback() as undo:
            undo.push(create.discard, ctx.instances, instance)
            operation = self._receive(reception, run)
            undo.keep()
        return operation

    def _receive(self, reception: Reception, run: Run) -> Operation:
        ref = reception.instance.ref
        sockets = SOCKETS if reception.remote is None else ()
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
        remove_tree(path)
