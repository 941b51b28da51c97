"""What web pages of other sites may do with their reader's rights: nothing, on any route (CVE-2025-54286)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import aiohttp
import pytest

from utsuwa.api.application import Application
from utsuwa.api.http import Empty, Request, Result, Route
from utsuwa.api.routes import all_routes
from utsuwa.api.services import Services
from utsuwa.core.config_keys import parse_bool
from utsuwa.security.authorization import Caller, tls_caller, unix_caller

ROOT = unix_caller(0, "root")
STRANGER = tls_caller(fingerprint="", address="1.2.3.4:5", trusted=False)
HOST = {"Host": "box.example:8443"}
OWN = {"Origin": "https://box.example:8443", "Sec-Fetch-Site": "same-origin"}
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
FOREIGN: tuple[Mapping[str, str], ...] = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "https://box.example"},  # another port
    {"Origin": "https://box.example:8443.evil.example"},
    {"Origin": "https://box.example:8443@evil.example"},
    {"Origin": "moz-extension://box.example:8443"},
    {"Origin": "file://"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "anything"},
    {"Origin": "https://box.example:8443", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
)


@dataclass
class Config:
    """The part of ServerConfig that is asked."""

    values: dict[str, str] = field(default_factory=dict)

    def value(self, key: str) -> str:
        return self.values.get(key, "")

    def flag(self, key: str) -> bool:
        return parse_bool(self.value(key))


@dataclass
class Server:
    client: aiohttp.ClientSession
    config: Config = field(default_factory=Config)
    caller: Caller = ROOT
    done: list[str] = field(default_factory=list)

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        async with self.client.request(
            method, f"http://box{path}", headers={**HOST, **headers}, data=data
        ) as reply:
            return reply.status, await reply.read(), reply.headers


def recorded(server: Server, route: Route) -> Route:
    """The route with a handler that only notes that it was reached, and reads a JSON body."""

    async def handler(request: Request) -> Result:
        server.done.append(f"{route.method} {route.path}")
        if route.body is not None:
            await request.json()
        return Empty()

    return Route(route.method, route.path, handler, route.summary, body=route.body, access=route.access)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    path = str(tmp_path / "s")
    connector = aiohttp.UnixConnector(path)
    async with aiohttp.ClientSession(connector=connector, skip_auto_headers=["Content-Type"]) as client:
        found = Server(client)
        services = cast(
            Services, SimpleNamespace(server=found.config, operations=SimpleNamespace(refuses_new=False))
        )
        routes = [recorded(found, route) for route in all_routes()]
        application = Application(services, routes, lambda transport: found.caller)
        protocols = application.server()
        listening = await asyncio.get_running_loop().create_unix_server(protocols, path)
        yield found
        listening.close()
        protocols.pre_shutdown()
        await protocols.shutdown(1)


def concrete(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "x", path)


async def test_no_route_does_anything_for_a_foreign_page(server: Server) -> None:
    """Every method of every path, and every websocket, gives 403 with all of a root's rights."""
    routes = all_routes()
    assert {"/1.0/events", "/1.0/operations/{id}/websocket"} <= {route.path for route in routes}
    for route in routes:
        path = concrete(route.path)
        for page in (FOREIGN[0], FOREIGN[1], FOREIGN[8]):
            text = {**page, "Content-Type": "text/plain"}
            assert (await server.ask(route.method, path, text, b"{}"))[0] == 403, (route, page)
            if route.method == "GET":
                assert (await server.ask("GET", path, {**page, **UPGRADE}))[0] == 403, (route, page)
    assert server.done == []


@pytest.mark.parametrize("page", FOREIGN, ids=str)
async def test_unknown_origins_are_cross_site(server: Server, page: Mapping[str, str]) -> None:
    status, body, headers = await server.ask("GET", "/1.0/instances", page)
    assert status == 403
    assert "core.https_allowed_origin" in json.loads(body)["error"]
    assert not [name for name in headers if name.lower().startswith("access-control-")]
    assert server.done == []


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
        OWN,
        {"Origin": "http://box.example:8443"},  # no TLS here, and a proxy may add it
        {"Origin": "HTTPS://BOX.example:8443"},
        {"Origin": "wss://box.example:8443"},  # pylxd's websockets over HTTPS
        {
            "Origin": "ws+unix://localhost",
            "Host": "localhost:None",
        },  # and over the unix socket, to the letter
        {"Origin": "https://box.example", "Host": "box.example"},
        {"Origin": "http://[::1]", "Host": "[::1]:80"},
    ],
    ids=str,
)
async def test_own_pages_and_programs_are_served(server: Server, page: Mapping[str, str]) -> None:
    assert (await server.ask("GET", "/1.0/instances", page))[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "text/json", "image/png"])
