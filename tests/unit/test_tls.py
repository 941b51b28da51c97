"""TLS with any client certificate, under asyncio and under uvloop, against CPython's own client."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from OpenSSL import SSL

from tests.support.tls import Identity, client_context, connect, make_identity
from utsuwa.security.peer import peer_of
from utsuwa.security.tls import PeerConnection, ServerContext

Runner = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def server(folder: Path) -> ServerContext:
    identity = make_identity(folder, "server")
    return ServerContext(identity.certificate_file, identity.key_file)


@pytest.fixture(scope="module")
def client(folder: Path) -> Identity:
    return make_identity(folder, "client")


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    """Runs a coroutine in a loop of each kind."""
    runner: Runner = asyncio.run if request.param == "asyncio" else uvloop.run
    return runner


class Echo(asyncio.Protocol):
    """Sends back what it gets, after the fingerprint of the peer on a line."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        peer = peer_of(transport)
        assert peer is not None
        self.transport.write(peer.fingerprint.encode() + b"\n")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@asynccontextmanager
async def listening(context: ssl.SSLContext, factory: Callable[[], asyncio.Protocol]) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(factory, "127.0.0.1", 0, ssl=context, ssl_handshake_timeout=10)
    async with listener:
        host, port = listener.sockets[0].getsockname()
        yield f"{host}:{port}"


def read_all(connection: ssl.SSLSocket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_any_client_certificate_is_accepted_and_returned(
    run: Runner, server: ServerContext, client: Identity, folder: Path
) -> None:
    expired = make_identity(folder, "old", starts=timedelta(-9), ends=timedelta(-8))

    def talk(address: str, identity: Identity | None) -> bytes:
        with connect(address, client_context(identity)) as connection:
            return connection.makefile("rb").readline().strip()

    async def body() -> None:
        async with listening(server, Echo) as address:
            for identity in (client, expired, None):
                shown = await asyncio.to_thread(talk, address, identity)
                assert shown.decode() == (identity.fingerprint if identity else "")

    run(body())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_bytes_arrive_unchanged(
    run: Runner, server: ServerContext, client: Identity, version: ssl.TLSVersion
) -> None:
    sent = bytes(range(256)) * 16384  # 4 MiB

    def talk(address: str) -> bytes:
        context = client_context(client)
        context.minimum_version = context.maximum_version = version
        with connect(address, context) as connection:
            stream = connection.makefile("rwb")
            stream.readline()
            got = b""
            for start in range(0, len(sent), 1 << 20):
                stream.write(sent[start : start + (1 << 20)])
                stream.flush()
                got += stream.read(1 << 20)
            return got

    async def body() -> None:
        async with listening(server, Echo) as address:
            assert await asyncio.to_thread(talk, address) == sent

    run(body())


class SaysGoodbye(asyncio.Protocol):
    """Sends much and closes: all of it must arrive, and then a clean end of TLS."""

    size = 3 << 20

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast(asyncio.WriteTransport, transport)
        writer.write(b"x" * self.size)
        writer.close()


def test_the_end_is_clean_on_both_sides(run: Runner, server: ServerContext, client: Identity) -> None:
    def talk(address: str) -> int:
        with connect(address, client_context(client)) as connection:
            length = len(read_all(connection))  # a cut would raise SSLEOFError here
            connection.unwrap()
            return length

    async def body() -> None:
        async with listening(server, SaysGoodbye) as address:
            assert await asyncio.to_thread(talk, address) == SaysGoodbye.size

    run(body())


class Ends(Echo):
    """Remembers how the connection ended."""

    def __init__(self, ended: asyncio.Future[Exception | None]) -> None:
        self.ended = ended

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(exc)


def test_the_clients_goodbye_ends_the_connection(
    run: Runner, server: ServerContext, client: Identity
) -> None:
    def talk(address: str) -> None:
        with connect(address, client_context(client)) as connection:
            connection.makefile("rb").readline()
            connection.unwrap().close()

    async def body() -> None:
        ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        async with listening(server, lambda: Ends(ended)) as address:
            await asyncio.to_thread(talk, address)
            assert await asyncio.wait_for(ended, 10) is None

    run(body())


def test_sessions_are_not_resumed(run: Runner, server: ServerContext, client: Identity) -> None:
    def talk(address: str, version: ssl.TLSVersion) -> None:
        context = client_context(client)
        context.minimum_version = context.maximum_version = version
        session = None
        for _ in range(3):
            with connect(address, context, session=session) as connection:
                assert connection.makefile("rb").readline().strip().decode() == client.fingerprint
                assert not connection.session_reused
                session = connection.session

    async def body() -> None:
        async with listening(server, Echo) as address:
            await asyncio.to_thread(talk, address, ssl.TLSVersion.TLSv1_2)
            await asyncio.to_thread(talk, address, ssl.TLSVersion.TLSv1_3)

    run(body())


def weak(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return context


def test_old_versions_and_weak_ciphers_are_refused(run: Runner, server: ServerContext) -> None:
    def refused(address: str, context: ssl.SSLContext) -> str:
        with pytest.raises(ssl.SSLError) as caught, connect(address, context):
            pass
        return str(caught.value)

    async def body() -> None:
        async with listening(server, Echo) as address:
            for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
                reason = await asyncio.to_thread(refused, address, weak(client_context(), version))
                assert "alert protocol version" in reason
            for ciphers in ("ECDHE+AES+SHA256:!AESGCM", "DHE+AESGCM", "AES128-GCM-SHA256"):
                context = client_context()
                context.maximum_version = ssl.TLSVersion.TLSv1_2
                context.set_ciphers(ciphers)
                reason = await asyncio.to_thread(refused, address, context)
                assert "handshake failure" in reason

    run(body())


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)]
)
def test_protocol_choice(
    server: ServerContext, client: Identity, offered: list[str], chosen: str | None
) -> None:
    context = client_context(client)
    if offered:
        context.set_alpn_protocols(offered)
    theirs, ours = handshake(server, context)
    assert theirs.selected_alpn_protocol() == chosen
    assert ours.selected_alpn_protocol() == chosen


