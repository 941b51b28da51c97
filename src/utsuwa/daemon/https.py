"""The HTTPS listener of the API, which can change its address while requests are running."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from utsuwa.api.protocol import Handle
from utsuwa.core.errors import InvalidConfig
from utsuwa.daemon.tls_port import Limits, TlsPort
from utsuwa.security.certificates import TrustStore

log = logging.getLogger(__name__)

HTTPS_ADDRESS = "core.https_address"
DEFAULT_PORT = 8443
RETRY_SECONDS = 10
"""Seconds between attempts to listen at an address that was not available at start-up."""
_BACKLOG = 1024


def parse_address(text: str) -> tuple[str, int]:
    """Parse `core.https_address` into host (empty for all addresses) and port.

    Accepts `host`, `host:port`, `:port`, `[v6]`, `[v6]:port` and a bare IPv6 address. Raises InvalidConfig.
    """
    host, port = _split(text.strip())
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise InvalidConfig(f"Invalid port {port[:20]!r} in {HTTPS_ADDRESS} {text[:80]!r}: use 0 to 65535")
    if any(c.isspace() or not c.isprintable() or c in "/[]@" for c in host):
        raise InvalidConfig(f"Invalid host in {HTTPS_ADDRESS} {text[:80]!r}: use a name or an IP address")
    return host, int(port)


def _split(text: str) -> tuple[str, str]:
    default = str(DEFAULT_PORT)
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise InvalidConfig(f"Invalid {HTTPS_ADDRESS} {text[:80]!r}: use [address]:port for IPv6")
        return host, rest[1:] if rest else default
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv6Address(text)), default
    host, found, port = text.rpartition(":")
    if ":" in host:
        raise InvalidConfig(f"Invalid {HTTPS_ADDRESS} {text[:80]!r}: use [address]:port for IPv6")
    return (host, port) if found else (text, default)


@dataclass(frozen=True)
class _Endpoint:
    """The address of a socket: its family, and the address for `bind`."""

    family: socket.AddressFamily
    address: tuple[Any, ...]

    @property
    def port(self) -> int:
        return int(self.address[1])


async def _resolve(text: str) -> _Endpoint:
    """Resolve an address. Raises InvalidConfig on failure."""
    host, port = parse_address(text)
    if host in ("", "::"):
        return _every_address(port)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidConfig(f"Cannot resolve the host of {HTTPS_ADDRESS} {text[:80]!r}: {error}") from error
    family, _, _, _, address = found[0]
    return _Endpoint(family, tuple(address))


def _every_address(port: int) -> _Endpoint:
    """Return the wildcard address: a dual-stack socket, or IPv4 on hosts without IPv6."""
    if socket.has_dualstack_ipv6():
        return _Endpoint(socket.AF_INET6, ("::", port, 0, 0))
    return _Endpoint(socket.AF_INET, ("0.0.0.0", port))  # noqa: S104  requested explicitly


def _bind(endpoint: _Endpoint) -> socket.socket:
    """Create a listening socket. Raises OSError."""
    new = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        new.setblocking(False)
        new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if endpoint.family == socket.AF_INET6:
            new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(endpoint.address[0] != "::"))
        new.bind(endpoint.address)
        new.listen(_BACKLOG)
    except BaseException:
        new.close()
        raise
    return new


class HttpsListener:
    """Serves the API at `core.https_address`; `config_changed` is a listener of the server config."""

    def __init__(
        self,
        handle: Handle,
        make_context: Callable[[], ssl.SSLContext],
        trust: TrustStore,
        limits: Limits | None = None,
    ) -> None:
        """`make_context` is called in a thread, before the first connection."""
        self._handle = handle
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None
        self._trust = trust
        self._limits = limits or Limits()
        self._endpoint: _Endpoint | None = None
        self._port: TlsPort | None = None
        self._draining: set[TlsPort] = set()
        self._moving = asyncio.Lock()
        self._retrying: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """The current `host:port`; empty if it does not listen."""
        return self._port.address if self._port is not None else ""

    async def config_changed(self, changed: frozenset[str], config: Mapping[str, str]) -> None:
        if HTTPS_ADDRESS in changed:
            await self.listen(config.get(HTTPS_ADDRESS, ""))

    async def open(self, text: str) -> None:
        """Listen at the configured address. A failure (for example, because its network is not up yet) must
        not prevent the daemon from starting: it is logged and retried."""
        try:
            await self.listen(text)
        except InvalidConfig as error:
            log.error("%s; trying again every %d seconds", error, RETRY_SECONDS)
            self._retrying = asyncio.create_task(self._try_again(text))

    async def _try_again(self, text: str) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            with contextlib.suppress(InvalidConfig):
                await self.listen(text)
                return

    async def listen(self, text: str) -> None:
        """Listen at `text` only, or stop listening if it is empty.

        The old address is released when the new one is bound. Raises InvalidConfig, keeping the old one.
        """
        async with self._moving:
            await self._move(text)

    async def _move(self, text: str) -> None:
        if not text:
            self._use(None, None)
            return
        endpoint = await _resolve(text)
        if endpoint == self._endpoint and endpoint.port:
            return
        if self._context is None:
            self._context = await asyncio.to_thread(self._make_context)
        try:
            bound = self._bind_new(endpoint)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InvalidConfig(f"Cannot listen on {HTTPS_ADDRESS} {text[:80]!r}: {reason}") from error
        self._use(endpoint, bound)

    async def close(self, grace: float = 3) -> None:
        """Stop listening, and abort requests after `grace` seconds."""
        self._use(None, None)
        await asyncio.gather(*(port.finish(grace) for port in list(self._draining)))

    def _bind_new(self, endpoint: _Endpoint) -> socket.socket:
        """Bind in addition to the old socket, or replace it if the two overlap (`:8443`,
        `127.0.0.1:8443`)."""
        try:
            return _bind(endpoint)
        except OSError as error:
            old = self._endpoint
            if error.errno != errno.EADDRINUSE or old is None or old.port != endpoint.port:
                raise
        assert self._port is not None
        self._port.stop_accepting()
        try:
            return _bind(endpoint)
        except OSError:
            self._take_back(old)
            raise

    def _take_back(self, old: _Endpoint) -> None:
        assert self._port is not None
        try:
            self._port.accept_from(_bind(old))
        except OSError as error:
            log.error("lost the address %s: %s", self._port.address, error)
            self._use(None, None)

    def _use(self, endpoint: _Endpoint | None, bound: socket.socket | None) -> None:
        if self._retrying is not None and self._retrying is not asyncio.current_task():
            self._retrying.cancel()
        self._retrying = None
        old = self._port
        self._endpoint = endpoint
        self._port = None
        if bound is not None:
            assert self._context is not None
            self._port = TlsPort(
                self._handle, self._context, self._trust, self._limits, self._draining.discard
            )
            self._port.accept_from(bound)
            log.info("listening on %s", self._port.address)
        if old is not None:
            self._draining.add(old)
            old.retire()
            log.info("no longer listening on %s", old.address)
