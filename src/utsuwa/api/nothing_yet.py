"""Network ACLs and zones, warnings: not supported yet, so their lists are empty."""

from __future__ import annotations

from typing import Any

from utsuwa.api.http import Handler, Request, Result, Route, Sync
from utsuwa.core.errors import NotFound


async def list_none(request: Request) -> Result:
    request.refuse_filter()
    await request.services.projects.check(request.project)
    return Sync([])


def _missing(what: str) -> Handler:
    async def show(request: Request) -> Result:
        raise NotFound(f"{what} not found")

    return show


def _routes(path: str, plural: str, singular: str, key: str = "name") -> tuple[Route, ...]:
    return (
        Route("GET", path, list_none, f"List {plural}", reply=list[str] | list[dict[str, Any]]),
        Route("GET", f"{path}/{{{key}}}", _missing(singular), f"Show one of the {plural}", dict[str, Any]),
    )


ROUTES: tuple[Route, ...] = (
    *_routes("/1.0/network-acls", "network ACLs", "Network ACL"),
    *_routes("/1.0/network-zones", "network zones", "Network zone"),
    *_routes("/1.0/warnings", "warnings", "Warning", "uuid"),
)
