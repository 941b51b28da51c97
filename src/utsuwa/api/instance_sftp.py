"""`/1.0/instances/{name}/sftp`: the files of an instance by SFTP, which `lxc file mount` uses."""

from __future__ import annotations

from utsuwa.api.http import Raw, Request, Result, Route, about
from utsuwa.api.upgrade import UpgradedStream
from utsuwa.core.entitlements import Entitlement, Entity


async def connect_sftp(request: Request) -> Result:
    files = request.services.files
    await files.check(request.instance)
    stream = UpgradedStream(request, "sftp")
    await stream.open()
    await files.serve_sftp(request.instance, stream)
    return Raw(stream.response)


ROUTES: tuple[Route, ...] = about(
    Entity.INSTANCE,
    Route(
        "GET",
        "/1.0/instances/{name}/sftp",
        connect_sftp,
        "Connect to its files by SFTP",
        Raw,
        entitlement=Entitlement.CAN_CONNECT_SFTP,
        description="With the headers `Connection: Upgrade` and `Upgrade: sftp`; the connection then carries "
        "the SFTP protocol without SSH.",
    ),
)
