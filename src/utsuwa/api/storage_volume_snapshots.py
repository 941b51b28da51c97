"""`/1.0/storage-pools/<pool>/volumes/<type>/<volume>/snapshots`."""

from __future__ import annotations

from msgspec.structs import replace as replaced

from utsuwa.api.http import Background, Empty, Request, Result, Route, Sync, about
from utsuwa.api.storage_volumes import ONE, custom_volume, found_volume
from utsuwa.core import clock
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.core.errors import NotFound
from utsuwa.core.urls import object_url
from utsuwa.db.codes import VOLUME_TYPES
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.volume_snapshots import VolumeSnapshotRow
from utsuwa.storage.custom.snapshots import editable
from utsuwa.wire.edits import Change, merge, replace
from utsuwa.wire.storage import (
    StorageVolumeSnapshot,
    StorageVolumeSnapshotPatch,
    StorageVolumeSnapshotPost,
    StorageVolumeSnapshotPut,
    StorageVolumeSnapshotsPost,
)


async def list_snapshots(request: Request) -> Result:
    row = await found_volume(request)
    found = await request.services.storage.volumes.snapshots(row)
    if request.recursion:
        return Sync([_listed(row, snapshot) for snapshot in found])
    path = ("storage-pools", row.pool, "volumes", VOLUME_TYPES.words[row.type], row.name, "snapshots")
    return Sync([object_url(*path, snapshot.name, project=row.project) for snapshot in found])


async def create_snapshot(request: Request) -> Result:
    body = await request.body(StorageVolumeSnapshotsPost)
    row = await custom_volume(request)
    return Background(await request.services.storage.custom.create_snapshot(row, request.project, body))


async def show_snapshot(request: Request) -> Result:
    row = await found_volume(request)
    for snapshot in await request.services.storage.volumes.snapshots(row):
        if snapshot.name == request.params["snapshot"]:
            return Sync(_record(snapshot), etag=editable(snapshot))
    raise NotFound(f"Snapshot {request.params['snapshot']!r} of storage volume {row.name!r} not found")


async def put_snapshot(request: Request) -> Result:
    return await _edit(request, replace(await request.body(StorageVolumeSnapshotPut)))


async def patch_snapshot(request: Request) -> Result:
    return await _edit(request, merge(await request.body(StorageVolumeSnapshotPatch)))


async def _edit(request: Request, change: Change[StorageVolumeSnapshotPut]) -> Result:
    row, name = await custom_volume(request), request.params["snapshot"]
    await request.services.storage.custom.edit_snapshot(row, name, change, request.if_match)
    return Empty()


async def rename_snapshot(request: Request) -> Result:
    body = await request.body(StorageVolumeSnapshotPost)
    row, name = await custom_volume(request), request.params["snapshot"]
    custom = request.services.storage.custom
    return Background(await custom.rename_snapshot(row, request.project, name, body.name))


async def delete_snapshot(request: Request) -> Result:
    row, name = await custom_volume(request), request.params["snapshot"]
    return Background(await request.services.storage.custom.delete_snapshot(row, request.project, name))


def _listed(row: VolumeRow, snapshot: VolumeSnapshotRow) -> StorageVolumeSnapshot:
    """Return the record in a list: as in LXD, with the name of the volume, and null for no expiry."""
    record = _record(snapshot)
    name = f"{row.name}/{snapshot.name}"
    return replaced(record, name=name, expires_at=record.expires_at if snapshot.expires_at else None)


def _record(snapshot: VolumeSnapshotRow) -> StorageVolumeSnapshot:
    return StorageVolumeSnapshot(
        name=snapshot.name,
        description=snapshot.description,
        config=snapshot.config,
        content_type="filesystem",
        created_at=clock.to_wire(snapshot.created_at),
        expires_at=clock.to_wire(snapshot.expires_at),
    )


_ALL = f"{ONE}/snapshots"
_SNAPSHOT = f"{_ALL}/{{snapshot}}"
_MANAGE = Entitlement.CAN_MANAGE_SNAPSHOTS

ROUTES: tuple[Route, ...] = about(
    Entity.STORAGE_VOLUME,
    Route(
        "GET",
        _ALL,
        list_snapshots,
        "List the snapshots of a volume",
        reply=list[str] | list[StorageVolumeSnapshot],
    ),
    Route(
        "POST",
        _ALL,
        create_snapshot,
        "Take a snapshot of a custom volume",
        Background,
        StorageVolumeSnapshotsPost,
        entitlement=_MANAGE,
    ),
    Route("GET", _SNAPSHOT, show_snapshot, "Show a snapshot of a volume", reply=StorageVolumeSnapshot),
    Route(
        "PUT",
        _SNAPSHOT,
        put_snapshot,
        "Replace the editable part of a snapshot of a custom volume",
        Empty,
        StorageVolumeSnapshotPut,
        entitlement=_MANAGE,
    ),
    Route(
        "PATCH",
        _SNAPSHOT,
        patch_snapshot,
        "Change parts of a snapshot of a custom volume",
        Empty,
        StorageVolumeSnapshotPatch,
        entitlement=_MANAGE,
    ),
    Route(
        "POST",
        _SNAPSHOT,
        rename_snapshot,
        "Rename a snapshot of a custom volume",
        Background,
        StorageVolumeSnapshotPost,
        entitlement=_MANAGE,
    ),
    Route(
        "DELETE",
        _SNAPSHOT,
        delete_snapshot,
        "Delete a snapshot of a custom volume",
        Background,
        entitlement=_MANAGE,
    ),
)