async def test_bodies_of_other_content_types_are_rejected(server: Server, kind: str) -> None:
    """A form can send text/plain across sites without asking first."""
    for route in all_routes():
        if route.body is None:
            continue
        sent = {"Content-Type": kind}
        status, body, _ = await server.ask(route.method, concrete(route.path), sent, b"{}")
        assert (status, "application/json" in json.loads(body)["error"]) == (415, True), route


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # Ansible, and whatever uses http.client
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "Application/JSON"}, 200),
        ({"Content-Type": "application/octet-stream"}, 200),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),  # curl -d
        ({"Content-Type": "application/x-www-form-urlencoded", **OWN}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Mode": "navigate"}, 415),
    ],
    ids=str,
)
async def test_bodies_of_known_clients_are_read(
    server: Server, headers: Mapping[str, str], status: int
) -> None:
    assert (await server.ask("POST", "/1.0/profiles", headers, b"{}"))[0] == status


async def test_allowed_origin_gets_access_and_cors_headers(server: Server) -> None:
    """The headers are those of LXD 5.0.2, on success and on errors."""
    server.config.values |= {
        "core.https_allowed_origin": "https://panel.example",
        "core.https_allowed_methods": "GET, PUT",
        "core.https_allowed_headers": "Content-Type",
        "core.https_allowed_credentials": "true",
    }
    wanted = {
        "Access-Control-Allow-Origin": "https://panel.example",
        "Access-Control-Allow-Methods": "GET, PUT",
        "Access-Control-Allow-Headers": "Content-Type",
        "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin",
    }
    page = {"Origin": "https://panel.example", "Sec-Fetch-Site": "cross-site"}
    for path, status in (("/1.0/instances", 200), ("/nowhere", 404)):
        got, _, headers = await server.ask("GET", path, page)
        assert got == status
        assert wanted.items() <= dict(headers).items()
    assert (await server.ask("GET", "/1.0/instances", {"Origin": "https://panel.example:444"}))[0] == 403
    assert (await server.ask("GET", "/1.0/instances", {"Sec-Fetch-Site": "cross-site"}))[0] == 403
    assert "Access-Control-Allow-Origin" not in (await server.ask("GET", "/1.0/instances", {}))[2]


async def test_any_site_may_not_act_for_a_trusted_client(server: Server) -> None:
    server.config.values["core.https_allowed_origin"] = "*"
    page = {"Origin": "https://evil.example"}
    assert (await server.ask("GET", "/1.0/instances", page))[0] == 403
    assert (await server.ask("OPTIONS", "/1.0/instances", page))[0] == 200
    server.caller = STRANGER
    status, _, headers = await server.ask("GET", "/1.0", page)
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, "*")
    server.caller = ROOT
    server.config.values["core.https_allowed_credentials"] = "true"
    assert (await server.ask("GET", "/1.0/instances", page))[0] == 200


@pytest.mark.parametrize("path", ["/1.0/instances", "/1.0/instances/one", "/nowhere"])
async def test_preflight_needs_no_certificate_and_reveals_nothing(server: Server, path: str) -> None:
    server.caller = STRANGER
    ask = {"Origin": "https://panel.example", "Access-Control-Request-Method": "PUT"}
    assert (await server.ask("OPTIONS", path, ask))[0] == 403
    server.config.values["core.https_allowed_origin"] = "https://panel.example"
    server.config.values["core.https_allowed_methods"] = "PUT"
    status, body, headers = await server.ask("OPTIONS", path, ask)
    assert (status, body, headers["Access-Control-Allow-Methods"]) == (200, b"", "PUT")
    assert (await server.ask("OPTIONS", path, {}))[:2] == (200, b"")
    assert server.done == []


async def test_a_stranger_is_still_a_stranger(server: Server) -> None:
    """A named origin is no more than its reader."""
    server.config.values["core.https_allowed_origin"] = "https://panel.example"
    server.caller = STRANGER
    page = {"Origin": "https://panel.example"}
    assert (await server.ask("GET", "/1.0/instances", page))[0] == 403