# ---- without an event loop: both ends in memory


class Wire:
    """The buffers between a client of CPython's and a connection of ours."""

    def __init__(self, server: ServerContext, client: ssl.SSLContext) -> None:
        self.to_server, self.to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.theirs = client.wrap_bio(self.to_client, self.to_server)
        self.ours = cast(PeerConnection, server.wrap_bio(self.to_server, self.to_client, server_side=True))

    def shake_hands(self) -> None:
        waiting = [self.theirs.do_handshake, self.ours.do_handshake]
        for _ in range(10):
            for step in list(waiting):
                try:
                    step()
                    waiting.remove(step)
                except ssl.SSLWantReadError:
                    pass
        assert not waiting


def handshake(server: ServerContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, PeerConnection]:
    wire = Wire(server, client)
    wire.shake_hands()
    return wire.theirs, wire.ours


def test_connection_details(server: ServerContext, client: Identity) -> None:
    _, ours = handshake(server, client_context(client))
    assert ours.version() == "TLSv1.3"
    assert ours.certificate == client.der
    assert ours.getpeercert(binary_form=True) == client.der
    assert ours.getpeercert() == {}
    cipher = ours.cipher()
    assert cipher is not None
    assert cipher[1:] == ("TLSv1.3", 256)
    _, ours = handshake(server, client_context())
    assert ours.getpeercert(binary_form=True) is None


def test_read_reports_pending_data(server: ServerContext, client: Identity) -> None:
    wire = Wire(server, client_context(client))
    wire.shake_hands()
    with pytest.raises(ssl.SSLWantReadError):
        wire.ours.read(100)
    assert wire.ours.pending() == 0
    wire.theirs.write(b"a" * 20000)
    buffer = bytearray(100)
    assert wire.ours.read(100, memoryview(buffer)) == 100
    assert buffer == b"a" * 100
    got = 100
    while wire.ours.pending():
        try:
            got += len(bytes(wire.ours.read(1 << 20)))
        except ssl.SSLWantReadError:
            break
    assert got == 20000
    assert wire.ours.pending() == 0


