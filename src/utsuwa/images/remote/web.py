"""HTTP requests to other servers, with limits on everything that a server decides."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorSSLError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from yarl import URL

from utsuwa.core.errors import InvalidConfig, InvalidRequest, NotFound, TooLarge, Unavailable
from utsuwa.core.proxies import Proxies
from utsuwa.host.archives.formats import START
from utsuwa.images.behind import Behind
from utsuwa.images.intake import Intake
from utsuwa.images.remote.addresses import JudgingResolver
from utsuwa.version import __version__

MAX_REDIRECTS = 5
CONNECT_SECONDS = 30
STALL_SECONDS = 60
"""Seconds within which a server must send something, and `SLOWEST` bytes of a file."""
SLOWEST = 64 * 1024
_AHEAD = 2**20
"""Bytes that are received before they are asked for, or twice as many. aiohttp's own 64 KiB are less than
what one turn of the event loop brings, so it would stop receiving after each."""
LONG = 4 * 2**20
"""Bytes of a body that is worth being received past the HTTP client, which ends the connection."""
DOCUMENT_SECONDS = 120
"""Seconds that a document may take as a whole."""

_REDIRECTS = (301, 302, 303, 307, 308)
# Compressed bodies are refused: their size says nothing about what they become.
_HEADERS = {"User-Agent": f"Utsuwa/{__version__}", "Accept-Encoding": "identity"}


class Web:
    """A client for the servers of one download; to be entered before use.

    Without `plain_allowed`, all requests are by HTTPS: only a hash that was known before proves what comes by
    HTTP.
    """

    def __init__(
        self,
        proxies: Proxies,
        context: ssl.SSLContext,
        *,
        plain_allowed: bool = False,
        redirects: bool = True,
    ) -> None:
        self._proxies = proxies
        self._context = context
        self._plain_allowed = plain_allowed
        self._redirects = MAX_REDIRECTS if redirects else 0

    async def __aenter__(self) -> Self:
        self._resolver = JudgingResolver()
        self._session = ClientSession(
            connector=TCPConnector(ssl=self._context, resolver=self._resolver, use_dns_cache=False),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS),
            headers=_HEADERS,
            auto_decompress=False,
            read_bufsize=_AHEAD,
            max_line_size=16 * 1024,
            max_field_size=16 * 1024,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await asyncio.sleep(0)  # connections that were cut off are closed in the loop's next step

    async def document(self, url: URL, limit: int) -> bytes:
        """Return a document of at most `limit` bytes. Raises as `opened`, and TooLarge."""
        try:
            async with asyncio.timeout(DOCUMENT_SECONDS), self.opened(url) as response:
                if (response.content_length or 0) > limit:
                    raise _too_large(url, limit)
                data = bytearray()
                async for chunk in pieces(response):
                    data += chunk
                    if len(data) > limit:
                        raise _too_large(url, limit)
                return bytes(data)
        except TimeoutError:
            raise Unavailable(f"{shown(url)} was not received within {DOCUMENT_SECONDS} seconds") from None

    @contextlib.asynccontextmanager
    async def opened(
        self, url: URL, *, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[ClientResponse]:
        """Send a request, follow redirects, and give the reply with the status 200, whose body is to be read.

        Raises NotFound for the status 404, Unavailable for others and for servers that cannot be reached, and
        InvalidRequest for URLs and redirects that are not allowed.
        """
        with translated(url):
            response = await self._follow(method, url, headers or {})
        try:
            if response.status == 404:
                raise NotFound(f"{shown(url)} does not exist (404)")
            if response.status != 200:
                raise Unavailable(f"{shown(url)}: the server replied with the status {response.status}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise Unavailable(f"{shown(url)}: the server sends it compressed, which was not requested")
            yield response
        finally:
            _hang_up(response)

    async def _follow(self, method: str, url: URL, headers: Mapping[str, str]) -> ClientResponse:
        for count in range(self._redirects + 1):
            self._check(url)
            proxy = proxy_for(self._proxies, url)
            self._resolver.begin(url, redirected=count > 0, proxied=proxy is not None)
            response = await self._session.request(
                method, url, headers=headers, allow_redirects=False, proxy=proxy
            )
            if response.status not in _REDIRECTS:
                return response
            _hang_up(response)
            url = _redirected(url, response.headers.get("Location", ""))
        raise InvalidRequest(f"{shown(url)}: the server redirects more than {self._redirects} times")

    def _check(self, url: URL) -> None:
        if url.scheme == "https" or (url.scheme == "http" and self._plain_allowed):
            return
        if url.scheme == "http":
            raise InvalidRequest(
                f"{shown(url)} is not fetched: "
                "http is only allowed for images whose full fingerprint is given, use https"
            )
        raise InvalidRequest(f"Invalid URL {shown(url)!r}: use https")


def proxy_for(proxies: Proxies, url: URL) -> URL | None:
    """Return the proxy for requests to a URL, None to connect directly. Raises InvalidConfig."""
    text = proxies.find(url.scheme, url.host or "")
    if not text:
        return None
    try:
        proxy = URL(text)
    except ValueError:
        proxy = URL()
    if proxy.scheme not in ("http", "https") or not proxy.host:
        raise InvalidConfig(
            f"The proxy of core.proxy_{url.scheme} is not a URL such as http://proxy.example:3128"
        )
    return proxy


def _hang_up(response: ClientResponse) -> None:
    """Close a connection at once, unless all of the reply has been read.

    An orderly end of TLS would receive the rest of the reply, for as long as the server likes to send.
    """
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


def _redirected(url: URL, location: str) -> URL:
    """Return where a reply redirects to: to the same scheme, or from http to https. Raises InvalidRequest."""
    try:
        target = url.join(URL(location))
    except ValueError:
        target = URL()
    if not location or not target.host or target.user is not None:
        raise InvalidRequest(f"{shown(url)}: the server redirects to an invalid URL")
    if target.scheme != url.scheme and (url.scheme, target.scheme) != ("http", "https"):
        raise InvalidRequest(
            f"{shown(url)}: the server redirects to {target.scheme[:20]}, which is not allowed"
        )
    return target


class Pace:
    """Watches how fast a server sends."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._since, self._received = time.monotonic(), 0

    def add(self, count: int) -> None:
        """So many bytes more have come. Raises Unavailable if that took too long."""
        self._received += count
        now = time.monotonic()
        if self._received >= SLOWEST:
            self._since, self._received = now, 0
        elif now - self._since > STALL_SECONDS:
            raise _too_slow(self._url)


