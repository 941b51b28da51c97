"""`/1.0/storage-pools`: the pools, their resources, and the volumes on them."""

from __future__ import annotations

from utsuwa.api.http import Created, Empty, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entity
from utsuwa.core.errors import InvalidRequest, NotSupportedYet, OtherMember
from utsuwa.core.scope import Scope
from utsuwa.core.urls import object_url
from utsuwa.core.volumes import Volume
from utsuwa.db.codes import PENDING, VOLUME_CONTAINER, VOLUME_IMAGE, VOLUME_TYPES, VOLUME_VIRTUAL_MACHINE
from utsuwa.db.storage_pools import PoolUse
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.storage.pools import Pool, editable
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.storage import (
    Amount,
    StoragePool,
    StoragePoolPatch,
    StoragePoolPut,
    StoragePoolResources,
    StoragePoolsPost,
    StorageVolume,
    StorageVolumeState,
    VolumeUsage,
)

_USERS = {VOLUME_CONTAINER: "instances", VOLUME_VIRTUAL_MACHINE: "instances", VOLUME_IMAGE: "images"}


async def list_pools(request: Request) -> Result:
    request.refuse_filter()
    pools = await request.services.storage.pools.all()
    if request.recursion:
        return Sync([_pool(request.scope, pool) for pool in pools])
    return Sync([object_url("storage-pools", pool.row.name) for pool in pools])


async def create_pool(request: Request) -> Result:
    body = await request.body(StoragePoolsPost)
    await request.services.storage.pools.create(body.name, body.driver, body.description, body.config)
    return Created(object_url("storage-pools", body.name))


async def show_pool(request: Request) -> Result:
    pool = await request.services.storage.pools.show(request.params["name"])
    return Sync(_pool(request.scope, pool), etag=editable(pool.row))


async def replace_pool(request: Request) -> Result:
    body = await request.body(StoragePoolPut)
    await request.services.storage.pools.edit(request.params["name"], replace(body), request.if_match)
    return Empty()


async def patch_pool(request: Request) -> Result:
    body = await request.body(StoragePoolPatch)
    await request.services.storage.pools.edit(request.params["name"], merge(body), request.if_match)
    return Empty()


async def delete_pool(request: Request) -> Result:
    await request.services.storage.pools.delete(request.params["name"])
    return Empty()


async def show_resources(request: Request) -> Result:
    usage = await request.services.storage.pools.resources(request.params["name"])
    return Sync(
        StoragePoolResources(
            space=Amount(used=usage.space_used, total=usage.space_total),
            inodes=Amount(used=usage.inodes_used, total=usage.inodes_total),
        )
    )


async def list_volumes(request: Request) -> Result:
    """List all volumes of a pool, or those of the type in the path."""
    request.refuse_filter()
    kind = _type(request) if "type" in request.params else None
    project = None if request.all_projects else request.project
    rows = await request.services.storage.volumes.all(request.scope, request.params["name"], project, kind)
    if request.recursion:
        return Sync([_volume(row) for row in rows])
    return Sync(list(dict.fromkeys(map(_volume_url, rows))))  # several members can have one


async def refuse_volume(request: Request) -> Result:
    raise NotSupportedYet("Custom storage volumes are not supported in this version")


async def show_volume(request: Request) -> Result:
    row = await _found(request)
    return Sync(_volume(row), etag=[row.name, VOLUME_TYPES.words[row.type], row.config, row.description])


async def show_volume_state(request: Request) -> Result:
    row = await _found(request)
    if row.type != VOLUME_CONTAINER:
        return Sync(StorageVolumeState(usage=None))
    if not row.here:
        raise OtherMember(f"The storage volume {row.name!r} is on {row.location!r}: ask that member")
    volume = Volume("container", row.project, row.name)
    used = await request.services.storage.volumes.usage(row.pool, volume)
    return Sync(StorageVolumeState(usage=None if used is None else VolumeUsage(used=used)))


