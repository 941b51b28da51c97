"""`/` and `/1.0`: information on the server, and its config."""

from __future__ import annotations

import msgspec

from utsuwa.api.extensions import EXTENSIONS
from utsuwa.api.http import Empty, Request, Result, Route, Sync
from utsuwa.security.authorization import Access
from utsuwa.wire.edits import Change, merge, replace
from utsuwa.wire.resources import Resources
from utsuwa.wire.server import Server, ServerPut, UntrustedServer

_AUTH_METHODS = ["tls"]
_INCUS = "Incus "
"""How the User-Agent of Incus's clients begins. They cannot read a config with other values than text."""


async def list_versions(request: Request) -> Result:
    return Sync(["/1.0"])


async def get_server(request: Request) -> Result:
    if not request.caller.trusted:
        return Sync(
            UntrustedServer(
                api_extensions=EXTENSIONS,
                api_status="stable",
                api_version="1.0",
                auth="untrusted",
                public=False,
                auth_methods=_AUTH_METHODS,
            )
        )
    config = request.services.server.get()
    if _is_incus(request):
        config = {key: "true" if value is True else value for key, value in config.items()}
    environment = await request.services.daemon.environment()
    server = Server(
        api_extensions=EXTENSIONS,
        api_status="stable",
        api_version="1.0",
        auth="trusted",
        public=False,
        auth_methods=_AUTH_METHODS,
        config={} if request.scope.restricted else config,
        # Clients expect the requested project here, even if it does not exist.
        environment=msgspec.structs.replace(environment, project=request.project),
    )
    return Sync(server, etag=request.services.server.editable())


async def replace_config(request: Request) -> Result:
    return await _edit(request, replace(await _body(request)))


async def patch_config(request: Request) -> Result:
    return await _edit(request, merge(await _body(request)))


async def _edit(request: Request, change: Change[ServerPut]) -> Result:
    await request.services.server.edit(change, request.if_match)
    request.services.events.publish_lifecycle("config-updated", "/1.0")
    return Empty()


async def _body(request: Request) -> ServerPut:
    """Convert numbers to strings, as LXD does; True is kept, as it is shown for secrets and sent back."""
    body = await request.body(ServerPut)
    kept: set[str] = set()
    if _is_incus(request):
        kept = {key for key, value in request.services.server.get().items() if value is True}
    return ServerPut(
        config={
            key: True if value is True or (value == "true" and key in kept) else _text(value)
            for key, value in body.config.items()
        }
    )


def _is_incus(request: Request) -> bool:
    return request.raw.headers.get("User-Agent", "").startswith(_INCUS)


def _text(value: str | int | float | bool | None) -> str:
    match value:
        case None:
            return ""
        case False:
            return "false"
        case _:
            return str(value)


async def get_resources(request: Request) -> Result:
    return Sync(await request.services.daemon.resources())


ROUTES: tuple[Route, ...] = (
    Route("GET", "/", list_versions, "List the API's versions", list[str], access=Access.PUBLIC),
    Route(
        "GET",
        "/1.0",
        get_server,
        "Show the server",
        reply=Server | UntrustedServer,
        access=Access.PUBLIC,
        description="Untrusted callers see no config and no environment.",
    ),
    Route("PUT", "/1.0", replace_config, "Replace the server's config", Empty, ServerPut),
    Route("PATCH", "/1.0", patch_config, "Change some keys of the server's config", Empty, ServerPut),
    Route("GET", "/1.0/resources", get_resources, "Show the host's hardware", Resources),
)
