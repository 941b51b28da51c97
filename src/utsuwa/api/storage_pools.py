"""`/1.0/storage-pools`: the pools and their resources."""

from __future__ import annotations

from collections.abc import Iterator

from utsuwa.api.http import Created, Empty, Request, Result, Route, Sync, about
from utsuwa.api.storage_volumes import OWNERS
from utsuwa.core.entitlements import Entity
from utsuwa.core.scope import Scope
from utsuwa.core.urls import object_url
from utsuwa.db.codes import PENDING, VOLUME_CUSTOM
from utsuwa.db.storage_pools import PoolUse
from utsuwa.storage.pools import Pool, editable
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.storage import (
    Amount,
    StoragePool,
    StoragePoolPatch,
    StoragePoolPut,
    StoragePoolResources,
    StoragePoolsPost,
)


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


def _pool(scope: Scope, pool: Pool) -> StoragePool:
    """Hide the config, which reveals facts of the host, from callers that are restricted to projects."""
    return StoragePool(
        config={} if scope.restricted else pool.row.config,
        description=pool.row.description,
        name=pool.row.name,
        driver=pool.row.driver,
        used_by=scope.visible(_users(pool.row.name, pool.use)),
        status=_status(pool),
        locations=list(pool.row.locations),
    )


def _status(pool: Pool) -> str:
    """Return LXD's status: a pool that this member does not have yet is pending."""
    if pool.row.state == PENDING:
        return "Pending"
    return "Created" if pool.available else "Unavailable"


def _users(pool: str, use: PoolUse) -> list[str]:
    volumes = [url for volume in use.volumes for url in _urls(pool, use, *volume)]
    profiles = [object_url("profiles", name, project=project) for project, name in use.profiles]
    return volumes + profiles


def _urls(pool: str, use: PoolUse, kind: int, project: str, name: str) -> Iterator[str]:
    """Yield the URLs of a custom volume, or of the object whose volume it is, and of its snapshots."""
    path = ("storage-pools", pool, "volumes", "custom") if kind == VOLUME_CUSTOM else (OWNERS[kind],)
    yield object_url(*path, name, project=project)
    for snapshot in use.snapshots.get((kind, project, name), ()):
        yield object_url(*path, name, "snapshots", snapshot, project=project)


_POOL = "/1.0/storage-pools/{name}"

ROUTES: tuple[Route, ...] = about(
    Entity.STORAGE_POOL,
    Route(
        "GET", "/1.0/storage-pools", list_pools, "List the storage pools", reply=list[str] | list[StoragePool]
    ),
    Route(
        "POST",
        "/1.0/storage-pools",
        create_pool,
        "Create a storage pool",
        reply=Created,
        body=StoragePoolsPost,
    ),
    Route("GET", _POOL, show_pool, "Show a storage pool", reply=StoragePool),
    Route("PUT", _POOL, replace_pool, "Replace a storage pool's description and config", body=StoragePoolPut),
    Route(
        "PATCH", _POOL, patch_pool, "Change a storage pool's description and config", body=StoragePoolPatch
    ),
    Route("DELETE", _POOL, delete_pool, "Delete a storage pool"),
    Route(
        "GET",
        f"{_POOL}/resources",
        show_resources,
        "Show space and inodes of a pool",
        reply=StoragePoolResources,
    ),
)
