"""The custom volumes of all pools, for the API, for devices, and for the look at schedules."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

from utsuwa.core.errors import InvalidRequest, NotFound, NotSupportedYet
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.core.scope import Scope
from utsuwa.core.volumes import Volume
from utsuwa.db.codes import VOLUME_CUSTOM
from utsuwa.db.projects import effective
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.host.mounts.detached import Options
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation
from utsuwa.storage.custom import attach, copy, create, edit, refresh, snapshots
from utsuwa.storage.custom.context import CustomContext, Quiet, check_here, place_of, volume_of
from utsuwa.storage.custom.copy import CopyRequest
from utsuwa.storage.custom.uses import Place
from utsuwa.wire.edits import Change, IfMatch
from utsuwa.wire.storage import (
    StorageVolumePost,
    StorageVolumePut,
    StorageVolumeSnapshotPut,
    StorageVolumeSnapshotsPost,
    StorageVolumesPost,
)


class CustomVolumes:
    """Operations belong to the project of the request, volumes to the one that holds its volumes."""

    def __init__(self, ctx: CustomContext) -> None:
        self.context = ctx

    def quiet_by(self, quiet: Quiet) -> None:
        """Have `quiet` keep processes of instances from running while a volume they use is copied."""
        self.context.quiet = quiet

    # Volumes

    async def create(
        self, scope: Scope, pool: str, project: str, request: StorageVolumesPost
    ) -> Operation | None:
        """Create a volume, or start copying another one, or refreshing a copy of it.

        Raises as `create.create`, `copy.copy`, `refresh.refresh`.
        """
        ctx, source = self.context, request.source
        if request.content_type not in ("", "filesystem"):
            raise _unknown_content(request.content_type)
        await ctx.pools.get(pool)
        target = (pool, Volume("custom", await self._holder(project), request.name))
        if source.type not in ("", "copy"):
            raise _unknown_source(source.type)
        if not source.name:
            if source.type:
                raise InvalidRequest("The source of the copy has no name: set source.name")
            await create.create(ctx, target, request.config or {}, request.description)
            return None
        name, slash, snapshot = source.name.partition("/")
        found = await self.find(scope, source.pool or pool, source.project or project, name)
        whole = volume_of(found)
        wanted = CopyRequest(
            source=(found.pool, whole.snapshot_named(snapshot) if slash else whole),
            target=target,
            config=request.config,
            description=request.description,
            with_snapshots=not source.volume_only,
        )
        work = partial(copy.copy, ctx, wanted)
        if source.refresh and await refresh.check(ctx, wanted):
            work = partial(refresh.refresh, ctx, wanted)
        else:
            await copy.check_copy(ctx, wanted)
        return ctx.in_background(kinds.VOLUME_COPY, project, target[1], work)

    async def find(self, scope: Scope, pool: str, project: str, name: str) -> VolumeRow:
        """Return a volume on this member that the caller sees. Raises NotFound, OtherMember."""
        return check_here(await self.context.volumes.get(scope, pool, project, VOLUME_CUSTOM, name))

    async def edit(self, row: VolumeRow, change: Change[StorageVolumePut], if_match: IfMatch) -> None:
        """Raises as `edit.edit`."""
        await edit.edit(self.context, place_of(row), change, if_match)

    async def delete(self, row: VolumeRow) -> None:
        """Raises as `create.delete`."""
        await create.delete(self.context, place_of(row))

    async def rename(self, row: VolumeRow, new: str) -> str:
        """Rename a volume and return its new URL. Raises as `copy.rename`."""
        await copy.check_rename(self.context, place_of(row), new)
        await copy.rename(self.context, place_of(row), new)
        return Volume("custom", row.project, new).url(row.pool)

    async def move(
        self, scope: Scope, row: VolumeRow, project: str, request: StorageVolumePost
    ) -> Operation | str:
        """Start moving a volume to another pool or project; if it stays in both, rename it as `rename`.

        Raises NotFound (project), and as `copy.move`.
        """
        holder = row.project
        if request.project:
            if not scope.sees(request.project):
                raise NotFound(f"Project {request.project!r} not found")
            holder = await self._holder(request.project)
        pool = request.pool or row.pool
        if (pool, holder) == (row.pool, row.project):
            return await self.rename(row, request.name)
        target: Place = (pool, Volume("custom", holder, request.name))
        await copy.check_move(self.context, place_of(row), target)
        work = partial(copy.move, self.context, place_of(row), target)
        return self.context.in_background(kinds.VOLUME_MOVE, project, volume_of(row), work)

    async def _holder(self, project: str) -> str:
        return await self.context.database.read("project of volumes", effective, project, "storage.volumes")

    # Snapshots

    async def create_snapshot(
        self, row: VolumeRow, project: str, request: StorageVolumeSnapshotsPost
    ) -> Operation:
        """Raises as `snapshots.create`."""
        await snapshots.check_create(self.context, place_of(row), request)
        work = partial(snapshots.create, self.context, place_of(row), request)
        return self.context.in_background(kinds.VOLUME_SNAPSHOT_CREATE, project, volume_of(row), work)

    async def edit_snapshot(
        self, row: VolumeRow, name: str, change: Change[StorageVolumeSnapshotPut], if_match: IfMatch
    ) -> None:
        """Raises as `snapshots.edit`."""
        await snapshots.edit(self.context, _snapshot(row, name), change, if_match)

    async def rename_snapshot(self, row: VolumeRow, project: str, name: str, new: str) -> Operation:
        """Raises as `snapshots.rename`."""
        place = _snapshot(row, name)
        await snapshots.check_rename(self.context, place, new)
        work = partial(snapshots.rename, self.context, place, new)
        return self.context.in_background(kinds.VOLUME_SNAPSHOT_RENAME, project, volume_of(row), work)

    async def delete_snapshot(self, row: VolumeRow, project: str, name: str) -> Operation:
        """Raises as `snapshots.delete`."""
        place = _snapshot(row, name)
        await self.context.database.read("snapshot of volume", snapshots.find, place)
        work = partial(snapshots.delete, self.context, place)
        return self.context.in_background(kinds.VOLUME_SNAPSHOT_DELETE, project, volume_of(row), work)

    async def restore(self, row: VolumeRow, name: str) -> None:
        """Raises as `snapshots.restore`."""
        await snapshots.restore(self.context, place_of(row), name)

    async def look(self, now: datetime) -> None:
        """Take the snapshots that are due in the minute of `now`, and delete those that have expired."""
        await snapshots.look(self.context, now)

    # Devices

    async def check(self, instance: InstanceRef, pool: str, name: str) -> None:
        """Raises as `attach.check`."""
        await attach.check(self.context, instance, pool, name)

    async def open_tree(
        self, instance: InstanceRef, device: str, pool: str, name: str, idmap: IdMap, options: Options
    ) -> int:
        """Raises as `attach.open_tree`."""
        return await attach.open_tree(self.context, instance, device, pool, name, idmap, options)

    async def folder(self, instance: InstanceRef, pool: str, name: str) -> Path:
        """Raises as `attach.check`."""
        return await attach.folder(self.context, instance, pool, name)

    async def keep(self, instance: InstanceRef, device: str, pool: str, name: str, idmap: IdMap) -> None:
        """Note again what a running instance uses, after a start of the daemon."""
        await attach.keep(self.context, instance, device, pool, name, idmap)

    def close(self, instance: InstanceRef, device: str) -> None:
        """A device does not use its volume any more."""
        self.context.uses.remove(instance, device)


def _snapshot(row: VolumeRow, name: str) -> Place:
    pool, volume = place_of(row)
    return pool, volume.snapshot_named(name)


def _unknown_content(content_type: str) -> InvalidRequest | NotSupportedYet:
    if content_type == "block":
        return NotSupportedYet("Custom block volumes, which are for virtual machines, are not supported")
    return InvalidRequest(f"Unknown content type {content_type[:40]!r}: use filesystem")


def _unknown_source(kind: str) -> InvalidRequest:
    return InvalidRequest(f"Unknown source type {kind[:40]!r}: use copy")
