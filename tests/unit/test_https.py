"""The HTTPS listener: addresses, moves while requests run, limits on strangers."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.support import tls
from tests.support.api import Reply
from tests.support.listener import hello, listening
from tests.support.open_warnings import OpenWarnings, no_retries
from tests.support.tls import Identity, client_context, connect, make_identity
from utsuwa.core.errors import InvalidConfig
from utsuwa.daemon import https
from utsuwa.daemon.https import API_ADDRESS, METRICS_ADDRESS, HttpsListener, parse_address
from utsuwa.daemon.tls_port import Limits
from utsuwa.security.client_certificate import parse_certificate
from utsuwa.security.tls import ServerContext
from utsuwa.security.trust_store import TrustStore

QUICK = Limits(handshake=0.3, first_request=0.4)
IDLE = Limits(first_request=0.4)
"""As quick, with clients that need not be so."""
SECONDS = 2.0
"""For the first request of a client on a busy machine, which takes a hundredth of that otherwise."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("https")


@pytest.fixture(scope="module")
def context(folder: Path) -> ServerContext:
    identity = make_identity(folder, "server")
    return ServerContext(identity.certificate_file, identity.key_file)


@pytest.fixture(scope="module")
def alice(folder: Path) -> Identity:
    return make_identity(folder, "alice")


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


async def get(address: str, **more: Any) -> Reply:
    return await asyncio.to_thread(tls.request, address, "GET", "/", **more)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.01)


async def closed(address: str) -> None:
    """Nothing accepts connections there (any more)."""
    host, _, port = address.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


# ---- addresses


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (":8443", ("", 8443)),
        ("[::]:8443", ("::", 8443)),
        ("[::1]", ("::1", 8443)),
        ("::1", ("::1", 8443)),
        ("::", ("::", 8443)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("10.0.0.1", ("10.0.0.1", 8443)),
        ("host.example", ("host.example", 8443)),
        (" host.example:1 ", ("host.example", 1)),
    ],
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(API_ADDRESS, text) == parsed


def test_port_for_metrics() -> None:
    assert parse_address(METRICS_ADDRESS, "[::1]") == ("::1", 9100)
    with pytest.raises(InvalidConfig, match=r"core\.metrics_address"):
        parse_address(METRICS_ADDRESS, "a:b")


