"""One request from the wire to a handler and back, over a real connection."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import pytest
from aiohttp import web

from utsuwa.api import events as events_api
from utsuwa.api import operations as operations_api
from utsuwa.api.application import Application
from utsuwa.api.http import (
    MAX_BODY,
    Background,
    Created,
    Empty,
    Raw,
    Request,
    Result,
    Route,
    Sync,
    etag_of,
)
from utsuwa.api.services import Services
from utsuwa.core.entitlements import Entitlement
from utsuwa.core.errors import InUse, NotFound
from utsuwa.core.scope import EVERYTHING
from utsuwa.operations.events import EventHub, current_requestor
from utsuwa.operations.kinds import Kind
from utsuwa.operations.operations import Operation, Operations
from utsuwa.operations.shared import SharedOperations
from utsuwa.security.authorization import Access, Caller, tls_caller, unix_caller

ROOT = unix_caller(0, "root")
USER = unix_caller(1000, "user")
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
STRANGER = tls_caller(fingerprint="f" * 64, address="1.2.3.4:5", trusted=False)


class UndecidedMove:
    """Records of moves, of which there is one."""

    async def is_undecided(self, operation: str) -> bool:
        return operation == "undecided"


@dataclass
class Managers:
    """The part of Services that these tests need."""

    events: EventHub = field(default_factory=EventHub)
    operations: Operations = field(init=False)
    shared_operations: SharedOperations = field(init=False)

    def __post_init__(self) -> None:
        self.operations = Operations(self.events)
        lone = SimpleNamespace(engine=SimpleNamespace(shared=False))
        self.shared_operations = SharedOperations(cast(Any, lone))
        self.migration = UndecidedMove()


class Thing(msgspec.Struct, kw_only=True):
    name: str
    config: dict[str, str] = {}


async def show(request: Request) -> Result:
    return Sync(
        {"name": request.params["name"], "project": request.project, "deep": request.recursion}, "tag"
    )


async def make(request: Request) -> Result:
    thing = await request.body(Thing)
    return Created(f"/1.0/things/{thing.name}")


async def change(request: Request) -> Result:
    request.if_match("tag")
    await request.json()
    return Empty()


async def work(request: Request) -> Result:
    async def run(operation: Operation) -> None:
        await asyncio.Event().wait()

    return Background(
        request.services.operations.start(
            Kind("Working", (), Entitlement.CAN_EDIT, cancellable=True),
            request.project,
            run,
            websockets=("0",),
        )
    )


async def fail(request: Request) -> Result:
    match request.params["how"]:
        case "missing":
            raise NotFound("No such thing: make it first")
        case "used":
            raise InUse("It is in use")
        case "aiohttp":
            raise web.HTTPRequestEntityTooLarge(1, 2)
        case _:
            raise ZeroDivisionError("secret detail")


async def stream(request: Request) -> Result:
    response = web.StreamResponse()
    await response.prepare(request.raw)
    await response.write(b"some")
    if request.flag("break"):
        raise NotFound("too late")
    await response.write_eof()
    return Raw(response)


async def who(request: Request) -> Result:
    return Sync([request.requestor, current_requestor(), request.all_projects, request.containers_api])


ROUTES = (
    Route("GET", "/1.0/things/{name}", show, "Show", access=Access.PUBLIC),
    Route("PUT", "/1.0/things/{name}", change, "Change"),
    Route("POST", "/1.0/things", make, "Make"),
    Route("POST", "/1.0/work", work, "Work"),
    Route("GET", "/1.0/fail/{how}", fail, "Fail"),
    Route("GET", "/1.0/stream", stream, "Stream"),
    Route("GET", "/1.0/who", who, "Who"),
    Route("GET", "/internal/who", who, "Who", access=Access.ROOT),
    *operations_api.ROUTES,
    *events_api.ROUTES,
)


@dataclass
class Server:
    client: aiohttp.ClientSession
    managers: Managers
    caller: Caller = ROOT

    async def ask(self, method: str, url: str, **more: Any) -> tuple[int, Any, Any]:
        async with self.client.request(method, f"http://utsuwa{url}", **more) as reply:
            return reply.status, json.loads(await reply.read()), reply.headers


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    managers = Managers()
    path = str(tmp_path / "s")
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as client:
        found = Server(client, managers)
        application = Application(cast(Services, managers), ROUTES, lambda transport: found.caller)
        protocols = application.server()
        listening = await asyncio.get_running_loop().create_unix_server(protocols, path)
        yield found
        listening.close()
        managers.events.close()
        await managers.operations.stop()
        protocols.pre_shutdown()
        await protocols.shutdown(1)


async def test_a_sync_reply_has_its_etag(server: Server) -> None:
    status, body, headers = await server.ask("GET", "/1.0/things/a%20b?project=p&recursion=2")
    assert status == 200
    assert body["metadata"] == {"name": "a b", "project": "p", "deep": 2}
    assert body["type"] == "sync"
    assert headers["Content-Type"] == "application/json"
    assert headers["ETag"] == f'"{etag_of("tag")}"'


async def test_the_default_project_needs_no_naming(server: Server) -> None:
    assert (await server.ask("GET", "/1.0/things/x"))[1]["metadata"]["project"] == "default"


@pytest.mark.parametrize(
    "query", ["recursion=3", "recursion=x", "recursion=-1", "project=a_b", "project=a%2Fb"]
)
async def test_bad_queries_are_refused(server: Server, query: str) -> None:
    status, body, _ = await server.ask("GET", f"/1.0/things/x?{query}")
    assert (status, body["error_code"], body["type"]) == (400, 400, "error")


async def test_invalid_recursion_is_rejected_by_routes_that_ignore_it(server: Server) -> None:
    assert (await server.ask("GET", "/1.0/who?recursion=7"))[0] == 400


async def test_created_reply_has_location(server: Server) -> None:
    status, body, headers = await server.ask("POST", "/1.0/things", json={"name": "new", "config": None})
    assert (status, headers["Location"]) == (201, "/1.0/things/new")
    assert (body["status_code"], body["metadata"]) == (200, None)


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "not valid JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"name":3}', 400, "'name'"),
        (b"{}", 400, "name"),
        (b'{"a":' * 5000, 400, "nested deeper"),
        (b" " * (MAX_BODY + 1), 413, "larger than"),
    ],
)
async def test_bad_bodies_are_refused(server: Server, data: bytes, status: int, words: str) -> None:
    got, body, _ = await server.ask("POST", "/1.0/things", data=io.BytesIO(data))
    assert got == status
    assert words in body["error"]


async def test_a_large_body_is_refused_without_its_length_too(server: Server) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 2**16 + 2):
            yield b" " * 2**16

    assert (await server.ask("POST", "/1.0/things", data=chunks()))[0] == 413


async def test_if_match_guards_a_change(server: Server) -> None:
    url = "/1.0/things/x"
    tag = etag_of("tag")
    for good in (tag, f'"{tag}"', f'W/"{tag}"', "*", f'"other", "{tag}"'):
        assert (await server.ask("PUT", url, json={}, headers={"If-Match": good}))[0] == 200
    assert (await server.ask("PUT", url, json={}))[1]["metadata"] == {}
    status, body, _ = await server.ask("PUT", url, json={}, headers={"If-Match": "other"})
    assert (status, body["error_key"]) == (412, "precondition-failed")


async def test_errors_of_ours_keep_their_status_and_key(server: Server) -> None:
    status, body, _ = await server.ask("GET", "/1.0/fail/missing")
    assert (status, body["error"], body["error_key"]) == (404, "No such thing: make it first", "not-found")
    status, body, _ = await server.ask("GET", "/1.0/fail/used")
    assert (status, body["error_key"]) == (400, "in-use")
    assert (await server.ask("GET", "/1.0/fail/aiohttp"))[0] == 413


async def test_other_errors_are_hidden(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    status, body, _ = await server.ask("GET", "/1.0/fail/badly")
    assert status == 500
    assert "secret" not in json.dumps(body)
    assert "secret detail" in caplog.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /1.0/who HTTP/1.1\r\nHost: a\r\nX-Large: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET /1.0/who?filter=" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET /1.0/who HTTP/1.1\r\nHost: a\r\nX-Odd: \x07\r\n\r\n", 400),
        (b"GET /1.0/who HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n", 400),
        (b"GET /1.0/who HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400),
        (b"GET /1.0/who HTTP/7.7\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
async def test_malformed_http_gets_an_error_envelope(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes, status: int
) -> None:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    writer.write(sent)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.split()[1] == b"%d" % status
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["error_code"] == status
    assert caplog.text == ""


@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n"])
async def test_a_client_disconnecting_within_its_body_is_not_an_error(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, more: bytes
) -> None:
    _, writer = await asyncio.open_unix_connection(tmp_path / "s")
    writer.write(b"POST /1.0/things HTTP/1.1\r\nHost: a\r\n" + more + b"Content-Length: 9\r\n\r\n{")
    await server.ask("GET", "/1.0/who")
    writer.close()
    for _ in range(3):
        await server.ask("GET", "/1.0/who")
    assert caplog.text == ""


async def test_unknown_paths_and_methods(server: Server) -> None:
    assert (await server.ask("GET", "/1.0/nope"))[1]["error"] == "not found"
    status, body, _ = await server.ask("DELETE", "/1.0/things/x")
    assert (status, body["error_key"]) == (405, "method-not-allowed")


@pytest.mark.parametrize(
    ("caller", "public", "trusted", "root"),
    [(ROOT, 200, 200, 200), (USER, 200, 200, 403), (STRANGER, 200, 403, 403)],
)
async def test_access_is_judged_before_the_handler(
    server: Server, caller: Caller, public: int, trusted: int, root: int
) -> None:
    server.caller = caller
    assert (await server.ask("GET", "/1.0/things/x"))[0] == public
    assert (await server.ask("GET", "/1.0/who"))[0] == trusted
    assert (await server.ask("GET", "/internal/who"))[0] == root


async def test_handlers_know_the_caller(server: Server) -> None:
    server.caller = USER
    body = (await server.ask("GET", "/1.0/who?all-projects=true"))[1]
    shown = {"username": "user", "protocol": "unix", "address": "@"}
    assert body["metadata"] == [shown, shown, True, False]
    assert (await server.ask("GET", "/1.0/who?all-projects=true&project=x"))[0] == 400


async def test_client_that_waits_with_its_body_gets_100_continue(server: Server) -> None:
    status, _, _ = await server.ask("POST", "/1.0/things", json={"name": "x"}, expect100=True)
    assert status == 201


async def test_a_stream_that_breaks_is_cut(server: Server) -> None:
    async with server.client.get("http://utsuwa/1.0/stream") as reply:
        assert await reply.read() == b"some"
    with pytest.raises(aiohttp.ClientError):
        async with server.client.get("http://utsuwa/1.0/stream?break=1") as reply:
            await reply.read()


# ---- operations and events over the wire


async def started(server: Server) -> dict[str, Any]:
    status, body, headers = await server.ask("POST", "/1.0/work")
    assert (status, body["status_code"], body["type"]) == (202, 100, "async")
    assert headers["Location"] == body["operation"] == f"/1.0/operations/{body['metadata']['id']}"
    assert body["metadata"]["status"] == "Running"
    operation: dict[str, Any] = body["metadata"]
    return operation


async def test_operations_are_listed_by_status(server: Server) -> None:
    operation = await started(server)
    url = f"/1.0/operations/{operation['id']}"
    assert (await server.ask("GET", "/1.0/operations"))[1]["metadata"] == {"running": [url]}
    (shown,) = (await server.ask("GET", "/1.0/operations?recursion=1"))[1]["metadata"]["running"]
    assert shown["id"] == operation["id"]
    assert (await server.ask("GET", "/1.0/operations?project=other"))[1]["metadata"] == {}
    assert (await server.ask("GET", "/1.0/operations?all-projects=true"))[1]["metadata"]["running"]
    assert (await server.ask("GET", f"/1.0/operations/{operation['id']}x"))[1][
        "error"
    ] == "Operation not found"


async def test_cancel_and_wait(server: Server) -> None:
    url = f"/1.0/operations/{(await started(server))['id']}"
    assert (await server.ask("GET", f"{url}/wait?timeout=0"))[1]["metadata"]["status"] == "Running"
    assert (await server.ask("GET", f"{url}/wait?timeout=soon"))[0] == 400
    assert (await server.ask("DELETE", url))[0] == 200
    ended = (await server.ask("GET", f"{url}/wait"))[1]["metadata"]
    assert (ended["status"], ended["status_code"]) == ("Cancelled", 401)
    assert (await server.ask("DELETE", url))[0] == 400


async def test_strangers_wait_and_connect_by_secret_only(server: Server) -> None:
    operation = await started(server)
    url = f"/1.0/operations/{operation['id']}"
    secret = operation["metadata"]["fds"]["0"]
    server.caller = STRANGER
    for path in (f"{url}/wait", f"{url}/wait?secret=no", "/1.0/operations/nope/wait", f"{url}/websocket"):
        assert (await server.ask("GET", path))[0] == 403
    assert (await server.ask("GET", f"{url}/wait?timeout=0&secret={secret}"))[0] == 200
    async with server.client.ws_connect(f"http://utsuwa{url}/websocket?secret={secret}") as socket:
        assert not socket.closed
        server.managers.operations.get(EVERYTHING, operation["id"]).cancel()
    status, _, _ = await server.ask("GET", f"{url}/websocket?secret={secret}")
    assert status == 400  # a plain GET is no websocket, whatever its secret


async def test_the_other_side_of_a_move_learns_that_it_is_settled(server: Server) -> None:
    server.caller = STRANGER
    for operation, expected in (("undecided", 503), ("settled", 404)):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await server.client.ws_connect(f"http://utsuwa/1.0/operations/{operation}/websocket?secret=s")
        assert refused.value.status == expected


async def test_a_websocket_needs_its_secret_and_a_websocket(server: Server) -> None:
    operation = await started(server)
    url = f"/1.0/operations/{operation['id']}/websocket"
    secret = operation["metadata"]["fds"]["0"]
    assert (await server.ask("GET", url))[0] == 400
    assert (await server.ask("GET", f"{url}?secret={secret}"))[0] == 400
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await server.client.ws_connect(f"http://utsuwa{url}?secret=wrong")
    assert refused.value.status == 403
    async with server.client.ws_connect(f"http://utsuwa{url}?secret={secret}") as socket:
        found = server.managers.operations.get(EVERYTHING, operation["id"])
        other = await found.websocket("0", 1)
        await other.send_bytes(b"hello")
        assert (await socket.receive()).data == b"hello"
        found.cancel()
        assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


async def test_a_websocket_with_a_heartbeat_is_lost_when_its_client_does_not_answer(server: Server) -> None:
    """As one whose host has lost its power: nothing tells that."""

    async def wait(_: Operation) -> None:
        await asyncio.Event().wait()

    kind = Kind("Waiting", (), Entitlement.CAN_EDIT, heartbeat=0.1)
    found = server.managers.operations.start(kind, "default", wait, websockets=("0",))
    url = f"http://utsuwa{found.url}/websocket?secret={found.secrets['0']}"
    async with server.client.ws_connect(url, autoping=False):
        other = await found.websocket("0", 10)
        assert await asyncio.wait_for(other.read(), 30) is None


@pytest.mark.parametrize("how", ["cut", "close"])
async def test_a_websocket_that_has_ended_leaves_nothing_to_the_garbage_collector(
    server: Server, how: str
) -> None:
    """Each may have a megabyte in its buffers; the exceptions of its end must not keep it."""
    operation = await started(server)
    found = server.managers.operations.get(EVERYTHING, operation["id"])
    secret = operation["metadata"]["fds"]["0"]
    url = f"http://utsuwa{found.url}/websocket?secret={secret}"
    soon = aiohttp.ClientWSTimeout(ws_close=0.1)  # the client waits so long for an answer to its closing
    gc.collect()
    gc.disable()
    try:
        async with server.client.ws_connect(url, timeout=soon) as socket:
            other = weakref.ref(await found.websocket("0", 1))
            await socket.send_bytes(b"x" * 100_000)
            if how == "cut":
                assert socket._conn is not None
                assert socket._conn.transport is not None
                socket._conn.transport.abort()
        found.cancel()
        await until(lambda: other() is None)
    finally:
        gc.enable()


async def test_websocket_with_much_data_does_not_block_other_tasks(server: Server) -> None:
    """Else it would not learn that its client has gone, and write on to a connection that is closed."""
    operation = await started(server)
    found = server.managers.operations.get(EVERYTHING, operation["id"])
    secret = operation["metadata"]["fds"]["0"]
    async with server.client.ws_connect(f"http://utsuwa{found.url}/websocket?secret={secret}"):
        socket = await found.websocket("0", 1)
        rounds = 0

        async def count() -> None:
            nonlocal rounds
            while True:
                rounds += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        for _ in range(50):
            await socket.send_bytes(b"x")
        counting.cancel()
        assert rounds >= 49
        found.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_events_reach_listeners(server: Server) -> None:
    hub = server.managers.events
    async with server.client.ws_connect("http://utsuwa/1.0/events?type=lifecycle") as socket:
        await until(lambda: hub.listened_to)
        hub.publish_logging("info", "not wanted")
        hub.publish_lifecycle("thing-made", "/1.0/things/x", "default")
        assert json.loads((await socket.receive()).data)["metadata"]["action"] == "thing-made"
    await until(lambda: not hub.listened_to)


async def test_server_closes_event_listeners_at_shutdown(server: Server) -> None:
    hub = server.managers.events
    async with server.client.ws_connect("http://utsuwa/1.0/events") as socket:
        await until(lambda: hub.listened_to)
        hub.close()
        assert (await socket.receive()).data == aiohttp.WSCloseCode.GOING_AWAY


@pytest.mark.parametrize(
    "headers",
    [
        b"Upgrade: \xe6\x80|",
        UPGRADE + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \xe6\x80",
        UPGRADE + b"Sec-WebSocket-Version: \xe6\r\nSec-WebSocket-Key: x",
    ],
)
async def test_headers_that_are_no_text_make_no_websocket(
    server: Server, tmp_path: Path, headers: bytes
) -> None:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    writer.write(b"GET /1.0/events HTTP/1.1\r\nHost: utsuwa\r\n" + headers + b"\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_events_need_a_known_type_and_a_websocket(server: Server) -> None:
    status, body, _ = await server.ask("GET", "/1.0/events?type=lifecycle,weather")
    assert status == 400
    assert "'weather'" in body["error"]
    assert (await server.ask("GET", "/1.0/events"))[0] == 400
    assert not server.managers.events.listened_to


async def test_only_the_callers_projects_are_heard(server: Server) -> None:
    hub = server.managers.events
    server.caller = tls_caller(
        fingerprint="a" * 64, address="1.2.3.4:5", trusted=True, projects=frozenset({"mine"})
    )
    async with server.client.ws_connect("http://utsuwa/1.0/events?all-projects=true") as socket:
        await until(lambda: hub.listened_to)
        hub.publish_logging("info", "the daemon's own")
        hub.publish_lifecycle("a", "/1", "theirs")
        hub.publish_lifecycle("b", "/2", "mine")
        assert json.loads((await socket.receive()).data)["metadata"]["action"] == "b"
