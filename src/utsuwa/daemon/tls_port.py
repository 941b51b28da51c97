"""A TLS port and its connections; untrusted clients cannot exhaust the connections of trusted ones."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from utsuwa.core.client_networks import network_of
from utsuwa.core.keepalive import keep_alive
from utsuwa.httpd.protocol import Handle, WatchedServer
from utsuwa.security.trust_store import TrustStore, format_address, host_of
from utsuwa.security.trusted_proxies import Connection, ends_of

log = logging.getLogger(__name__)

_ACCEPTS_A_TURN = 64
_PAUSE = 0.5
"""Seconds to stop accepting after the host ran out of descriptors or memory."""


@dataclass(frozen=True)
class Limits:
    """Limits of connections' time and number."""

    handshake: float = 10
    """Seconds for the complete handshake."""
    first_request: float = 30
    """Seconds after the handshake until the head of the first request."""
    goodbye: float = 5
    """Seconds to wait for the peer's close_notify."""
    strangers: int = 1024
    """Maximum number of connections in their handshake or without a trusted certificate."""
    strangers_of_one: int = 256
    """The same per address (/64 for IPv6)."""
    all: int = 4096


@dataclass
class _Connection:
    """One connection after its handshake."""

    network: str
    ends: Connection
    stranger: bool
    deadline: asyncio.TimerHandle
    busy: bool = False
    """Whether a request or a websocket is being handled."""


class TlsPort:
    """Accepts connections of a bound socket until retired; then its connections end with their requests."""

    def __init__(
        self,
        handle: Handle,
        context: ssl.SSLContext,
        trust: TrustStore,
        limits: Limits,
        drained: Callable[[TlsPort], None],
    ) -> None:
        """`drained` is called when a retired port has closed its last connection."""
        self._handle = handle
        self._context = context
        self._trust = trust
        self._limits = limits
        self._drained = drained
        self._loop = asyncio.get_running_loop()
        self._server = WatchedServer(self._served, self._begun, self._ended)
        self._socket: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._handshakes: set[asyncio.Task[Any]] = set()
        self._closings: list[asyncio.Task[None]] = []
        self._connections: dict[Any, _Connection] = {}
        self._strangers: Counter[str] = Counter()
        self._retired = False
        self.address = ""

    def accept_from(self, bound: socket.socket) -> None:
        """Use a non-blocking listening socket."""
        self._socket = bound
        self.address = format_address(bound.getsockname())
        self._loop.add_reader(bound, self._accept)

    def stop_accepting(self) -> None:
        """Release the address at once; connections are kept."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def retire(self) -> None:
        """Stop accepting, abort handshakes, close idle connections; requests and websockets continue."""
        self.stop_accepting()
        self._retired = True
        for handshake in self._handshakes:
            handshake.cancel()
        for handler, connection in self._connections.items():
            if not connection.busy:  # aiohttp discards what a closed one still receives
                handler.close()  # stops waiting for further requests, but keeps the connection open
                self._closings.append(self._loop.create_task(handler.shutdown(None)))
        self._tell_when_drained()

    async def finish(self, grace: float) -> None:
        """After `retire`: wait `grace` seconds for requests, then abort them."""
        for closing in self._closings:
            closing.cancel()
        await asyncio.gather(*self._handshakes, *self._closings, return_exceptions=True)
        await self._server.shutdown(grace)

    def _accept(self) -> None:
        assert self._socket is not None
        for _ in range(_ACCEPTS_A_TURN):
            try:
                new, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("cannot accept connections on %s: %s", self.address, error)
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(_PAUSE, self._accept_again)
                return
            self._begin(new, str(address[0]))

    def _accept_again(self) -> None:
        self._pause = None
        if self._socket is not None:
            self._loop.add_reader(self._socket, self._accept)

    def _begin(self, new: socket.socket, host: str) -> None:
        handshake: asyncio.Task[Any]
        if self._trust.proxies.trusts(host):
            handshake = self._loop.create_task(self._ask_proxy(new))
        elif self._admit(host):
            handshake = self._loop.create_task(self._shake_hands(new, host))
        else:
            new.close()
            return
        self._handshakes.add(handshake)
        handshake.add_done_callback(self._handshake_over)

    def _admit(self, host: str) -> bool:
        """Count a stranger more, unless there are too many."""
        network = network_of(host)
        limits = self._limits
        if (
            len(self._connections) + len(self._handshakes) >= limits.all
            or self._strangers[network] >= limits.strangers_of_one
            or self._strangers.total() >= limits.strangers
        ):
            log.warning("too many connections on %s, refusing one from %s", self.address, host)
            return False
        self._strangers[network] += 1
        return True

    async def _ask_proxy(self, new: socket.socket) -> None:
        """Begin a connection of a trusted proxy, whose many clients are counted one by one."""
        host, _ = new.getpeername()[:2]
        ends = ends_of(new)
        begun = False
        try:
            new.setblocking(False)
            async with asyncio.timeout(self._limits.handshake):
                client = await self._trust.proxies.read(new)
            if self._admit(client or host):
                begun = await self._shake_hands(new, client or host)
        except (OSError, ValueError) as error:  # including the timeout
            log.warning("the proxy %s does not tell its client: %s", host, error)
        finally:
            if not begun:
                self._trust.proxies.forget(ends)
                new.close()

    async def _shake_hands(self, new: socket.socket, host: str) -> bool:
        """Do the handshake of an admitted client; return whether it has succeeded."""
        try:
            new.setblocking(False)
            keep_alive(new)
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                self._server,
                new,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake,
                ssl_shutdown_timeout=self._limits.goodbye,
            )
        except OSError as error:  # including TLS errors and timeouts
            log.debug("no TLS connection from %s: %s", host, error)
            new.close()
            return False
        except BaseException:
            new.close()
            raise
        finally:
            self._forget_stranger(network_of(host))
        return True

    def _handshake_over(self, task: asyncio.Task[Any]) -> None:
        self._handshakes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a TLS handshake failed", exc_info=error)
        self._tell_when_drained()

    def _begun(self, handler: Any, transport: asyncio.Transport) -> None:
        """Handle a completed handshake; the trust in its certificate is checked again on every request."""
        caller = self._trust.caller(transport)
        network = network_of(host_of(caller.address))
        if not caller.trusted:
            self._strangers[network] += 1
        deadline = self._loop.call_later(self._limits.first_request, transport.abort)
        self._connections[handler] = _Connection(network, ends_of(transport), not caller.trusted, deadline)

    async def _served(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._connections.get(request.protocol)
        if connection is None:  # it was closed before its request was handled
            raise ConnectionResetError("the client has disconnected")
        connection.deadline.cancel()
        connection.busy = True
        try:
            response = await self._handle(request)
        finally:
            connection.busy = False
        if self._retired:
            response.force_close()
        return response

    def _ended(self, handler: Any) -> None:
        connection = self._connections.pop(handler, None)
        if connection is not None:
            connection.deadline.cancel()
            self._trust.proxies.forget(connection.ends)
            if connection.stranger:
                self._forget_stranger(connection.network)
        self._tell_when_drained()

    def _forget_stranger(self, network: str) -> None:
        self._strangers[network] -= 1
        if not self._strangers[network]:
            del self._strangers[network]

    def _tell_when_drained(self) -> None:
        if self._retired and not self._connections and not self._handshakes:
            self._drained(self)
