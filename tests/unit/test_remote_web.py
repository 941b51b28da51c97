"""Downloads from servers that are slow, broken, or lie: each ends with an error, within limits."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import uvloop
from cryptography import x509
from yarl import URL

from tests.support.image_server import (
    INDEX,
    PRODUCTS,
    ImageServer,
    Reply,
    body,
    endless,
    redirect,
    serving,
)
from tests.support.images import Image
from tests.support.tls import Identity, TestAuthority, make_identity
from utsuwa.core.errors import (
    InvalidImage,
    InvalidRequest,
    NotFound,
    OutOfSpace,
    TooLarge,
    Unavailable,
    UtsuwaError,
)
from utsuwa.core.proxies import Proxies
from utsuwa.images import behind
from utsuwa.images.intake import Intake
from utsuwa.images.remote import addresses, simplestreams, web
from utsuwa.images.remote.records import Found, RemoteSource
from utsuwa.images.remote.simplestreams import SimpleStreams, StreamCache
from utsuwa.images.remote.web import Web
from utsuwa.images.upload import Upload
from utsuwa.security.remote_tls import client_context

NONE = Proxies()
METADATA, ROOTFS = b"metadata" * 100, b"rootfs" * 1000


class Silent:
    """Looks at no progress."""

    def begin(self, label: str, total: int) -> None:
        pass

    def add(self, count: int) -> None:
        pass


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def context(identity: Identity) -> ssl.SSLContext:
    return client_context(identity.pem, None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("files")
    (folder / "meta").write_bytes(METADATA)
    (folder / "root").write_bytes(ROOTFS)
    return Image(folder / "meta", folder / "root")


@pytest.fixture
def server(identity: Identity, files: Image) -> Iterator[ImageServer]:
    with serving(identity) as found:
        found.publish(files, "20260101")
        yield found


@pytest.fixture
def cache(tmp_path: Path) -> StreamCache:
    (tmp_path / "cache").mkdir()
    return StreamCache(tmp_path / "cache")


class Client:
    """Requests the alias `busybox` of a server."""

    def __init__(
        self, server: ImageServer, context: ssl.SSLContext, cache: StreamCache, tmp_path: Path
    ) -> None:
        self.source = RemoteSource(server.url, "simplestreams", "busybox", server.certificate)
        self._context, self._cache, self._folder = context, cache, tmp_path

    @asynccontextmanager
    async def found(self, *, fresh: bool = False) -> AsyncIterator[Found]:
        async with Web(NONE, self._context) as client:
            yield await SimpleStreams(client, self.source, self._cache, ["x86_64"], fresh=fresh).find()

    async def find(self, *, fresh: bool = False) -> str:
        async with self.found(fresh=fresh) as found:
            return found.fingerprint

    async def download(self, limit: int = 10**6) -> str:
        """Return the fingerprint of what was received."""
        async with self.found() as found, Upload(self._folder, limit) as upload:
            await found.download(upload, Silent())
            return upload.fingerprint


@pytest.fixture
def client(server: ImageServer, context: ssl.SSLContext, cache: StreamCache, tmp_path: Path) -> Client:
    return Client(server, context, cache, tmp_path)


def root(server: ImageServer) -> str:
    return next(path for path in server.files if path.endswith("rootfs.squashfs"))


async def test_an_image_is_received_with_its_fingerprint(client: Client, tmp_path: Path) -> None:
    expected = hashlib.sha256(METADATA + ROOTFS).hexdigest()
    assert await client.find() == await client.download() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (body(ROOTFS[:-1], length=len(ROOTFS)), Unavailable, "rootfs.squashfs: "),
        (body(ROOTFS[:-1]), InvalidImage, "ended after 5999 of 6000 bytes"),
        (body(ROOTFS + b"x"), InvalidImage, "larger than 6000 bytes"),
        (body(b"", length=2**40), InvalidImage, "1099511627776 bytes instead of 6000"),
        (body(ROOTFS[:-1] + b"x", length=6000), InvalidImage, "has the hash"),
        (body(ROOTFS, length=6000, headers={"Content-Encoding": "gzip"}), Unavailable, "compressed"),
        (body(b"", length=0, status=404), NotFound, "404"),
        (body(b"", length=0, status=500), Unavailable, "status 500"),
        (body(b"", length=0, status=204), Unavailable, "status 204"),
        (body(b"x" * 20_000, headers={"X": "y" * 100_000}), Unavailable, "rootfs.squashfs: "),
        (redirect("http://127.0.0.1/x"), InvalidRequest, "redirects to http"),
        (redirect("file:///etc/shadow"), InvalidRequest, "invalid URL"),
        (redirect("ftp://127.0.0.1/x"), InvalidRequest, "redirects to ftp"),
        (redirect("https://root@127.0.0.1/x"), InvalidRequest, "invalid URL"),
        (redirect("https://["), InvalidRequest, "invalid URL"),
        (redirect("rootfs.squashfs"), InvalidRequest, "more than 5 times"),
    ],
)
@pytest.mark.parametrize("long", [web.LONG, 0])
async def test_what_is_not_the_stated_file_is_refused(
    client: Client,
    server: ImageServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reply: Reply,
    error: type[UtsuwaError],
    message: str,
    long: int,
) -> None:
    monkeypatch.setattr(web, "LONG", long)
    server.odd[root(server)] = reply
    with pytest.raises(error, match=message):
        await client.download()
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


async def test_an_endless_file_ends_at_the_limit(client: Client, server: ImageServer) -> None:
    server.item("rootfs.squashfs").update(size=0, sha256="")
    server.write()
    ended = threading.Event()
    server.odd[root(server)] = endless(ended)
    with pytest.raises(TooLarge):
        await client.download()
    assert await asyncio.to_thread(ended.wait, 20)


# ---- long files, which are received past the HTTP client


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]
"""asyncio's own, and that of the daemon."""