async def _found(request: Request) -> VolumeRow:
    return await request.services.storage.volumes.get(
        request.scope, request.params["name"], request.project, _type(request), request.params["volume"]
    )


def _type(request: Request) -> int:
    name = request.params["type"]
    if name not in VOLUME_TYPES:
        raise InvalidRequest(
            f"Unknown storage volume type {name[:40]!r}: use one of {', '.join(VOLUME_TYPES)}"
        )
    return VOLUME_TYPES[name]


def _pool(scope: Scope, pool: Pool) -> StoragePool:
    """Hide the config, which reveals facts of the host, from callers that are restricted to projects."""
    return StoragePool(
        config={} if scope.restricted else pool.row.config,
        description=pool.row.description,
        name=pool.row.name,
        driver=pool.row.driver,
        used_by=scope.visible(_users(pool.use)),
        status=_status(pool),
        locations=list(pool.row.locations),
    )


def _status(pool: Pool) -> str:
    """Return LXD's status: a pool that this member does not have yet is pending."""
    if pool.row.state == PENDING:
        return "Pending"
    return "Created" if pool.available else "Unavailable"


def _users(use: PoolUse) -> list[str]:
    volumes = [
        object_url(_USERS[kind], name, project=project)
        for kind, project, name in use.volumes
        if kind in _USERS
    ]
    profiles = [object_url("profiles", name, project=project) for project, name in use.profiles]
    return volumes + profiles


def _volume(row: VolumeRow) -> StorageVolume:
    return StorageVolume(
        config=row.config,
        description=row.description,
        name=row.name,
        type=VOLUME_TYPES.words[row.type],
        used_by=[object_url(_USERS[row.type], row.name, project=row.project)],
        location=row.location,
        content_type="filesystem",
        project=row.project,
        created_at=row.created_at,
    )


def _volume_url(row: VolumeRow) -> str:
    kind = VOLUME_TYPES.words[row.type]
    return object_url("storage-pools", row.pool, "volumes", kind, row.name, project=row.project)


_POOL = "/1.0/storage-pools/{name}"
_VOLUME = f"{_POOL}/volumes/{{type}}/{{volume}}"

_POOLS = about(
    Entity.STORAGE_POOL,
    Route("GET", "/1.0/storage-pools", list_pools, "The storage pools", reply=list[str] | list[StoragePool]),
    Route(
        "POST", "/1.0/storage-pools", create_pool, "Make a storage pool", reply=Created, body=StoragePoolsPost
    ),
    Route("GET", _POOL, show_pool, "One storage pool", reply=StoragePool),
    Route("PUT", _POOL, replace_pool, "Replace a storage pool's description and config", body=StoragePoolPut),
    Route(
        "PATCH", _POOL, patch_pool, "Change a storage pool's description and config", body=StoragePoolPatch
    ),
    Route("DELETE", _POOL, delete_pool, "Remove a storage pool"),
    Route(
        "GET", f"{_POOL}/resources", show_resources, "Space and inodes of a pool", reply=StoragePoolResources
    ),
)

_VOLUMES = about(
    Entity.STORAGE_VOLUME,
    Route(
        "GET",
        f"{_POOL}/volumes",
        list_volumes,
        "The volumes on a storage pool",
        reply=list[str] | list[StorageVolume],
        lists_projects=True,
    ),
    Route("POST", f"{_POOL}/volumes", refuse_volume, "Make a custom volume (not supported yet)"),
    Route(
        "GET",
        f"{_POOL}/volumes/{{type}}",
        list_volumes,
        "The volumes of one type on a storage pool",
        reply=list[str] | list[StorageVolume],
        lists_projects=True,
    ),
    Route("POST", f"{_POOL}/volumes/{{type}}", refuse_volume, "Make a volume of a type (not supported yet)"),
    Route("GET", _VOLUME, show_volume, "One storage volume", reply=StorageVolume),
    Route("GET", f"{_VOLUME}/state", show_volume_state, "The usage of a volume", reply=StorageVolumeState),
)

ROUTES: tuple[Route, ...] = _POOLS + _VOLUMES
