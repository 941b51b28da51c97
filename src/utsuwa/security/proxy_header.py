"""The header with which a proxy tells its client's address: HAProxy's PROXY protocol, versions 1 and 2."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Awaitable, Callable

TEXT, BINARY = b"P", b"\r"
"""The first bytes of versions 1 and 2; TLS and HTTP begin with others."""

_LONGEST_LINE = 107
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = struct.Struct("!12sBBH")
_LONGEST_REST = 2048
"""Bytes of addresses and further fields that are accepted in version 2."""
_LOCAL, _PROXIED = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21
_ADDRESSES = {_TCP4: (socket.AF_INET, "!4s4sHH"), _TCP6: (socket.AF_INET6, "!16s16sHH")}

Receive = Callable[[int], Awaitable[bytes]]
"""Returns exactly as many bytes of a connection. Raises OSError when it has ended."""
Address = tuple[str, int]


async def read_header(first: bytes, receive: Receive) -> Address | None:
    """Read the header that begins with the byte `first`, which is not received yet, and nothing after it.

    Returns the client's host and port; None if the proxy does not know them, or connects by itself. Raises
    ValueError if it is not a header.
    """
    return await (_read_text(receive) if first == TEXT else _read_binary(receive))


async def _read_text(receive: Receive) -> Address | None:
    line = b""
    while not line.endswith(b"\r\n"):
        if len(line) == _LONGEST_LINE:
            raise ValueError("the line of a PROXY header is too long")
        line += await receive(1)  # what follows belongs to TLS
    match line.decode("ascii").split():
        case ["PROXY", "UNKNOWN", *_]:
            return None
        case ["PROXY", "TCP4", host, _, port, _]:
            return str(ipaddress.IPv4Address(host)), _port(port)
        case ["PROXY", "TCP6", host, _, port, _]:
            return str(ipaddress.IPv6Address(host)), _port(port)
        case _:
            raise ValueError("the line is not a PROXY header")


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise ValueError("the port in a PROXY header is not a number up to 65535")
    return int(text)


async def _read_binary(receive: Receive) -> Address | None:
    signature, command, family, length = _FIXED.unpack(await receive(_FIXED.size))
    if signature != _SIGNATURE or command not in (_LOCAL, _PROXIED) or length > _LONGEST_REST:
        raise ValueError("the bytes are not a PROXY header of version 2")
    rest = await receive(length) if length else b""
    if command == _LOCAL or family not in _ADDRESSES:
        return None
    kind, layout = _ADDRESSES[family]
    if len(rest) < struct.calcsize(layout):
        raise ValueError("the addresses in a PROXY header are incomplete")
    host, _, port, _ = struct.unpack_from(layout, rest)
    return socket.inet_ntop(kind, host), port
