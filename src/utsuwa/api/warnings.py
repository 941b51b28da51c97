"""`/1.0/warnings`."""

from __future__ import annotations

import msgspec

from utsuwa.api.http import Empty, Request, Result, Route, Sync
from utsuwa.core.urls import object_url
from utsuwa.wire.edits import replace
from utsuwa.wire.warnings import Warning, WarningPut


async def list_warnings(request: Request) -> Result:
    project = request.project if request.query.get("project") else None
    if project is not None:
        await request.services.projects.check(project)
    records = await request.services.warnings.list(project)
    wanted = request.filter
    if wanted is not None:
        records = [record for record in records if wanted.matches(msgspec.to_builtins(record))]
    if request.recursion:
        return Sync(records)
    return Sync([object_url("warnings", record.uuid) for record in records])


async def get_warning(request: Request) -> Result:
    shown = await request.services.warnings.get(request.params["uuid"])
    return Sync(shown, etag=WarningPut(status=shown.status))


async def edit_warning(request: Request) -> Result:
    body = await request.body(WarningPut)
    await request.services.warnings.edit(request.params["uuid"], replace(body), request.if_match)
    return Empty()


async def delete_warning(request: Request) -> Result:
    await request.services.warnings.delete(request.params["uuid"])
    return Empty()


_ONE = "/1.0/warnings/{uuid}"

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/1.0/warnings",
        list_warnings,
        "List warnings",
        list[str] | list[Warning],
        description="Those of one project with ?project=, otherwise all.",
    ),
    Route("GET", _ONE, get_warning, "Show a warning", Warning),
    Route("PUT", _ONE, edit_warning, "Acknowledge a warning, or make it new again", Empty, WarningPut),
    Route("PATCH", _ONE, edit_warning, "The same as PUT", Empty, WarningPut),
    Route("DELETE", _ONE, delete_warning, "Delete a warning"),
)
