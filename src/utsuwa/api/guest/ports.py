"""The connections of instances to the guest API.

A connection belongs to the instance on whose socket it was accepted, also if the instance passes it on. The
kernel has recorded which user inside has opened it: only the instance's root gets more than an error.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from utsuwa.api.guest.allowance import Allowance, Limits
from utsuwa.api.guest.application import GuestApplication
from utsuwa.api.guest.http import failure
from utsuwa.core.refs import InstanceRef
from utsuwa.httpd.protocol import WatchedServer
from utsuwa.instances.guest.manager import GuestManager
from utsuwa.instances.model import Running

log = logging.getLogger(__name__)

_ACCEPTS_A_TURN = 8
_PAUSE = 1.0
"""Seconds to stop accepting after the host ran out of descriptors or memory."""
_LINGERING = 2.0
_UCRED = struct.Struct("3i")


class GuestPorts:
    """Serves the guest API to all running instances."""

    def __init__(self, guest: GuestManager, limits: Limits | None = None) -> None:
        self._guest = guest
        self._limits = limits or Limits()
        self._ports: dict[InstanceRef, GuestPort] = {}
        guest.sockets.on_close(self._stop)
        guest.runtime.listen(self._follow)
        for running in guest.runtime.all():
            self._follow(running, True)

    async def close(self) -> None:
        """Close all sockets and connections, when the daemon ends."""
        closing = [port.closed() for port in self._ports.values()]
        self._guest.sockets.close_all()
        await asyncio.gather(*closing)

    def _follow(self, running: Running, present: bool) -> None:
        ref = running.ref
        listening = self._guest.sockets.get(ref)
        if not present:
            self._stop(ref)
        elif listening is not None and ref not in self._ports:
            allowance = Allowance(self._limits)
            application = GuestApplication(self._guest, ref, allowance)
            self._ports[ref] = GuestPort(listening, running.idmap.host_uid(0), application, allowance)

    def _stop(self, ref: InstanceRef) -> None:
        port = self._ports.pop(ref, None)
        if port is not None:
            port.close()


@dataclass
class _Connection:
    trusted: bool
    transport: asyncio.Transport | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class GuestPort:
    """Accepts connections to the socket of one instance, whose root has the id `owner` on the host."""

    def __init__(
        self, listening: socket.socket, owner: int, application: GuestApplication, allowance: Allowance
    ) -> None:
        self._socket = listening
        self._owner = owner
        self._application = application
        self._allowance = allowance
        self._loop = asyncio.get_running_loop()
        limits = allowance.limits
        self._server = WatchedServer(
            self._served, self._begun, self._ended, idle=limits.idle, lingering=_LINGERING
        )
        self._connections: dict[Any, _Connection] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._full = False
        self._closed = False
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Stop accepting, and abort all connections; the socket is closed by its owner."""
        self._closed = True
        self._loop.remove_reader(self._socket)
        if self._pause is not None:
            self._pause.cancel()
        for connection in list(self._connections.values()):
            if connection.transport is not None:
                connection.transport.abort()

    async def closed(self) -> None:
        """Wait until requests have been aborted."""
        await asyncio.gather(*self._opening, return_exceptions=True)
        await self._server.shutdown(0)

    def _accept(self) -> None:
        limits = self._allowance.limits
        for _ in range(_ACCEPTS_A_TURN):
            if len(self._connections) >= limits.connections:
                self._full = True
                self._loop.remove_reader(self._socket)  # until one has ended
                return
            if delay := self._allowance.rate.delay():
                self._accept_later(delay)
                return
            try:
                new, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("cannot accept connections of instances: %s", error)
                self._accept_later(_PAUSE)
                return
            self._allowance.rate.take()
            self._begin(new)

    def _accept_later(self, delay: float) -> None:
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(delay, self._accept_again)

    def _accept_again(self) -> None:
        self._pause = None
        if not self._closed:
            self._loop.add_reader(self._socket, self._accept)

    def _begin(self, new: socket.socket) -> None:
        _, uid, _ = _UCRED.unpack(new.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        trusted = uid == self._owner
        strangers = sum(not connection.trusted for connection in self._connections.values())
        if not trusted and strangers >= self._allowance.limits.strangers:
            new.close()
            return
        new.setblocking(False)
        handler = self._server()
        self._connections[handler] = _Connection(trusted)
        task = self._loop.create_task(self._connect(new, handler), name="connection of an instance")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, new: socket.socket, handler: web.RequestHandler) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: handler, new)
        except OSError as error:
            log.debug("a connection of an instance failed: %s", error)
            new.close()
            self._ended(handler)

    def _begun(self, handler: Any, transport: asyncio.Transport) -> None:
        self._connections[handler].transport = transport
        if self._closed:
            transport.abort()

    def _ended(self, handler: Any) -> None:
        connection = self._connections.pop(handler, None)
        if connection is not None:
            connection.gone.set()
        if self._full:
            self._full = False
            self._accept_again()

    async def _served(self, raw: web.BaseRequest) -> web.StreamResponse:
        connection = self._connections.get(raw.protocol)
        if connection is None or connection.transport is None:
            raise ConnectionResetError("the instance has disconnected")
        if not connection.trusted:
            response: web.StreamResponse = failure(401, "Access denied for non-root user")
            response.force_close()
            return response
        try:
            return await self._application.handle(raw, connection.gone)
        except TimeoutError:
            connection.transport.abort()
            raise ConnectionResetError("the instance does not take its reply") from None