def test_many_records_are_encrypted_at_a_time(
    server: ServerContext, client: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(server, client_context(client))
    wire.shake_hands()
    sizes: list[int] = []
    send = SSL.Connection.send

    def counted(connection: SSL.Connection, data: memoryview) -> int:
        sizes.append(send(connection, data))
        return sizes[-1]

    monkeypatch.setattr(SSL.Connection, "send", counted)
    content = bytes(range(256)) * 4096
    assert wire.ours.write(content) == len(content) == sum(sizes)
    assert len(sizes) * 4 * 16 * 1024 <= len(content)
    got = b""
    while len(got) < len(content):
        got += wire.theirs.read(1 << 20)
    assert got == content


def test_goodbyes_meet(server: ServerContext, client: Identity) -> None:
    wire = Wire(server, client_context(client))
    wire.shake_hands()
    with pytest.raises(ssl.SSLWantReadError):
        wire.ours.unwrap()
    wire.theirs.read(1)
    wire.theirs.unwrap()
    wire.ours.unwrap()
    assert wire.ours.read(10) == b""
    assert wire.ours.read(10, memoryview(bytearray(10))) == 0


def test_data_before_the_clients_goodbye_is_dropped(server: ServerContext, client: Identity) -> None:
    wire = Wire(server, client_context(client))
    wire.shake_hands()
    wire.theirs.write(b"late")
    with pytest.raises(ssl.SSLWantReadError):
        wire.ours.unwrap()
    wire.theirs.read(1)
    wire.theirs.unwrap()
    wire.ours.unwrap()


def test_garbage_is_an_ssl_error(server: ServerContext) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    with pytest.raises(ssl.SSLError, match="http request"):
        ours.do_handshake()


def test_failed_handshake_sends_an_alert_first(server: ServerContext) -> None:
    wire = Wire(server, weak(client_context(), ssl.TLSVersion.TLSv1_1))
    with pytest.raises(ssl.SSLWantReadError):
        wire.theirs.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):  # so that the event loop sends what is to be sent
        wire.ours.do_handshake()
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        wire.theirs.do_handshake()
    with pytest.raises(ssl.SSLError, match="unsupported protocol"):
        wire.ours.do_handshake()


def test_changed_records_are_refused(server: ServerContext, client: Identity) -> None:
    wire = Wire(server, client_context(client))
    wire.shake_hands()
    wire.theirs.write(b"hello")
    record = bytearray(wire.to_server.read())
    record[-1] ^= 1
    wire.to_server.write(record)
    with pytest.raises(ssl.SSLError, match="bad record mac"):
        wire.ours.read(10)
    with pytest.raises(ssl.SSLError, match="bad record mac"):
        wire.theirs.read(1)


def test_a_certificate_without_its_key_is_refused(server: ServerContext, client: Identity) -> None:
    """A certificate alone, which anybody may have seen, does not let one pass for its owner."""
    context = client_context(client)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where the signature can be seen, and spoilt
    wire = Wire(server, context)
    for step in (wire.theirs.do_handshake, wire.ours.do_handshake, wire.theirs.do_handshake):
        with pytest.raises(ssl.SSLWantReadError):
            step()
    wire.to_server.write(spoil_signature(wire.to_server.read()))
    with pytest.raises(ssl.SSLWantReadError):
        wire.ours.do_handshake()
    with pytest.raises(ssl.SSLError, match="signature"):
        wire.ours.do_handshake()
    assert not wire.ours.fingerprint


def spoil_signature(flight: bytes) -> bytes:
    """Records of a TLS 1.2 client, with the last byte of its CertificateVerify changed."""
    records, rest, certificate_verify = [], flight, 15
    while rest:
        end = 5 + int.from_bytes(rest[3:5], "big")
        record, rest = bytearray(rest[:end]), rest[end:]
        if record[0] == 22 and record[5] == certificate_verify:
            record[-1] ^= 1
        records.append(bytes(record))
    assert b"".join(records) != flight
    return b"".join(records)


def test_clients_and_sessions_are_refused(server: ServerContext) -> None:
    with pytest.raises(ValueError, match="for servers"):
        server.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=False)


def test_files_that_are_no_pair(folder: Path) -> None:
    one, two = make_identity(folder), make_identity(folder)
    with pytest.raises(SSL.Error):
        ServerContext(one.certificate_file, two.key_file)
    with pytest.raises(SSL.Error):
        ServerContext(folder / "missing.crt", one.key_file)


def test_other_transports_have_no_peer() -> None:
    assert peer_of(asyncio.BaseTransport()) is None