async def pieces(response: ClientResponse) -> AsyncIterator[bytes]:
    """Return the body of a reply. Raises Unavailable, also for a server that sends too slowly."""
    pace = Pace(response.url)
    with translated(response.url):
        # `iter_any` would copy all that has come into new memory.
        async for chunk, _ in response.content.iter_chunks():
            pace.add(len(chunk))
            yield chunk


class LongBody:
    """The body of a reply, whose length is known: the HTTP client receives the `first` pieces only.

    Both raise as `pieces`.
    """

    def __init__(self, response: ClientResponse, note: Callable[[int], object]) -> None:
        """`note` is called with the number of bytes of each piece."""
        self._response = response
        self._note = note

    @classmethod
    def of(cls, response: ClientResponse, note: Callable[[int], object]) -> LongBody | None:
        """Return the body of a reply, or None if its length is not known, or small."""
        length = response.content_length
        if length is None or length < LONG or "Transfer-Encoding" in response.headers:
            return None
        return cls(response, note)

    async def first(self) -> AsyncIterator[bytes]:
        """Yield what tells the format of a file, and what has come with it."""
        pace, received = Pace(self._response.url), 0
        with translated(self._response.url):
            while received < START and (data := await self._response.content.readany()):
                pace.add(len(data))
                self._note(len(data))
                received += len(data)
                yield data
            for data in self._taken():
                self._note(len(data))
                yield data

    def _taken(self) -> list[bytes]:
        """Have the client receive nothing more; return what it has received."""
        found = []
        self._pause()
        while data := self._response.content.read_nowait():
            found.append(data)
            self._pause()  # to take something away lets it receive more
        return found

    def _pause(self) -> None:
        connection = self._response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.pause_reading()

    async def rest(self, behind: Behind) -> None:
        """Receive the rest straight into buffers. Raises also what storing has raised."""
        left = (self._response.content_length or 0) - self._response.content.total_bytes
        if not left:
            return
        with translated(self._response.url):
            connection = self._response.connection
            transport = connection.transport if connection is not None else None
            if transport is None or transport.is_closing():
                raise ConnectionError(f"the connection has ended {left} bytes too early")
            intake = Intake(transport, left, behind, self._note)
        try:
            await intake.receive(STALL_SECONDS, SLOWEST)
        except OSError as error:
            if error is behind.error:  # which is not the server's
                raise
            if isinstance(error, TimeoutError):
                raise _too_slow(self._response.url) from None
            with translated(self._response.url):
                raise


def shown(url: URL) -> str:
    """Return a URL for messages, without secrets."""
    return str(url.with_user(None).with_query(None))[:300] if url.host else str(url)[:100]


def _too_slow(url: URL) -> Unavailable:
    return Unavailable(f"{shown(url)}: the server sends less than 1 KiB per second")


def _too_large(url: URL, limit: int) -> TooLarge:
    return TooLarge(f"{shown(url)} is larger than {limit // 2**20} MiB")


@contextlib.contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turn the errors of the HTTP client into those of the API."""
    try:
        yield
    except (ClientConnectorCertificateError, ClientConnectorSSLError) as error:
        reason = getattr(error, "certificate_error", None) or error
        raise Unavailable(f"{shown(url)}: the server's certificate is not accepted: {reason}") from error
    except TimeoutError as error:
        raise Unavailable(f"{shown(url)}: the server does not respond") from error
    except (ClientError, OSError) as error:
        raise Unavailable(f"{shown(url)}: {str(error) or type(error).__name__}") from error
