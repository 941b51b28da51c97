"""The table of routes, used for requests, the API's description, and tests."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from aiohttp import web

from utsuwa.api import (
    certificates,
    cluster,
    debug,
    events,
    images,
    instance_exec,
    instance_files,
    instance_metadata,
    instance_sftp,
    instance_snapshots,
    instances,
    internal,
    metadata,
    metrics,
    networks,
    nothing_yet,
    operations,
    profiles,
    projects,
    server,
    storage_pools,
    storage_volume_snapshots,
    storage_volumes,
    warnings,
)
from utsuwa.api import (
    web as web_page,
)
from utsuwa.api.http import Raw, Request, Result, Route, Sync
from utsuwa.api.lxd_paths import PATHS
from utsuwa.api.openapi import describe
from utsuwa.core.errors import NotSupportedYet
from utsuwa.security.authorization import Access
from utsuwa.wire.codec import encode

_MODULES = (
    server,
    certificates,
    projects,
    profiles,
    storage_pools,
    storage_volume_snapshots,
    storage_volumes,
    images,
    instances,
    instance_exec,
    instance_files,
    instance_metadata,
    instance_sftp,
    instance_snapshots,
    networks,
    metadata,
    metrics,
    operations,
    events,
    warnings,
    nothing_yet,
    cluster,
    web_page,
    internal,
    debug,
)

_INSTANCES = "/1.0/instances"


async def _get_description(request: Request) -> Result:
    """Return it without envelope, as expected by tools for OpenAPI."""
    return Raw(web.Response(body=encode(description()), content_type="application/json"))


async def _get_enveloped_description(request: Request) -> Result:
    return Sync(description())


_DESCRIPTION = (
    Route("GET", "/openapi.json", _get_description, "Describe the API", Raw, access=Access.PUBLIC),
    Route(
        "GET",
        "/1.0/metadata/openapi",
        _get_enveloped_description,
        "Describe the API",
        dict[str, Any],
        access=Access.PUBLIC,
        description="The same as /openapi.json in the usual envelope.",
    ),
)


@cache
def description() -> dict[str, Any]:
    """Return the OpenAPI description of the supported routes."""
    return describe(served())


_LATER = {
    "backups": "Backups are not supported yet: take a snapshot, or copy the instance or volume",
    "cluster": "Clusters are not supported: several hosts can share a PostgreSQL database instead",
    "forwards": "Network forwards are not supported yet",
    "network-acls": "Network ACLs are not supported yet",
    "network-zones": "Network zones are not supported yet: each network has DNS for its instances",
    "peers": "Network peers are not supported: they connect networks of the type ovn",
}
"""What is said about the paths that have one of these parts."""


async def _not_yet(request: Request) -> Result:
    shape = request.route.path.split("/")
    for part, reason in _LATER.items():
        if part in shape:
            raise NotSupportedYet(reason)
    raise NotSupportedYet(
        f"{request.raw.method} {request.raw.rel_url.raw_path} is not supported by this version of Utsuwa"
    )


def served() -> tuple[Route, ...]:
    """All supported routes, including `/1.0/containers`."""
    own = [route for module in _MODULES for route in module.ROUTES]
    return (*with_containers(own), *_DESCRIPTION)


def with_containers(routes: Iterable[Route]) -> Iterable[Route]:
    """Return the routes, repeating those of instances below `/1.0/containers`."""
    for route in routes:
        yield route
        if route.path.startswith(_INSTANCES):
            yield route.for_containers()


def not_served(routes: Iterable[Route]) -> tuple[Route, ...]:
    """Return LXD's methods that are not in `routes`, which return 501."""
    have = {(route.method, _shape(route.path)) for route in routes}
    missing = [
        Route(method, path, _not_yet, "Not in this version", Raw)
        for path, methods in PATHS
        for method in methods.split()
    ]
    return tuple(r for r in with_containers(missing) if (r.method, _shape(r.path)) not in have)


def all_routes() -> tuple[Route, ...]:
    """All routes of a daemon."""
    routes = served()
    return routes + not_served(routes)


def _shape(path: str) -> str:
    """Return the path without parameter names, which differ between the tables."""
    return "/".join("{}" if segment.startswith("{") else segment for segment in path.split("/"))
