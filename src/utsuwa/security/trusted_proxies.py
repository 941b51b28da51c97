"""The proxies of `core.https_trusted_proxy`, and the addresses of the clients that they have told."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

from utsuwa.security import proxy_header

KEY = "core.https_trusted_proxy"

Connection = tuple[Any, Any]
"""The addresses of both ends of a connection, as sockets know them."""


class TrustedProxies:
    """Whom to believe, and the clients' addresses of the connections that are open."""

    def __init__(self) -> None:
        self._trusted: frozenset[str] = frozenset()
        self._clients: dict[Connection, proxy_header.Address] = {}

    async def config_changed(self, changed: frozenset[str], config: Mapping[str, str]) -> None:
        """A listener of the server's config; connections that are open keep their addresses."""
        if KEY in changed:
            self.use(config.get(KEY, ""))

    def use(self, value: str) -> None:
        """Trust the addresses in the value of the key, which is valid."""
        self._trusted = frozenset(_plain(part.strip()) for part in value.split(",") if part.strip())

    def trusts(self, host: str) -> bool:
        return bool(self._trusted) and _plain(host) in self._trusted

    async def read(self, accepted: socket.socket) -> str | None:
        """Read what a trusted proxy tells of a new, non-blocking connection, and remember it until `forget`.

        Returns the client's host; None if the proxy connects by itself, with or without a header. Raises
        ValueError for a broken header, and OSError if the connection ends.
        """
        loop = asyncio.get_running_loop()

        async def receive(count: int) -> bytes:
            data = b""
            while len(data) < count:
                part = await loop.sock_recv(accepted, count - len(data))
                if not part:
                    raise ConnectionResetError("the proxy has disconnected")
                data += part
            return data

        await _readable(accepted)
        first = accepted.recv(1, socket.MSG_PEEK)
        if first not in (proxy_header.TEXT, proxy_header.BINARY):
            return None
        client = await proxy_header.read_header(first, receive)
        if client is None:
            return None
        self._clients[accepted.getpeername(), accepted.getsockname()] = client
        return client[0]

    def peername(self, transport: asyncio.BaseTransport) -> Any:
        """Return the address of the client of a connection, as told by its proxy if there is one."""
        peer = transport.get_extra_info("peername")
        if not self._clients:
            return peer
        return self._clients.get((peer, transport.get_extra_info("sockname")), peer)

    def forget(self, connection: Connection) -> None:
        self._clients.pop(connection, None)


def ends_of(connection: socket.socket | asyncio.BaseTransport) -> Connection:
    """Return the key of an open connection for `forget`."""
    if isinstance(connection, socket.socket):
        return connection.getpeername(), connection.getsockname()
    return connection.get_extra_info("peername"), connection.get_extra_info("sockname")


def _plain(host: str) -> str:
    """Return the one form of an address; dual-stack sockets show IPv4 as `::ffff:192.0.2.1`."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


async def _readable(waiting: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(waiting, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(waiting)
