"""`/1.0/operations`: background operations and their websockets."""

from __future__ import annotations

from typing import Any

from utsuwa.api.http import Empty, Raw, Request, Result, Route, Sync, about
from utsuwa.api.websockets import websocket_response
from utsuwa.core.entitlements import Entity
from utsuwa.core.errors import Forbidden, InvalidRequest, NotFound, Unavailable
from utsuwa.core.urls import object_url
from utsuwa.operations.operations import Operation
from utsuwa.security.authorization import NOT_AUTHORIZED, Access, require
from utsuwa.wire import operations as wire


async def _find(request: Request, secret: str = "") -> Operation:
    """Return a visible operation. Raises NotFound, OtherMember."""
    wanted = request.params["id"]
    try:
        return request.services.operations.get(request.scope, wanted, secret)
    except NotFound:
        await request.services.shared_operations.refuse(request.scope, wanted)
        raise


async def list_operations(request: Request) -> Result:
    request.refuse_filter()
    recursive = request.recursion > 0
    project = None if request.all_projects else request.project
    groups: dict[str, list[Any]] = {}
    for operation in request.services.operations.all(request.scope, project):
        shown = operation.record() if recursive else operation.url
        groups.setdefault(operation.status.lower(), []).append(shown)
    for record in await request.services.shared_operations.elsewhere(request.scope, project):
        shown = record if recursive else object_url("operations", record.id)
        groups.setdefault(record.status.lower(), []).append(shown)
    return Sync(groups)


async def get_operation(request: Request) -> Result:
    return Sync((await _find(request)).record())


async def cancel_operation(request: Request) -> Result:
    operation = await _find(request)
    require(request.scope, Entity.OPERATION, operation.kind.entitlement, operation.project)
    operation.cancel()
    return Empty()


async def wait_for_operation(request: Request) -> Result:
    """Untrusted callers may wait with the operation's secret; without it, nothing is revealed."""
    operation = await _by_secret(request)
    timeout = request.number("timeout", -1)
    await operation.wait(None if timeout < 0 else timeout)
    return Sync(operation.record())


async def _by_secret(request: Request) -> Operation:
    """Callers with a secret of the operation need not be able to see it. Raises NotFound, Forbidden."""
    try:
        return await _find(request, request.query.get("secret", ""))
    except NotFound:
        if request.caller.trusted:
            raise
        raise Forbidden(NOT_AUTHORIZED) from None


async def _of_websocket(request: Request, secret: str) -> Operation:
    """Raises NotFound also to strangers: the other side of a move concludes from it that this is settled.

    It is Unavailable until then, while there is no operation for it.
    """
    try:
        return await _find(request, secret)
    except NotFound:
        if await request.services.migration.is_undecided(request.params["id"]):
            raise Unavailable("The result of this move cannot be told now: try again later") from None
        raise


async def connect_websocket(request: Request) -> Result:
    """Only the secret is checked: the creator of the operation may pass it on, unless the websocket lasts."""
    secret = request.query.get("secret", "")
    operation = await (_of_websocket(request, secret) if secret else _by_secret(request))
    if not secret:
        raise InvalidRequest("Missing secret: use that of the websocket in the operation's metadata")
    if operation.lasts:
        require(request.scope, Entity.OPERATION, operation.kind.entitlement, operation.project)
    offset, window = (request.number(name, 0) for name in ("offset", "window"))
    socket = websocket_response(request.raw, operation.kind.heartbeat)
    name = operation.claim(secret, request.requestor)
    await socket.prepare(request.raw)
    await operation.serve(name, socket, offset=offset, window=window)
    if not socket.closed:
        await socket.close()
    return Raw(socket)


ROUTES: tuple[Route, ...] = about(
    Entity.OPERATION,
    Route(
        "GET",
        "/1.0/operations",
        list_operations,
        "List operations by their status",
        reply=dict[str, list[str]] | dict[str, list[wire.Operation]],
        entity=Entity.PROJECT,
        lists_projects=True,
        description="Completed ones remain visible for five seconds.",
    ),
    Route("GET", "/1.0/operations/{id}", get_operation, "Show an operation", wire.Operation),
    Route("DELETE", "/1.0/operations/{id}", cancel_operation, "Cancel an operation"),
    Route(
        "GET",
        "/1.0/operations/{id}/wait",
        wait_for_operation,
        "Wait for an operation",
        wire.Operation,
        access=Access.PUBLIC,
        description="timeout in seconds, -1 for none; untrusted callers need the operation's secret.",
    ),
    Route(
        "GET",
        "/1.0/operations/{id}/websocket",
        connect_websocket,
        "Connect one of an operation's websockets",
        Raw,
        access=Access.PUBLIC,
        description="secret is the value from metadata.fds; each can be used once, or again if it lingers.",
    ),
)
