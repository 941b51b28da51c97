"""`/1.0/instances`: instances, their state, and bulk state changes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from utsuwa.api.http import Background, Empty, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.refs import InstanceRef
from utsuwa.core.urls import object_url
from utsuwa.instances.lifecycle.update import editable
from utsuwa.wire.checkpoints import InstanceCheckpoint
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.instances import (
    BulkState,
    Instance,
    InstanceFull,
    InstancePatch,
    InstancePost,
    InstancePut,
    InstanceRebuildPost,
    InstancesPost,
    InstanceState,
    InstanceStatePut,
)


async def list_instances(request: Request) -> Result:
    _check_type(request)
    instances = request.services.instances
    project = request.listed_project
    wanted = request.filter
    if request.query.get("instance-type") == "virtual-machine":
        return Sync([])
    if request.recursion == 0 and wanted is None:
        return Sync([_url(request, ref) for ref in await instances.names(request.scope, project)])
    records: Sequence[Instance]
    if request.recursion == 2:
        records = await instances.full_records(request.scope, project)
    else:
        records = await instances.records(request.scope, project)
    if wanted is not None:
        records = [record for record in records if wanted.matches(msgspec.to_builtins(record))]
    if request.recursion == 0:
        return Sync([_url(request, InstanceRef(record.project, record.name)) for record in records])
    return Sync(records)


def _check_type(request: Request) -> None:
    kind = request.query.get("instance-type", "")
    if kind not in ("", "container", "virtual-machine"):
        raise InvalidRequest(f"Unknown instance type {kind[:40]!r}: use container or virtual-machine")


def _url(request: Request, ref: InstanceRef) -> str:
    return object_url("containers" if request.containers_api else "instances", ref.name, project=ref.project)


async def create_instance(request: Request) -> Result:
    body = await request.body(InstancesPost)
    if body.source.type == "migration":
        migration = request.services.migration
        return Background(await migration.receive_instance(request.scope, request.project, body))
    return Background(await request.services.instances.create(request.scope, request.project, body))


async def change_all_states(request: Request) -> Result:
    body = await request.body(BulkState)
    return Background(await request.services.instances.change_all_states(request.project, body.state))


async def get_instance(request: Request) -> Result:
    manager = request.services.instances
    instance = await manager.find(request.instance)
    if request.recursion == 0:
        return Sync(manager.record(instance), etag=editable(instance.data))
    return Sync(await manager.full_record(instance), etag=editable(instance.data))


async def put_instance(request: Request) -> Result:
    body = await request.body(InstancePut)
    if body.restore:
        return Background(
            await request.services.instances.restore(
                request.scope.policy,
                request.instance,
                body.restore,
                request.if_match,
                with_state=body.stateful,
            )
        )
    return Background(
        await request.services.instances.edit_in_background(
            request.scope.policy, request.instance, replace(body), request.if_match
        )
    )


async def patch_instance(request: Request) -> Result:
    body = await request.body(InstancePatch)
    if body.restore:
        raise InvalidRequest("A snapshot is restored by PUT, not by PATCH")
    await request.services.instances.edit(
        request.scope.policy, request.instance, merge(body), request.if_match
    )
    return Empty()


async def rename_or_move_instance(request: Request) -> Result:
    body = await request.body(InstancePost)
    if body.moves:
        return Background(await request.services.instances.move(request.scope, request.instance, body))
    if body.migration:
        return Background(await request.services.migration.send_instance(request.instance, body))
    return Background(await request.services.instances.rename(request.instance, body.name))


async def rebuild_instance(request: Request) -> Result:
    body = await request.body(InstanceRebuildPost)
    return Background(await request.services.instances.rebuild(request.scope, request.instance, body.source))


async def delete_instance(request: Request) -> Result:
    return Background(await request.services.instances.delete(request.instance))


async def get_state(request: Request) -> Result:
    manager = request.services.instances
    return Sync(await manager.state(await manager.find(request.instance)))


async def get_checkpoint(request: Request) -> Result:
    return Sync(await request.services.instances.checkpoint(request.instance))


async def put_state(request: Request) -> Result:
    body = await request.body(InstanceStatePut)
    return Background(await request.services.instances.change_state(request.instance, body))


ROUTES: tuple[Route, ...] = about(
    Entity.INSTANCE,
    Route(
        "GET",
        "/1.0/instances",
        list_instances,
        "List instances",
        reply=list[str] | list[Instance] | list[InstanceFull],
        description="recursion=1 gives the instances, recursion=2 also their states.",
        lists_projects=True,
    ),
    Route("POST", "/1.0/instances", create_instance, "Create an instance", Background, InstancesPost),
    Route(
        "PUT",
        "/1.0/instances",
        change_all_states,
        "Change all instances' states",
        Background,
        BulkState,
        entitlement=Entitlement.CAN_UPDATE_STATE,
    ),
    Route(
        "GET",
        "/1.0/instances/{name}",
        get_instance,
        "Show an instance",
        reply=Instance | InstanceFull,
        description="recursion=1 gives its state as well.",
    ),
    Route("PUT", "/1.0/instances/{name}", put_instance, "Replace an instance", Background, InstancePut),
    Route("PATCH", "/1.0/instances/{name}", patch_instance, "Change parts of it", Empty, InstancePatch),
    Route(
        "POST",
        "/1.0/instances/{name}",
        rename_or_move_instance,
        "Rename or move an instance",
        Background,
        InstancePost,
        description="A move to another pool or project requires that it is stopped. With migration alone, "
        "the operation offers the instance to another server.",
    ),
    Route("DELETE", "/1.0/instances/{name}", delete_instance, "Delete an instance", Background),
    Route(
        "POST",
        "/1.0/instances/{name}/rebuild",
        rebuild_instance,
        "Replace the root disk of a stopped instance",
        Background,
        InstanceRebuildPost,
        entitlement=Entitlement.CAN_EDIT,
        description="The source is an image, or of the type none. Snapshots and configuration stay.",
    ),
    Route("GET", "/1.0/instances/{name}/state", get_state, "Show an instance's state", InstanceState),
    Route(
        "GET",
        "/1.0/instances/{name}/checkpoint",
        get_checkpoint,
        "Show whether an instance's running state can be saved",
        InstanceCheckpoint,
        description="Each obstacle comes with the process that causes it and what to do about it.",
    ),
    Route(
        "PUT",
        "/1.0/instances/{name}/state",
        put_state,
        "Change an instance's state",
        Background,
        InstanceStatePut,
        entitlement=Entitlement.CAN_UPDATE_STATE,
    ),
)