@pytest.mark.parametrize(
    "text",
    [
        "a:b",
        "a:",
        "a:65536",
        "a:-1",
        "a:٣",
        "a: 1",
        "[::1",
        "[::1]x",
        "[::1]:",
        "b ad:1",
        "a/b:1",
        "a\0b:1",
        "x@y:1",
        "1:2:3",
    ],
)
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(InvalidConfig, match=r"core\.https_address"):
        parse_address(API_ADDRESS, text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        _, port = parse_address(API_ADDRESS, text)
    except InvalidConfig:
        return
    assert 0 <= port <= 65535


async def test_an_unknown_host_and_a_foreign_address_are_refused(context: ServerContext) -> None:
    async with listening(context) as listener:
        before = listener.address
        with pytest.raises(InvalidConfig, match="Cannot resolve"):
            await listener.listen("no-such-host.invalid:1")
        with pytest.raises(InvalidConfig, match="Cannot assign requested address"):
            await listener.listen("192.0.2.1:1")
        assert (await get(before)).status == 200


@pytest.mark.parametrize("text", [":{port}", "[::]:{port}"])
async def test_every_address_means_both_families(context: ServerContext, text: str) -> None:
    port = free_port()
    async with listening(context, address=text.format(port=port)):
        assert (await get(f"127.0.0.1:{port}")).status == 200
        assert (await get(f"[::1]:{port}")).status == 200


async def test_one_address_is_that_alone(context: ServerContext) -> None:
    port = free_port()
    async with listening(context, address=f"[::1]:{port}"):
        assert (await get(f"[::1]:{port}")).status == 200
        await closed(f"127.0.0.1:{port}")


# ---- moving


async def test_an_address_in_use_leaves_the_old_one(context: ServerContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        async with listening(context) as listener:
            before = listener.address
            with pytest.raises(InvalidConfig, match="Address already in use"):
                await listener.listen(taken)
            assert listener.address == before
            assert (await get(before)).body == b"hello"


async def test_the_same_address_again_changes_nothing(context: ServerContext) -> None:
    port = free_port()
    async with listening(context, address=f"127.0.0.1:{port}") as listener:
        client = await asyncio.to_thread(connect, f"127.0.0.1:{port}", client_context())
        await listener.listen(f"127.0.0.1:{port}")
        await asyncio.to_thread(client.sendall, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asyncio.to_thread(client.recv, 12)) == b"HTTP/1.1 200"
        client.close()


async def test_empty_address_stops_listening(context: ServerContext) -> None:
    async with listening(context) as listener:
        before = listener.address
        await listener.listen("")
        assert listener.address == ""
        await closed(before)


async def test_a_move_to_an_overlapping_address(context: ServerContext) -> None:
    port = free_port()
    async with listening(context, address=f":{port}") as listener:
        await listener.listen(f"127.0.0.1:{port}")
        assert (await get(f"127.0.0.1:{port}")).status == 200
        await listener.listen(f":{port}")
        assert (await get(f"[::1]:{port}")).status == 200


async def test_a_failed_move_to_an_overlapping_address_is_reverted(context: ServerContext) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.2", port)):
        async with listening(context, address=f"127.0.0.1:{port}") as listener:
            with pytest.raises(InvalidConfig, match="Address already in use"):
                await listener.listen(f"0.0.0.0:{port}")
            assert listener.address == f"127.0.0.1:{port}"
            assert (await get(listener.address)).status == 200


async def test_an_address_lost_in_a_failed_move_is_reported(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()

    def refuse(endpoint: object) -> socket.socket:
        raise OSError(98, "Address already in use")

    async with listening(context, address=f"127.0.0.1:{port}") as listener:
        with monkeypatch.context() as patched:
            patched.setattr(https, "_bind", refuse)
            with pytest.raises(InvalidConfig, match="Address already in use"):
                await listener.listen(f"0.0.0.0:{port}")
        assert listener.address == ""
        assert f"lost the address 127.0.0.1:{port}" in caplog.text
        await listener.listen(f"127.0.0.1:{port}")
        assert (await get(listener.address)).status == 200


async def test_a_request_runs_on_while_the_address_moves(context: ServerContext) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        return web.Response(text="at last")

    async with listening(context, slow) as listener:
        before = listener.address
        running = asyncio.create_task(get(before))
        await begun.wait()
        idle = await asyncio.to_thread(connect, before, client_context())
        await asyncio.sleep(0.05)
        await listener.listen(f"127.0.0.1:{free_port()}")
        await closed(before)
        assert await asyncio.to_thread(idle.recv, 1) == b""
        idle.close()
        assert not running.done()
        go_on.set()
        assert (await running).body == b"at last"
        assert (await get(listener.address)).body == b"at last"
        await until(lambda: not listener._draining)


async def test_an_upload_continues_while_the_address_changes(context: ServerContext) -> None:
    begun = asyncio.Event()

    async def upload(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        return web.Response(text=(await request.read()).decode())

    async with listening(context, upload) as listener:
        client = await asyncio.to_thread(connect, listener.address, client_context())
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello"
        await asyncio.to_thread(client.sendall, head)
        await begun.wait()
        await listener.listen("")
        with client:
            await asyncio.to_thread(client.sendall, b"world")
            answer = await asyncio.to_thread(client.makefile("rb").read)
    assert answer.endswith(b"helloworld")
    assert b"Connection: close" in answer


async def test_a_large_response_is_complete_while_the_address_changes(context: ServerContext) -> None:
    size = 12 << 20

    async def large(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"x" * size)

    async with listening(context, large) as listener:
        client = await asyncio.to_thread(connect, listener.address, client_context())
        await asyncio.to_thread(client.sendall, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        got = len(await asyncio.to_thread(client.recv, 65536))
        await listener.listen("")
        with client:
            while data := await asyncio.to_thread(client.recv, 1 << 20):
                got += len(data)
        assert size < got < size + 1000


async def test_endless_requests_are_aborted_at_shutdown(context: ServerContext) -> None:
    begun = asyncio.Event()

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with listening(context, endless) as listener:
        client = await asyncio.to_thread(connect, listener.address, client_context())
        await asyncio.to_thread(client.sendall, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
    with client:
        assert await asyncio.to_thread(client.recv, 1) == b""


async def test_a_handshake_in_progress_is_cut_by_a_move(context: ServerContext) -> None:
    async with listening(context) as listener:
        host, _, port = listener.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"\x16\x03\x01")
        await asyncio.sleep(0.05)
        await listener.listen("")
        await until(lambda: not listener._draining)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


async def test_at_start_an_address_that_cannot_be_had_is_tried_again(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utsuwa.operations.retries._WAITS", (0.05,))
    monkeypatch.setattr("utsuwa.operations.retries._REST", 0.0)
    warnings = OpenWarnings()
    listener = HttpsListener(API_ADDRESS, hello, lambda: context, TrustStore(), warnings, no_retries())
    with socket.create_server(("127.0.0.1", 0)) as other:
        wanted = f"127.0.0.1:{other.getsockname()[1]}"
        await listener.open(wanted)
        assert "Address already in use" in warnings.messages["HTTPS address unavailable"]
        assert listener.address == ""
        await asyncio.sleep(0.12)
    await until(lambda: listener.address == wanted)
    assert warnings.messages == {}
    await listener.close()


async def test_a_change_of_the_config_ends_the_tries(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utsuwa.operations.retries._WAITS", (0.05,))
    monkeypatch.setattr("utsuwa.operations.retries._REST", 0.0)
    listener = HttpsListener(API_ADDRESS, hello, lambda: context, TrustStore(), OpenWarnings(), no_retries())
    with socket.create_server(("127.0.0.1", 0)) as other:
        await listener.open(f"127.0.0.1:{other.getsockname()[1]}")
    await listener.config_changed(frozenset({"user.a"}), {})
    await listener.config_changed(frozenset({"core.https_address"}), {})
    await asyncio.sleep(0.12)
    assert listener.address == ""
    await listener.close()


# ---- strangers


@pytest.mark.alone
async def test_invalid_and_silent_connections_are_closed(context: ServerContext) -> None:
    async with listening(context, limits=QUICK) as listener:
        host, _, port = listener.address.rpartition(":")
        for first in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(300), b"\x16\x03\x01\x00", b""):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(first)
            before = time.monotonic()
            with suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 5)
            assert time.monotonic() - before < 2
            writer.close()
        assert (await get(listener.address)).status == 200


async def test_idle_connection_after_handshake_is_closed(context: ServerContext) -> None:
    async with listening(context, limits=IDLE) as listener:
        client = await asyncio.to_thread(connect, listener.address, client_context())
        with client, pytest.raises((ConnectionError, ssl.SSLEOFError)):
            await asyncio.to_thread(cut_off, client)


def cut_off(client: ssl.SSLSocket) -> None:
    """Raises when the connection is reset, or ends without a goodbye; half a request is on its way."""
    client.sendall(b"GET / HTTP/1.1\r\n")
    if not client.recv(1):
        raise ConnectionResetError("closed")


async def test_a_slow_answer_is_not_cut(context: ServerContext) -> None:
    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(SECONDS + 0.2)
        return web.Response(text="slow")

    async with listening(context, slow, limits=Limits(first_request=SECONDS)) as listener:
        assert (await get(listener.address)).body == b"slow"


async def test_strangers_cannot_crowd_out_trusted_clients(context: ServerContext, alice: Identity) -> None:
    trust = TrustStore()
    trust.load([row_of(alice)])
    limits = Limits(strangers=5, strangers_of_one=3)
    async with listening(context, limits=limits, trust=trust) as listener:
        trusted = [await asyncio.to_thread(connect, listener.address, client_context(alice)) for _ in "12345"]
        await asyncio.sleep(0.05)
        strangers = [await asyncio.to_thread(connect, listener.address, client_context()) for _ in "12"]
        assert (await get(listener.address, identity=alice)).status == 200
        strangers.append(await asyncio.to_thread(connect, listener.address, client_context()))
        await asyncio.sleep(0.05)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await get(listener.address)
        for client in strangers:
            client.close()
        await asyncio.sleep(0.05)
        assert (await get(listener.address)).status == 200
        for client in trusted:
            client.close()


async def test_the_number_of_all_connections_is_limited(context: ServerContext, alice: Identity) -> None:
    trust = TrustStore()
    trust.load([row_of(alice)])
    async with listening(context, limits=Limits(all=2), trust=trust) as listener:
        held = [await asyncio.to_thread(connect, listener.address, client_context(alice)) for _ in "12"]
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await get(listener.address, identity=alice)
        for client in held:
            client.close()
        await asyncio.sleep(0.05)
        assert (await get(listener.address, identity=alice)).status == 200


async def test_no_descriptors_left_is_survived(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept, failures = socket.socket.accept, [24, 24]

    def failing(self: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            raise OSError(failures.pop(), "Too many open files")
        return accept(self)

    monkeypatch.setattr("utsuwa.daemon.tls_port._PAUSE", 0.05)
    async with listening(context) as listener:
        monkeypatch.setattr(socket.socket, "accept", failing)
        assert (await get(listener.address)).status == 200
    assert "Too many open files" in caplog.text


def visit(address: str, number: int, identity: Identity) -> None:
    """A good client, one without certificate, one that goes without a word, and one that speaks no TLS."""
    plain = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    match number % 4:
        case 0:
            plain.sendall(b"no TLS at all")
            plain.close()
        case 1:
            client_context(identity).wrap_socket(plain).close()
        case kind:
            with client_context(identity if kind == 2 else None).wrap_socket(plain) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert client.recv(12) == b"HTTP/1.1 200"


async def test_many_handshakes_leave_no_descriptors(context: ServerContext, alice: Identity) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def visits(address: str, count: int) -> None:
        for number in range(count):
            visit(address, number, alice)

    async with listening(context) as listener:
        await asyncio.to_thread(visits, listener.address, 8)
        await asyncio.sleep(0.5)
        before = descriptors()
        await asyncio.to_thread(visits, listener.address, 200)
        await until(lambda: descriptors() <= before)


def row_of(identity: Identity) -> Any:
    parsed = parse_certificate(identity.pem)
    return SimpleNamespace(
        fingerprint=parsed.fingerprint,
        certificate=parsed.pem,
        type="client",
        name="x",
        restricted=False,
        projects=[],
    )
