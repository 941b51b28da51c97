"""The HTTPS listeners, which can change their addresses while requests are running."""

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
from functools import partial
from typing import Any

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.warning_types import (
    DEBUG_UNAVAILABLE,
    HTTPS_UNAVAILABLE,
    METRICS_UNAVAILABLE,
    WarningType,
)
from utsuwa.daemon.tls_port import Limits, TlsPort
from utsuwa.httpd.protocol import Handle
from utsuwa.operations.retries import Retries
from utsuwa.operations.warnings import Warnings
from utsuwa.security.trust_store import TrustStore

log = logging.getLogger(__name__)

_BACKLOG = 1024


@dataclass(frozen=True)
class AddressKey:
    """A key of the server's config with the address of a listener."""

    name: str
    default_port: int
    unavailable: WarningType
    """Raised while the configured address cannot be used."""


API_ADDRESS = AddressKey("core.https_address", 8443, HTTPS_UNAVAILABLE)
METRICS_ADDRESS = AddressKey("core.metrics_address", 9100, METRICS_UNAVAILABLE)
DEBUG_ADDRESS = AddressKey("core.debug_address", 8444, DEBUG_UNAVAILABLE)


def parse_address(key: AddressKey, text: str) -> tuple[str, int]:
    """Parse the value of a key into host (empty for all addresses) and port.

    Accepts `host`, `host:port`, `:port`, `[v6]`, `[v6]:port` and a bare IPv6 address. Raises InvalidConfig.
    """
    host, port = _split(key, text.strip())
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise InvalidConfig(f"Invalid port {port[:20]!r} in {key.name} {text[:80]!r}: use 0 to 65535")
    if any(c.isspace() or not c.isprintable() or c in "/[]@" for c in host):
        raise InvalidConfig(f"Invalid host in {key.name} {text[:80]!r}: use a name or an IP address")
    return host, int(port)


def _split(key: AddressKey, text: str) -> tuple[str, str]:
    default = str(key.default_port)
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise InvalidConfig(f"Invalid {key.name} {text[:80]!r}: use [address]:port for IPv6")
        return host, rest[1:] if rest else default
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv6Address(text)), default
    host, found, port = text.rpartition(":")
    if ":" in host:
        raise InvalidConfig(f"Invalid {key.name} {text[:80]!r}: use [address]:port for IPv6")
    return (host, port) if found else (text, default)


@dataclass(frozen=True)
class _Endpoint:
    """The address of a socket: its family, and the address for `bind`."""

    family: socket.AddressFamily
    address: tuple[Any, ...]

    @property
    def port(self) -> int:
        return int(self.address[1])


async def _resolve(key: AddressKey, text: str) -> _Endpoint:
    """Resolve an address. Raises InvalidConfig on failure."""
    host, port = parse_address(key, text)
    if host in ("", "::"):
        return _every_address(port)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidConfig(f"Cannot resolve the host of {key.name} {text[:80]!r}: {error}") from error
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
    """Serves requests at the address of a key; `config_changed` is a listener of the server config."""

    def __init__(
        self,
        key: AddressKey,
        handle: Handle,
        make_context: Callable[[], ssl.SSLContext],
        trust: TrustStore,
        warnings: Warnings,
        retries: Retries,
        limits: Limits | None = None,
    ) -> None:
        """`make_context` is called in a thread, before the first connection."""
        self.key = key
        self._handle = handle
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None
        self._trust = trust
        self._warnings = warnings
        self._retries = retries
        self._limits = limits or Limits()
        self._endpoint: _Endpoint | None = None
        self._port: TlsPort | None = None
        self._draining: set[TlsPort] = set()
        self._moving = asyncio.Lock()

    @property
    def address(self) -> str:
        """The current `host:port`; empty if it does not listen."""
        return self._port.address if self._port is not None else ""

    async def config_changed(self, changed: frozenset[str], config: Mapping[str, str]) -> None:
        if self.key.name in changed:
            await self.listen(config.get(self.key.name, ""))

    async def open(self, text: str) -> None:
        """Listen at the configured address. A failure (for example, because its network is not up yet) must
        not prevent the daemon from starting: it is a warning, and retried."""
        await self._retries.begin(self.key.name, partial(self._try, text))

    async def _try(self, text: str) -> bool:
        async with self._moving:
            try:
                await self._move(text)
            except InvalidConfig as error:
                self._warnings.report(self.key.unavailable, f"{error}; it is tried again")
                return False
        return True

    async def listen(self, text: str) -> None:
        """Listen at `text` only, or stop listening if it is empty.

        The old address is released when the new one is bound. Raises InvalidConfig, keeping the old one.
        """
        self._retries.drop(self.key.name)
        async with self._moving:
            await self._move(text)

    async def _move(self, text: str) -> None:
        if not text:
            self._use(None, None)
            return
        endpoint = await _resolve(self.key, text)
        if endpoint == self._endpoint and endpoint.port:
            return
        if self._context is None:
            self._context = await asyncio.to_thread(self._make_context)
        try:
            bound = self._bind_new(endpoint)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InvalidConfig(
                f"Cannot listen on {self.key.name} {text[:80]!r}: {reason}: use an address of this host and "
                "a port that is not in use"
            ) from error
        self._use(endpoint, bound)

    async def close(self, grace: float = 3) -> None:
        """Stop listening, and abort requests after `grace` seconds."""
        self._retries.drop(self.key.name)
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
            lost = f"lost the address {self._port.address}: {error}"
            self._use(None, None)
            self._warnings.report(self.key.unavailable, lost)

    def _use(self, endpoint: _Endpoint | None, bound: socket.socket | None) -> None:
        self._warnings.resolve(self.key.unavailable)
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
