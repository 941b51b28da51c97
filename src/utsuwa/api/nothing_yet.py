"""What is not supported yet, as a server shows it that has none: empty lists, and nothing under any name.

Clients look at these lists by themselves, to show an instance or before they delete something. Creating one
of these objects returns 501.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from utsuwa.api.http import Empty, Handler, Raw, Request, Result, Route, Sync, about
from utsuwa.api.storage_volumes import ONE as VOLUME
from utsuwa.api.storage_volumes import custom_volume
from utsuwa.core.entitlements import Entity
from utsuwa.core.errors import InvalidRequest, NotFound

Find = Callable[[Request], Awaitable[object]]
"""Raises NotFound if what the objects would belong to does not exist."""

_INSTANCE = "/1.0/instances/{name}"
_NETWORK = "/1.0/networks/{networkName}"
_ACLS, _ZONES = "/1.0/network-acls", "/1.0/network-zones"


async def _project(request: Request) -> None:
    await request.services.projects.check(request.project)


async def _instance(request: Request) -> None:
    await request.services.instances.find(request.instance)


async def _network(request: Request) -> None:
    await request.services.networks.reader.managed(request.project, request.params["networkName"])


async def _no_peers(request: Request) -> None:
    await _network(request)
    raise InvalidRequest("Networks of the type bridge cannot have peers")


async def _no_cluster(request: Request) -> None:
    raise InvalidRequest("This server is not clustered")


def _none(find: Find) -> Handler:
    async def show(request: Request) -> Result:
        request.refuse_filter()
        await find(request)
        return Sync([])

    return show


def _missing(what: str, find: Find) -> Handler:
    async def show(request: Request) -> Result:
        await find(request)
        raise NotFound(f"{what} not found")

    return show


def _routes(path: str, name: str, plural: str, singular: str, find: Find = _project) -> tuple[Route, ...]:
    """Return the list at `path`, and showing and deleting one of it, by its `name` in the path."""
    one, missing = f"{path}/{{{name}}}", _missing(singular, find)
    return (
        Route("GET", path, _none(find), f"List {plural}", reply=list[str] | list[dict[str, Any]]),
        Route("GET", one, missing, f"Show one of the {plural}", dict[str, Any]),
        Route("DELETE", one, missing, f"Delete one of the {plural}", Empty),
    )


def _file(path: str, what: str, singular: str, find: Find = _project) -> Route:
    return Route("GET", path, _missing(singular, find), what, Raw)


_no_zone = _missing("Network zone", _project)

ROUTES: tuple[Route, ...] = (
    *_routes(_ACLS, "name", "network ACLs", "Network ACL"),
    _file(f"{_ACLS}/{{name}}/log", "Show the log of a network ACL", "Network ACL"),
    *_routes(_ZONES, "name", "network zones", "Network zone"),
    Route("GET", f"{_ZONES}/{{zone}}/records", _no_zone, "List the records of a network zone", list[str]),
    Route("GET", f"{_ZONES}/{{zone}}/records/{{name}}", _no_zone, "Show a record", dict[str, Any]),
    Route("DELETE", f"{_ZONES}/{{zone}}/records/{{name}}", _no_zone, "Delete a record", Empty),
    *about(
        Entity.INSTANCE,
        *_routes(f"{_INSTANCE}/backups", "backup", "backups of an instance", "Instance backup", _instance),
        _file(
            f"{_INSTANCE}/backups/{{backup}}/export",
            "Download a backup of an instance",
            "Instance backup",
            _instance,
        ),
    ),
    *about(
        Entity.STORAGE_VOLUME,
        *_routes(f"{VOLUME}/backups", "backup", "backups of a volume", "Volume backup", custom_volume),
        _file(
            f"{VOLUME}/backups/{{backup}}/export",
            "Download a backup of a volume",
            "Volume backup",
            custom_volume,
        ),
    ),
    *about(
        Entity.NETWORK,
        *_routes(f"{_NETWORK}/forwards", "listenAddress", "network forwards", "Network forward", _network),
        *_routes(f"{_NETWORK}/peers", "peerName", "network peers", "Network peer", _no_peers),
    ),
    *_routes("/1.0/cluster/groups", "name", "cluster groups", "Cluster group", _no_cluster),
    *_routes("/1.0/cluster/members", "name", "cluster members", "Cluster member", _no_cluster),
)
