"""`/1.0/storage-pools/<pool>/volumes`: the volumes of instances and images, and custom ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from utsuwa.api.http import Background, Created, Empty, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.core.errors import InvalidRequest, OtherMember
from utsuwa.core.scope import Scope
from utsuwa.core.units import parse_bytes
from utsuwa.core.urls import object_url
from utsuwa.core.volumes import Volume
from utsuwa.db.codes import (
    VOLUME_CONTAINER,
    VOLUME_CUSTOM,
    VOLUME_IMAGE,
    VOLUME_TYPES,
    VOLUME_VIRTUAL_MACHINE,
)
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.storage.volumes import ENFORCED_KEY, ShownVolume
from utsuwa.wire.edits import Change, merge, replace
from utsuwa.wire.storage import (
    StorageVolume,
    StorageVolumePatch,
    StorageVolumePost,
    StorageVolumePut,
    StorageVolumesPost,
    StorageVolumeState,
    VolumeUsage,
)

OWNERS = {VOLUME_CONTAINER: "instances", VOLUME_VIRTUAL_MACHINE: "instances", VOLUME_IMAGE: "images"}
"""The collections of the objects to which volumes belong that are no custom ones."""


async def list_volumes(request: Request) -> Result:
    """List all volumes of a pool, or those of the type in the path, with their snapshots."""
    kind = type_of(request) if "type" in request.params else None
    volumes = request.services.storage.volumes
    found = await volumes.all(request.scope, request.params["name"], request.listed_project, kind)
    records = [record for shown in found for record in _records(request.scope, shown)]
    wanted = request.filter
    if wanted is not None:
        records = [record for record in records if wanted.matches(_filtered(record))]
    if request.recursion:
        return Sync(records)
    pool = request.params["name"]
    return Sync(list(dict.fromkeys(_url(pool, record) for record in records)))  # on several members


def _filtered(record: StorageVolume) -> dict[str, object]:
    """Return what filters match, which may ask for snapshots."""
    return {**msgspec.to_builtins(record), "snapshot": "true" if "/" in record.name else "false"}


async def create_volume(request: Request) -> Result:
    """Create an empty volume at once, or a copy in the background."""
    body = await request.body(StorageVolumesPost)
    kind = request.params.get("type") or body.type or "custom"
    if kind != "custom":
        raise InvalidRequest(
            f"Storage volumes of type {kind[:40]!r} cannot be created by themselves: use type custom"
        )
    pool = request.params["name"]
    if body.source.type == "migration":
        migration = request.services.migration
        return Background(await migration.receive_volume(pool, request.project, body))
    operation = await request.services.storage.custom.create(request.scope, pool, request.project, body)
    return Empty() if operation is None else Background(operation)


async def show_volume(request: Request) -> Result:
    shown = await request.services.storage.volumes.show(*_path(request))
    row = shown.row
    record = next(_records(request.scope, shown))
    return Sync(record, etag=StorageVolumePut(config=row.config, description=row.description))


async def put_volume(request: Request) -> Result:
    body = await request.body(StorageVolumePut)
    if body.restore:
        await request.services.storage.custom.restore(await custom_volume(request), body.restore)
        if not body.config:
            return Empty()
    return await _edit(request, replace(msgspec.structs.replace(body, restore="")))


async def patch_volume(request: Request) -> Result:
    return await _edit(request, merge(await request.body(StorageVolumePatch)))


async def _edit(request: Request, change: Change[StorageVolumePut]) -> Result:
    storage = request.services.storage
    if type_of(request) == VOLUME_CUSTOM:
        await storage.custom.edit(await custom_volume(request), change, request.if_match)
    else:
        await storage.volumes.edit(*_path(request), change, request.if_match)
    return Empty()


async def move_volume(request: Request) -> Result:
    """Rename a volume at once, or move it in the background."""
    body = await request.body(StorageVolumePost)
    row = await custom_volume(request)
    if body.migration:
        return Background(await request.services.migration.send_volume(row, request.project, body))
    moved = await request.services.storage.custom.move(request.scope, row, request.project, body)
    return Created(moved) if isinstance(moved, str) else Background(moved)


async def delete_volume(request: Request) -> Result:
    await request.services.storage.custom.delete(await custom_volume(request))
    return Empty()


async def show_volume_state(request: Request) -> Result:
    row = await found_volume(request)
    if row.type not in (VOLUME_CONTAINER, VOLUME_CUSTOM):
        return Sync(StorageVolumeState(usage=None))
    if not row.here:
        raise OtherMember(f"The storage volume {row.name!r} is on {row.location!r}: ask that member")
    volume = Volume("custom" if row.type == VOLUME_CUSTOM else "container", row.project, row.name)
    used = await request.services.storage.volumes.usage(row.pool, volume)
    if used is None:
        return Sync(StorageVolumeState(usage=None))
    size = row.config.get("size", "") if ENFORCED_KEY not in row.config else ""
    return Sync(StorageVolumeState(usage=VolumeUsage(used=used, total=parse_bytes(size) if size else 0)))


async def found_volume(request: Request) -> VolumeRow:
    """Return the volume of the path. Raises NotFound."""
    return await request.services.storage.volumes.get(*_path(request))


async def custom_volume(request: Request) -> VolumeRow:
    """Return the volume of the path to be changed. Raises InvalidRequest for other types, NotFound."""
    scope, pool, project, kind, name = _path(request)
    if kind != VOLUME_CUSTOM:
        raise InvalidRequest(
            f"Volumes of type {request.params['type']} belong to instances and images: change those instead"
        )
    return await request.services.storage.custom.find(scope, pool, project, name)


def _path(request: Request) -> tuple[Scope, str, str, int, str]:
    params = request.params
    return request.scope, params["name"], request.project, type_of(request), params["volume"]


def type_of(request: Request) -> int:
    """Return the type in the path as stored. Raises InvalidRequest."""
    name = request.params["type"]
    if name not in VOLUME_TYPES:
        raise InvalidRequest(
            f"Unknown storage volume type {name[:40]!r}: use one of {', '.join(VOLUME_TYPES)}"
        )
    return VOLUME_TYPES[name]


def _records(scope: Scope, shown: ShownVolume) -> Iterator[StorageVolume]:
    """Yield the record of a volume, and those of its snapshots."""
    row = shown.row
    used_by: Sequence[str] = [object_url(user.kind, user.name, project=user.project) for user in shown.users]
    if row.type != VOLUME_CUSTOM:
        used_by = [object_url(OWNERS[row.type], row.name, project=row.project)]
    record = StorageVolume(
        config=row.config,
        description=row.description,
        name=row.name,
        type=VOLUME_TYPES.words[row.type],
        used_by=scope.visible(used_by) if row.type == VOLUME_CUSTOM else list(used_by),
        location=row.location,
        content_type="filesystem",
        project=row.project,
        created_at=row.created_at,
    )
    yield record
    for snapshot in shown.snapshots:
        of_instance = object_url("instances", row.name, "snapshots", snapshot.name, project=row.project)
        yield msgspec.structs.replace(
            record,
            name=f"{row.name}/{snapshot.name}",
            config=snapshot.config,
            description=snapshot.description,
            created_at=snapshot.created_at,
            used_by=[of_instance] if row.type == VOLUME_CONTAINER else [],
        )


def _url(pool: str, record: StorageVolume) -> str:
    name, slash, snapshot = record.name.partition("/")
    below = ("snapshots", snapshot) if slash else ()
    return object_url("storage-pools", pool, "volumes", record.type, name, *below, project=record.project)


_ALL = "/1.0/storage-pools/{name}/volumes"
_OF_TYPE = f"{_ALL}/{{type}}"
ONE = f"{_OF_TYPE}/{{volume}}"

_LIST = list[str] | list[StorageVolume]

ROUTES: tuple[Route, ...] = about(
    Entity.STORAGE_VOLUME,
    Route("GET", _ALL, list_volumes, "List the volumes on a storage pool", _LIST, lists_projects=True),
    Route(
        "POST",
        _ALL,
        create_volume,
        "Create a custom volume",
        Empty,
        StorageVolumesPost,
        description="A copy of another volume is made in the background.",
        may_continue=True,
    ),
    Route(
        "GET",
        _OF_TYPE,
        list_volumes,
        "List the volumes of a type on a storage pool",
        _LIST,
        lists_projects=True,
    ),
    Route(
        "POST",
        _OF_TYPE,
        create_volume,
        "Create a volume of the type custom",
        Empty,
        StorageVolumesPost,
        entitlement=Entitlement.CAN_CREATE,
        description="A copy of another volume is made in the background.",
        may_continue=True,
    ),
    Route("GET", ONE, show_volume, "Show a storage volume", reply=StorageVolume),
    Route(
        "PUT",
        ONE,
        put_volume,
        "Replace the editable part of a volume",
        Empty,
        StorageVolumePut,
        description="With restore, a custom volume gets the files of that snapshot.",
    ),
    Route("PATCH", ONE, patch_volume, "Change parts of a volume", Empty, StorageVolumePatch),
    Route(
        "POST",
        ONE,
        move_volume,
        "Rename a custom volume, or move it to another pool or project",
        Created,
        StorageVolumePost,
        description="A move is done in the background. With migration, it is offered to another server.",
        may_continue=True,
    ),
    Route("DELETE", ONE, delete_volume, "Delete a custom volume"),
    Route("GET", f"{ONE}/state", show_volume_state, "Show the usage of a volume", reply=StorageVolumeState),
)
