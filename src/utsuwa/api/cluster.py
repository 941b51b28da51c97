"""`/1.0/cluster`: reports that the server is not clustered."""

from __future__ import annotations

from typing import Any

import msgspec

from utsuwa.api.http import Request, Result, Route, Sync


class Cluster(msgspec.Struct, kw_only=True):
    """Whether there is a cluster."""

    server_name: str = ""
    enabled: bool = False
    member_config: list[dict[str, Any]] = []


async def get_cluster(request: Request) -> Result:
    return Sync(Cluster(), etag=Cluster())


ROUTES: tuple[Route, ...] = (Route("GET", "/1.0/cluster", get_cluster, "Show the cluster", Cluster),)
