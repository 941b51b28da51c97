"""Proxies that tell the addresses of their clients: the header, and whom the listener believes."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.support.listener import listening
from tests.support.tls import client_context, make_identity
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.server_keys import SERVER_KEYS
from utsuwa.daemon.tls_port import Limits
from utsuwa.security.proxy_header import Address, read_header
from utsuwa.security.tls import ServerContext
from utsuwa.security.trust_store import TrustStore
from utsuwa.security.trusted_proxies import KEY

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def binary(command: int, family: int, rest: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


V4 = binary(0x21, 0x11, bytes([192, 0, 2, 7, 10, 0, 0, 1]) + struct.pack("!HH", 4711, 8443))
V6 = binary(
    0x21, 0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack("!HH", 1, 2)
)


def read(data: bytes) -> tuple[Address | None, bytes]:
    """Return the address, and the bytes that are left for TLS."""
    rest = bytearray(data)

    async def receive(count: int) -> bytes:
        if len(rest) < count:
            raise ConnectionResetError
        part = bytes(rest[:count])
        del rest[:count]
        return part

    return asyncio.run(read_header(data[:1], receive)), bytes(rest)


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 8443\r\n", ("192.0.2.7", 4711)),
        (b"PROXY TCP6 2001:DB8::7 ::1 4711 8443\r\n", ("2001:db8::7", 4711)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ff::1 ff::2 1 2\r\n", None),
        (V4, ("192.0.2.7", 4711)),
        (V6, ("2001:db8::7", 1)),
        (binary(0x21, 0x11, V4[16:] + b"\x04\0\x01x"), ("192.0.2.7", 4711)),  # with a field after them
        (binary(0x20, 0x00, b""), None),  # a health check of the proxy
        (binary(0x21, 0x31, b"/socket" + bytes(209)), None),
    ],
)
def test_headers(header: bytes, address: Address | None) -> None:
    assert read(header + b"\x16\x03") == (address, b"\x16\x03")


@pytest.mark.parametrize(
    "header",
    [
        b"POST / HTTP/1.1\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4711\r\n",
        b"PROXY TCP4 192.0.2.700 10.0.0.1 4711 8443\r\n",
        b"PROXY TCP4 2001:db8::7 10.0.0.1 4711 8443\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 8443\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 8443\r\n",
        b"PROXY \xff\r\n",
        b"PROXY " + b"x" * 200 + b"\r\n",
        binary(0x31, 0x11, V4[16:]),
        binary(0x22, 0x11, V4[16:]),
        binary(0x21, 0x11, V4[16:-1]),
        binary(0x21, 0x11, b"", 65535),
        b"\r" + V4[2:] + b"\n",
    ],
)
def test_broken_headers(header: bytes) -> None:
    with pytest.raises(ValueError, match=r"PROXY|ascii|Octet|octet|permitted"):
        read(header)


@given(st.binary(max_size=300), st.sampled_from([b"P", b"PROXY ", b"\r", SIGNATURE, SIGNATURE + b"\x21"]))
def test_any_bytes_end_in_an_address_or_an_error(data: bytes, start: bytes) -> None:
    with suppress(ValueError, ConnectionResetError):
        read(start + data)


# ---- the listener


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ServerContext:
    folder: Path = tmp_path_factory.mktemp("proxies")
    identity = make_identity(folder, "server")
    return ServerContext(identity.certificate_file, identity.key_file)


async def ask(address: str, header: bytes) -> str:
    """Return what the listener takes for the client's address; empty if it closes the connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        for part in (header[:5], header[5:]):
            writer.write(part)
            await writer.drain()
        await writer.start_tls(client_context())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
    except OSError:
        return ""
    finally:
        writer.close()
    return answer.rpartition(b"\r\n\r\n")[2].decode()


async def told(
    context: ServerContext, trusted: str, *headers: bytes, address: str = "127.0.0.1:0"
) -> list[str]:
    trust = TrustStore()
    await trust.proxies.config_changed(frozenset([KEY]), {KEY: trusted})

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        return web.Response(text=trust.caller(request.transport).address)

    async with listening(context, handle, address=address, trust=trust) as listener:
        answers = [await ask(listener.address, header) for header in headers]
    assert not trust.proxies._clients
    return answers


TEXT = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 8443\r\n"


async def test_a_trusted_proxy_is_believed(context: ServerContext) -> None:
    answers = await told(context, "192.0.2.1, 127.0.0.1", TEXT, V4, V6, b"PROXY UNKNOWN\r\n", b"")
    assert answers[:3] == ["192.0.2.7:4711", "192.0.2.7:4711", "[2001:db8::7]:1"]
    assert all(answer.startswith("127.0.0.1:") for answer in answers[3:])


async def test_on_a_dual_stack_socket_too(context: ServerContext) -> None:
    trusted = "127.0.0.1,::1"
    assert await told(context, trusted, TEXT, address="[::]:0") == ["192.0.2.7:4711"]


async def test_others_are_not_believed(context: ServerContext) -> None:
    assert await told(context, "192.0.2.1", TEXT, V4) == ["", ""]
    assert await told(context, "", TEXT) == [""]


async def test_broken_headers_end_the_connection(context: ServerContext) -> None:
    assert await told(context, "127.0.0.1", b"PROXY TCP4 x\r\n", SIGNATURE + bytes(4)) == ["", ""]


async def test_clients_of_a_proxy_are_limited_one_by_one(context: ServerContext) -> None:
    trust = TrustStore()
    trust.proxies.use("127.0.0.1")
    limits = Limits(strangers_of_one=1)
    async with listening(context, trust=trust, limits=limits) as listener:
        host, _, port = listener.address.rpartition(":")
        first, second = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        first[1].write(b"PROXY TCP4 192.0.2.7 10.0.0.1 1 8443\r\n")  # its handshake goes on
        assert await ask(listener.address, b"PROXY TCP4 192.0.2.8 10.0.0.1 1 8443\r\n")
        second[1].write(b"PROXY TCP4 192.0.2.7 10.0.0.1 2 8443\r\n")
        assert await second[0].read() == b""
        for _, writer in (first, second):
            writer.close()


async def test_a_proxy_that_says_nothing_is_not_waited_for(context: ServerContext) -> None:
    trust = TrustStore()
    trust.proxies.use("127.0.0.1")
    async with listening(context, trust=trust, limits=Limits(handshake=0.3)) as listener:
        host, _, port = listener.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PROXY TCP4 ")
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("value", ["proxy.example", "192.0.2.0/24", "192.0.2.1,,", "192.0.2.1:80"])
def test_invalid_addresses(value: str) -> None:
    with pytest.raises(InvalidConfig, match="IP addresses"):
        SERVER_KEYS.check({KEY: value})