def newest_root(server: ImageServer) -> str:
    return str(server.item("rootfs.squashfs")["path"])


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("long")
    (folder / "meta").write_bytes(METADATA)
    (folder / "root").write_bytes(os.urandom(9_000_001))
    return Image(folder / "meta", folder / "root")


@pytest.fixture
def straight(server: ImageServer, long_files: Image, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list of how many bytes were left to be received straight, for each file; the server has a long one.

    The client's buffer is small, so that it cannot have received the whole file itself.
    """
    left: list[int] = []

    class Noted(Intake):
        def __init__(self, transport: Any, count: int, *rest: Any) -> None:
            left.append(count)
            super().__init__(transport, count, *rest)

    monkeypatch.setattr(web, "Intake", Noted)
    monkeypatch.setattr(web, "_AHEAD", 2**16)
    server.publish(long_files, "20260102")
    return left


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("most", [behind.MOST, 1])
def test_a_long_file_is_received_straight(
    client: Client,
    long_files: Image,
    straight: list[int],
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    monkeypatch.setattr(behind, "MOST", most)
    content = METADATA + long_files.rootfs.read_bytes()
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(client.download(10**7)) == hashlib.sha256(content).hexdigest()
    assert len(straight) == 1
    assert straight[0] > 0


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda data: data[:-1], Unavailable, "rootfs.squashfs: "),
        (lambda data: data[:5_000_000], Unavailable, "rootfs.squashfs: "),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), InvalidImage, "has the hash"),
    ],
)
def test_a_long_file_that_is_another_one_is_refused(
    client: Client,
    server: ImageServer,
    long_files: Image,
    straight: list[int],
    tmp_path: Path,
    change: Callable[[bytes], bytes],
    error: type[UtsuwaError],
    message: str,
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    data = long_files.rootfs.read_bytes()
    server.odd[newest_root(server)] = body(change(data), length=len(data))
    with asyncio.Runner(loop_factory=loop) as runner, pytest.raises(error, match=message):
        runner.run(client.download(10**7))
    assert len(straight) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("trickles", [False, True])
def test_a_server_that_does_not_send_the_rest_is_given_up(
    client: Client,
    server: ImageServer,
    long_files: Image,
    straight: list[int],
    monkeypatch: pytest.MonkeyPatch,
    trickles: bool,
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    monkeypatch.setattr(web, "STALL_SECONDS", 0.5)
    data = long_files.rootfs.read_bytes()
    given_up = threading.Event()

    def stop(handler: Any) -> None:
        body(data[:5_000_000], length=len(data))(handler)
        while trickles and not given_up.wait(0.1):
            handler.wfile.write(b"x")
        given_up.wait(20)

    server.odd[newest_root(server)] = stop
    try:
        with asyncio.Runner(loop_factory=loop) as runner, pytest.raises(Unavailable, match="less than 1 KiB"):
            runner.run(client.download(10**7))
    finally:
        given_up.set()
    assert len(straight) == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_a_full_disk_ends_the_transfer_of_a_long_file(
    client: Client,
    server: ImageServer,
    long_files: Image,
    straight: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    write = Upload._write

    def write_some(upload: Upload, file: BinaryIO, part: memoryview) -> None:
        if upload.size > 2_000_000:
            raise OutOfSpace("No space left")
        write(upload, file, part)

    monkeypatch.setattr(Upload, "_write", write_some)
    monkeypatch.setattr(behind, "MOST", 2)
    data = long_files.rootfs.read_bytes()
    ended = threading.Event()

    def endless_rest(handler: Any) -> None:
        try:
            body(data, length=10 * len(data))(handler)
            while True:
                handler.wfile.write(bytes(1 << 20))
        finally:
            ended.set()

    server.item("rootfs.squashfs").update(size=0, sha256="")
    server.write()
    server.odd[newest_root(server)] = endless_rest
    with asyncio.Runner(loop_factory=loop) as runner, pytest.raises(OutOfSpace):
        runner.run(client.download(10**9))
    assert ended.wait(20)
    assert len(straight) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ETIMEDOUT])
def test_the_server_is_not_blamed_for_a_disk_that_fails(
    client: Client,
    server: ImageServer,
    long_files: Image,
    straight: list[int],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    write = Upload._write

    def write_some(upload: Upload, file: BinaryIO, part: memoryview) -> None:
        if upload.size > 2_000_000:
            raise OSError(number, os.strerror(number))
        write(upload, file, part)

    monkeypatch.setattr(Upload, "_write", write_some)
    monkeypatch.setattr(behind, "MOST", 2)
    with asyncio.Runner() as runner, pytest.raises(OSError, match=os.strerror(number)) as raised:
        runner.run(client.download(10**7))
    assert raised.value.errno == number
    assert len(straight) == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_the_transfer_of_a_long_file_can_be_cancelled(
    client: Client,
    server: ImageServer,
    long_files: Image,
    straight: list[int],
    tmp_path: Path,
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    data = long_files.rootfs.read_bytes()
    waits, ended = threading.Event(), threading.Event()

    def stop(handler: Any) -> None:
        body(data[:5_000_000], length=len(data))(handler)
        waits.set()
        handler.rfile.read(1)  # nothing comes, but the end
        ended.set()

    async def cancel() -> None:
        downloading = asyncio.create_task(client.download(10**7))
        await asyncio.to_thread(waits.wait)
        while not straight:
            await asyncio.sleep(0.01)
        downloading.cancel()
        await asyncio.wait([downloading])
        assert downloading.cancelled()

    server.odd[newest_root(server)] = stop
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(cancel())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert ended.wait(20)


@pytest.mark.parametrize("path", [INDEX, PRODUCTS])
async def test_large_documents_are_refused(client: Client, server: ImageServer, path: str) -> None:
    server.odd[path] = body(b"", length=200 * 2**20)
    with pytest.raises(TooLarge, match="is larger than"):
        await client.find()
    ended = threading.Event()
    server.odd[path] = endless(ended)
    with pytest.raises(TooLarge, match="is larger than"):
        await client.find()
    assert await asyncio.to_thread(ended.wait, 20)


async def test_a_server_that_trickles_is_given_up(
    client: Client, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "STALL_SECONDS", 0.5)

    def trickle(handler: Any) -> None:
        body(b"", length=6000)(handler)
        while True:
            handler.wfile.write(b"x")
            threading.Event().wait(0.1)

    server.odd[root(server)] = trickle
    with pytest.raises(Unavailable, match="less than 1 KiB per second"):
        await client.download()


async def test_a_server_that_stops_is_given_up(
    client: Client, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "STALL_SECONDS", 0.5)
    stays = threading.Event()

    def stop(handler: Any) -> None:
        body(b"x", length=6000)(handler)
        stays.wait(20)

    server.odd[root(server)] = stop
    try:
        with pytest.raises(Unavailable, match="does not respond"):
            await client.download()
    finally:
        stays.set()


async def test_a_document_may_take_a_limited_time(
    client: Client, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "DOCUMENT_SECONDS", 0.3)
    stays = threading.Event()

    def stop(handler: Any) -> None:
        body(b"x", length=6000)(handler)
        stays.wait(20)

    server.odd[INDEX] = stop
    try:
        with pytest.raises(Unavailable, match="within"):
            await client.find()
    finally:
        stays.set()


async def test_redirects_are_followed(client: Client, server: ImageServer) -> None:
    server.files["elsewhere"] = ROOTFS
    server.odd[root(server)] = redirect("/elsewhere")
    await client.download()
    assert "elsewhere" in server.requests


async def test_public_servers_do_not_redirect_to_private_addresses(
    client: Client, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 counts as public here, as a test has no other address."""
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    port = URL(server.url).port
    for host in ("127.0.0.2", "[::1]"):
        server.odd[root(server)] = redirect(f"https://{host}:{port}/elsewhere")
        with pytest.raises(InvalidRequest, match="not a public address"):
            await client.download()
    monkeypatch.setattr(addresses, "is_public", lambda address: False)
    client.source = replace(client.source, server=server.url.replace("127.0.0.1", "localhost"))
    server.odd[root(server)] = redirect(f"https://127.0.0.1:{port}/elsewhere")
    with pytest.raises(NotFound):
        await client.download()


async def test_names_of_private_addresses_are_not_looked_up_for_public_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Looked:
        """Finds the loopback address, as a host without a network may not."""

        async def resolve(self, host: str, *_: object) -> list[dict[str, str]]:
            return [{"hostname": host, "host": "127.0.0.1"}]

        async def close(self) -> None:
            pass

    monkeypatch.setattr(addresses, "ThreadedResolver", Looked)
    resolver = addresses.JudgingResolver()
    resolver.begin(URL("https://8.8.8.8/"), redirected=False, proxied=False)
    resolver.begin(URL("https://localhost/"), redirected=True, proxied=False)
    with pytest.raises(addresses.PrivateAddress):
        await resolver.resolve("localhost")
    resolver.begin(URL("https://localhost/"), redirected=True, proxied=True)
    assert await resolver.resolve("localhost")
    resolver.begin(URL("https://localhost/"), redirected=False, proxied=False)
    await resolver.resolve("localhost")
    resolver.begin(URL("https://localhost/"), redirected=True, proxied=False)
    assert await resolver.resolve("localhost")
    await resolver.close()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert addresses.is_public(address) is public


async def test_plain_http_is_for_known_hashes_only(files: Image) -> None:
    with serving() as server:
        server.publish(files, "20260101")
        context = ssl.create_default_context()
        url = URL(f"{server.url}/{INDEX}")
        async with Web(NONE, context) as client:
            with pytest.raises(InvalidRequest, match="use https"):
                await client.document(url, 10**6)
        async with Web(NONE, context, plain_allowed=True) as client:
            assert await client.document(url, 10**6)
            with pytest.raises(InvalidRequest, match="use https"):
                await client.document(URL("file:///etc/passwd"), 10**6)


async def test_requests_go_through_the_proxy(files: Image) -> None:
    with serving() as proxy:
        proxy.files["http://images.example/x"] = b"by the proxy"
        proxies = Proxies(http=proxy.url)
        async with Web(proxies, ssl.create_default_context(), plain_allowed=True) as client:
            assert await client.document(URL("http://images.example/x"), 100) == b"by the proxy"


@pytest.mark.parametrize("proxy", ["ftp://x", "http://", "http://[", "socks5://a"])
def test_invalid_proxies(proxy: str) -> None:
    with pytest.raises(UtsuwaError, match="core.proxy_https"):
        web.proxy_for(Proxies(https=proxy), URL("https://images.example/"))


async def test_a_server_that_an_authority_has_signed(
    files: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipaddress import IPv4Address

    authority, trusted = TestAuthority(), tmp_path / "authority.crt"
    trusted.write_bytes(authority.pem)
    name = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    with serving(authority.issue(tmp_path, "server", (name, False))) as server:
        server.publish(files, "20260101")
        url = URL(f"{server.url}/{INDEX}")
        async with Web(NONE, await asyncio.to_thread(client_context, "", None)) as client:
            with pytest.raises(Unavailable, match="certificate is not accepted"):
                await client.document(url, 10**6)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        async with Web(NONE, await asyncio.to_thread(client_context, "", None)) as client:
            assert await client.document(url, 10**6)


async def test_a_pinned_certificate_is_compared_before_anything_is_sent(
    server: ImageServer, tmp_path: Path
) -> None:
    other = await asyncio.to_thread(make_identity, tmp_path, "other")
    async with Web(NONE, client_context(other.pem, None)) as client:
        with pytest.raises(Unavailable, match="another certificate"):
            await client.document(URL(f"{server.url}/{INDEX}"), 10**6)
    assert server.requests == []
    with pytest.raises(InvalidRequest, match="PEM"):
        client_context("nothing", None)


async def test_a_server_that_is_not_there(server: ImageServer, context: ssl.SSLContext) -> None:
    async with Web(NONE, context) as client:
        with pytest.raises(Unavailable):
            await client.document(URL("https://127.0.0.1:1/x"), 100)


# ---- the cache of documents


async def test_documents_are_cached(client: Client, server: ImageServer, files: Image) -> None:
    first = await client.find()
    assert await client.find() == first
    assert server.requests == [INDEX, PRODUCTS]
    server.publish(files, "20260102", release="2", aliases="other")
    client.source = replace(client.source, wanted="other")
    await client.find()  # what the cache does not have may be new
    assert server.requests == [INDEX, PRODUCTS] * 2
    client.source = replace(client.source, wanted="nothing")
    with pytest.raises(NotFound):
        await client.find()


async def test_fresh_documents_are_requested(client: Client, server: ImageServer) -> None:
    await client.find()
    await client.find(fresh=True)
    assert server.requests == [INDEX, PRODUCTS] * 2


async def test_old_documents_are_used_while_the_server_is_away(
    client: Client, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await client.find()
    monkeypatch.setattr(simplestreams, "CACHE_SECONDS", 0.0)
    server.odd[INDEX] = server.odd[PRODUCTS] = body(b"", length=0, status=503)
    assert await client.find() == first
    client.source = replace(client.source, certificate="")
    with pytest.raises(Unavailable):
        await client.find()


async def test_invalid_documents_are_errors(client: Client, server: ImageServer) -> None:
    server.files[PRODUCTS] = b"<html>"
    with pytest.raises(InvalidImage, match="is not JSON"):
        await client.find()
    server.write()
    assert await client.find(fresh=True)


def test_the_cache_is_swept(cache: StreamCache, tmp_path: Path) -> None:
    source = RemoteSource("https://a", "simplestreams", "x")
    cache.write(source, "old", b"1")
    (old,) = (tmp_path / "cache").iterdir()
    os.utime(old, (0, 0))
    cache.write(source, "recent", b"2")
    (tmp_path / "cache" / ".new-1").touch()
    cache.sweep()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    cache.sweep(at_start=True)
    assert cache.read(source, "old") is None
    assert [path.name[:1] for path in (tmp_path / "cache").iterdir()] != ["."]
