"""The kernel's events of host interfaces that appear, become free or are renamed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

Listener = Callable[[str | None], None]
"""Called with the name of an interface that has changed; None if any may have changed."""

_GROUPS = 0x1 | 0x10 | 0x100
"""Changes of links, of IPv4 addresses and of IPv6 addresses (RTMGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR)."""
_NEWLINK, _DELADDR = 16, 21
_IFNAME, _MASTER = 3, 10
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ATTRIBUTE = struct.Struct("=HH")
_SIZE = 65536


class LinkEvents:
    """One netlink socket for all listeners, open only while there are any."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._socket: socket.socket | None = None

    def listen(self, listener: Listener) -> None:
        """Call `listener` for each interface that appears or may have become free. Raises OSError."""
        if self._socket is None:
            self._socket = _open()
            asyncio.get_running_loop().add_reader(self._socket, self._read)
        self._listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        """Remove `listener`; does nothing if it is not registered."""
        with contextlib.suppress(ValueError):
            self._listeners.remove(listener)
        if self._socket is not None and not self._listeners:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        """Read all pending messages: starting a container causes several."""
        names: set[str | None] = set()
        while self._socket is not None:
            try:
                names.update(changed(self._socket.recv(_SIZE)))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    log.error("no longer receiving changes of network interfaces: %s", error)
                    asyncio.get_running_loop().remove_reader(self._socket)
                    return
                names.add(None)  # the kernel has dropped messages
        for name in names:
            for listener in list(self._listeners):
                listener(name)


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        opened.setblocking(False)
        opened.bind((0, _GROUPS))
    except OSError:
        opened.close()
        raise
    return opened


def changed(messages: bytes) -> Iterator[str]:
    """Yield the interfaces in a netlink datagram that have no master or have lost an address."""
    start = 0
    while start + _HEADER.size <= len(messages):
        length, kind, *_ = _HEADER.unpack_from(messages, start)
        if length < _HEADER.size:
            return
        name = _name(kind, messages[start + _HEADER.size : start + length])
        if name:
            yield name
        start += _aligned(length)


def _name(kind: int, body: bytes) -> str:
    if kind == _NEWLINK and len(body) >= _LINK.size:
        attributes = dict(_attributes(body[_LINK.size :]))
        if _MASTER not in attributes:
            return attributes.get(_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    elif kind == _DELADDR and len(body) >= _ADDRESS.size:
        with contextlib.suppress(OSError):  # it has been removed meanwhile
            return socket.if_indextoname(_ADDRESS.unpack_from(body)[-1])
    return ""


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[start + _ATTRIBUTE.size : start + length]
        start += _aligned(length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
