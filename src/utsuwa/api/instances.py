"""`/1.0/instances`: the instances themselves, their state, and changes of many states at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from utsuwa.api.http import Background, Empty, Request, Result, Route, Sync
from utsuwa.core.errors import InvalidRequest, NotSupportedYet, UtsuwaError
from utsuwa.instances.manager import ACTIONS
from utsuwa.instances.model import Loaded
from utsuwa.operations.operations import INTERNAL_ERROR, Operation
from utsuwa.wire.instances import (
    BulkState,
    Instance,
    InstanceFull,
    InstancePatch,
    InstancePost,
    InstancePut,
    InstancesPost,
    InstanceState,
    InstanceStatePut,
)

log = logging.getLogger(__name__)

_DESCRIPTIONS = {
    "start": "Starting instance",
    "stop": "Stopping instance",
    "restart": "Restarting instance",
    "freeze": "Freezing instance",
    "unfreeze": "Unfreezing instance",
}
_CHANGES = {
    "start": ("Stopped",),
    "stop": ("Running", "Frozen"),
    "restart": ("Running",),
    "freeze": ("Running",),
    "unfreeze": ("Frozen",),
}
"""The statuses that a bulk action concerns."""


def _resources(*names: str, containers: bool = True) -> dict[str, list[str]]:
    found = {"instances": [f"/1.0/instances/{name}" for name in names]}
    if containers:
        found["containers"] = [f"/1.0/containers/{name}" for name in names]
    return found


def _run(
    request: Request,
    description: str,
    names: list[str],
    work: Callable[[], Awaitable[None]],
    *,
    containers: bool = True,
    may_cancel: bool = False,
) -> Background:
    async def run(operation: Operation) -> None:
        await work()

    return Background(
        request.services.operations.start(
            project=request.project,
            description=description,
            run=run,
            resources=_resources(*names, containers=containers),
            may_cancel=may_cancel,
            requestor=request.requestor,
        )
    )


async def list_instances(request: Request) -> Result:
    _check_type(request)
    instances = request.services.instances
    project = None if request.all_projects else request.project
    if project is not None:
        await request.services.projects.check(project)
    wanted = request.filter
    if request.query.get("instance-type") == "virtual-machine":
        return Sync([])
    if request.recursion == 0 and wanted is None:
        return Sync([_url(request, *key) for key in await instances.names(project)])
    records: Sequence[Instance]
    if request.recursion == 2:
        records = await instances.full_records(project)
    else:
        records = await instances.records(project)
    if wanted is not None:
        records = [record for record in records if wanted.matches(msgspec.to_builtins(record))]
    if request.recursion == 0:
        return Sync([_url(request, record.project, record.name) for record in records])
    return Sync(records)


def _check_type(request: Request) -> None:
    kind = request.query.get("instance-type", "")
    if kind not in ("", "container", "virtual-machine"):
        raise InvalidRequest(f"Unknown instance type {kind[:40]!r}: use container or virtual-machine")


def _url(request: Request, project: str, name: str) -> str:
    kind = "containers" if request.containers_api else "instances"
    return f"/1.0/{kind}/{name}" + ("" if project == "default" else f"?project={project}")


async def create_instance(request: Request) -> Result:
    body = await request.body(InstancesPost)
    manager = request.services.instances
    await request.services.projects.check(request.project)
    instance, image = await manager.prepare(request.project, body)

    async def build() -> None:
        await manager.build(instance, image)
        if body.start:
            await manager.start(instance.project, instance.name)

    return _run(request, "Creating instance", [instance.name], build)


async def change_all_states(request: Request) -> Result:
    body = (await request.body(BulkState)).state
    _check_action(body)
    manager = request.services.instances
    names = [i.name for i in await manager.records(request.project) if i.status in _CHANGES[body.action]]

    async def change() -> None:
        results = await asyncio.gather(
            *(manager.change_state(request.project, name, body) for name in names), return_exceptions=True
        )
        problems = [
            f"{name}: {_told(name, result)}"
            for name, result in zip(names, results, strict=True)
            if result is not None
        ]
        if problems:
            raise InvalidRequest("; ".join(problems))

    return _run(
        request,
        _DESCRIPTIONS[body.action],
        names,
        change,
        containers=False,
        may_cancel=_may_cancel(body),
    )


def _may_cancel(body: InstanceStatePut) -> bool:
    """Waiting for a container to stop by itself can take long, and can be given up."""
    return body.action in ("stop", "restart") and not body.force


def _told(name: str, error: BaseException) -> str:
    """What a client may read of a failure; our own faults go to the log."""
    if isinstance(error, UtsuwaError):
        return error.message
    log.error("a change of instance %r failed", name, exc_info=error)
    return INTERNAL_ERROR


async def get_instance(request: Request) -> Result:
    manager = request.services.instances
    instance = await manager.load(request.project, request.params["name"])
    record = manager.record(instance)
    if request.recursion == 0:
        return Sync(record, etag=_editable(record))
    return Sync(await manager.full_record(instance), etag=_editable(record))


def _editable(record: Instance) -> list[object]:
    return [
        record.architecture,
        record.config,
        record.devices,
        record.ephemeral,
        record.profiles,
        record.description,
    ]


async def put_instance(request: Request) -> Result:
    body = await request.body(InstancePut)
    manager, name = request.services.instances, request.params["name"]
    check = partial(_check_etag, request)
    check(await manager.load(request.project, name))
    await manager.check_put(request.project, name, body)
    # Checked again when its turn comes: another request may be before it.
    return _run(request, "Updating instance", [name], lambda: manager.put(request.project, name, body, check))


def _check_etag(request: Request, instance: Loaded) -> None:
    request.if_match(_editable(request.services.instances.record(instance)))


async def patch_instance(request: Request) -> Result:
    body = await request.body(InstancePatch)
    manager, name = request.services.instances, request.params["name"]
    await manager.patch(request.project, name, body, partial(_check_etag, request))
    return Empty()


async def rename_instance(request: Request) -> Result:
    body = await request.body(InstancePost)
    manager, name = request.services.instances, request.params["name"]
    if body.migration or body.pool or body.project:
        raise NotSupportedYet("Moving instances between servers, pools or projects is not supported yet")
    await manager.check_rename(request.project, name, body.name)
    return _run(
        request, "Renaming instance", [name], lambda: manager.rename(request.project, name, body.name)
    )


async def delete_instance(request: Request) -> Result:
    manager, name = request.services.instances, request.params["name"]
    await manager.check_deletable(request.project, name)
    return _run(request, "Deleting instance", [name], lambda: manager.delete(request.project, name))


async def get_state(request: Request) -> Result:
    manager = request.services.instances
    return Sync(await manager.state(await manager.load(request.project, request.params["name"])))


async def put_state(request: Request) -> Result:
    body = await request.body(InstanceStatePut)
    _check_action(body)
    manager, name = request.services.instances, request.params["name"]
    await manager.load(request.project, name)
    return _run(
        request,
        _DESCRIPTIONS[body.action],
        [name],
        lambda: manager.change_state(request.project, name, body),
        containers=False,
        may_cancel=_may_cancel(body),
    )


def _check_action(body: InstanceStatePut) -> None:
    if body.action not in ACTIONS:
        raise InvalidRequest(f"Unknown action {body.action[:40]!r}: use one of {', '.join(ACTIONS)}")
    if body.stateful:
        raise NotSupportedYet("Keeping the running state (stateful) is not supported yet")


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/1.0/instances",
        list_instances,
        "List instances",
        reply=list[str] | list[Instance] | list[InstanceFull],
        description="recursion=1 gives the instances, recursion=2 also their states.",
    ),
    Route("POST", "/1.0/instances", create_instance, "Create an instance", Background, InstancesPost),
    Route("PUT", "/1.0/instances", change_all_states, "Change all instances' states", Background, BulkState),
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
    Route("POST", "/1.0/instances/{name}", rename_instance, "Rename an instance", Background, InstancePost),
    Route("DELETE", "/1.0/instances/{name}", delete_instance, "Delete an instance", Background),
    Route("GET", "/1.0/instances/{name}/state", get_state, "Show an instance's state", InstanceState),
    Route(
        "PUT",
        "/1.0/instances/{name}/state",
        put_state,
        "Change an instance's state",
        Background,
        InstanceStatePut,
    ),
)
