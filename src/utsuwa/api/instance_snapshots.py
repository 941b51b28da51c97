"""`/1.0/instances/<name>/snapshots`."""

from __future__ import annotations

from utsuwa.api.http import Background, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.core.refs import SnapshotRef
from utsuwa.core.urls import object_url
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.snapshots import Snapshot, SnapshotPatch, SnapshotPost, SnapshotPut, SnapshotsPost


def _ref(request: Request) -> SnapshotRef:
    return SnapshotRef(request.instance, request.params["snapshot"])


async def list_snapshots(request: Request) -> Result:
    request.refuse_filter()
    records = await request.services.snapshots.records(request.instance)
    if request.recursion:
        return Sync(records)
    collection = "containers" if request.containers_api else "instances"
    instance = request.instance
    return Sync(
        [
            object_url(collection, instance.name, "snapshots", record.name, project=instance.project)
            for record in records
        ]
    )


async def create_snapshot(request: Request) -> Result:
    body = await request.body(SnapshotsPost)
    return Background(await request.services.snapshots.create(request.instance, body))


async def get_snapshot(request: Request) -> Result:
    record, editable = await request.services.snapshots.get(_ref(request))
    return Sync(record, etag=editable)


async def put_snapshot(request: Request) -> Result:
    change = replace(await request.body(SnapshotPut))
    return Background(await request.services.snapshots.edit(_ref(request), change, request.if_match))


async def patch_snapshot(request: Request) -> Result:
    change = merge(await request.body(SnapshotPatch))
    return Background(await request.services.snapshots.edit(_ref(request), change, request.if_match))


async def rename_snapshot(request: Request) -> Result:
    body = await request.body(SnapshotPost)
    if body.migration:
        name = request.params["snapshot"]
        return Background(await request.services.migration.send_snapshot(request.instance, name, body))
    return Background(await request.services.snapshots.rename(_ref(request), body.name))


async def delete_snapshot(request: Request) -> Result:
    return Background(await request.services.snapshots.delete(_ref(request)))


_ALL = "/1.0/instances/{name}/snapshots"
_ONE = f"{_ALL}/{{snapshot}}"

ROUTES: tuple[Route, ...] = about(
    Entity.INSTANCE,
    Route("GET", _ALL, list_snapshots, "List an instance's snapshots", reply=list[str] | list[Snapshot]),
    Route(
        "POST",
        _ALL,
        create_snapshot,
        "Take a snapshot",
        Background,
        SnapshotsPost,
        entitlement=Entitlement.CAN_MANAGE_SNAPSHOTS,
    ),
    Route("GET", _ONE, get_snapshot, "Show a snapshot", reply=Snapshot),
    Route(
        "PUT",
        _ONE,
        put_snapshot,
        "Replace the editable part of a snapshot",
        Background,
        SnapshotPut,
        entitlement=Entitlement.CAN_MANAGE_SNAPSHOTS,
    ),
    Route(
        "PATCH",
        _ONE,
        patch_snapshot,
        "Change parts of a snapshot",
        Background,
        SnapshotPatch,
        entitlement=Entitlement.CAN_MANAGE_SNAPSHOTS,
    ),
    Route(
        "POST",
        _ONE,
        rename_snapshot,
        "Rename a snapshot",
        Background,
        SnapshotPost,
        entitlement=Entitlement.CAN_MANAGE_SNAPSHOTS,
    ),
    Route(
        "DELETE",
        _ONE,
        delete_snapshot,
        "Delete a snapshot",
        Background,
        entitlement=Entitlement.CAN_MANAGE_SNAPSHOTS,
    ),
)
