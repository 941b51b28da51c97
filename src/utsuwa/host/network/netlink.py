"""Requests to the kernel about interfaces, addresses and routes (rtnetlink). Blocking: call in threads.

Each request has a socket of its own, as opening one takes microseconds. All functions raise OSError with the
kernel's reason. The numbers are those of <linux/rtnetlink.h> and <linux/if_link.h>.
"""

from __future__ import annotations

import os
import socket
import struct

from utsuwa.host.helper.rtnetlink import connect, parse_attributes, parse_messages

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
CREATE = 0x400 | 0x200
"""The flags NLM_F_CREATE and NLM_F_EXCL: make something that must not exist."""

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
IFLA_PROTINFO, IFLA_NET_NS_PID = 12, 19
INFO_KIND, INFO_DATA = 1, 2
VETH_INFO_PEER = 1

UP, LOOPBACK = 0x1, 0x8
"""Flags of interfaces."""

LINK = struct.Struct("=BxHiII")
"""The head of a message about an interface: family, type, index, flags, mask of the flags to change."""

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_REASON = struct.Struct("=i")
_DONE, _ERROR = 3, 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_NESTED = 0x8000
_BUFFER = 1 << 16


# ---- requests


def ask(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Make one request; return the payload of its answer."""
    with connect() as sock:
        sock.send(_message(kind, body, _REQUEST | _ACK | flags))
        found, payload = next(parse_messages(sock.recv(_BUFFER)))
    if found == _ERROR:
        _judge(payload)
    return payload


def dump(kind: int, body: bytes) -> list[bytes]:
    """Return the payloads of all objects that a request with a GET asks for.

    The kernel ignores most of what `body` selects: the family is certain only if the kernel has it.
    """
    found: list[bytes] = []
    with connect() as sock:
        sock.send(_message(kind, body, _REQUEST | _DUMP))
        while True:
            for answer, payload in parse_messages(sock.recv(_BUFFER)):
                if answer in (_DONE, _ERROR):
                    _judge(payload)
                    return found
                found.append(payload)


def _message(kind: int, body: bytes, flags: int) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def _judge(payload: bytes) -> None:
    number = -_REASON.unpack_from(payload)[0]
    if number:
        raise OSError(number, os.strerror(number))


# ---- attributes


def attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    return attribute(kind, _NUMBER.pack(value))


def to_text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def to_number(raw: bytes) -> int:
    """Return an unsigned number of any size."""
    return int.from_bytes(raw, "little" if _NUMBER.pack(1)[0] else "big")


# ---- interfaces


def link(index: int = 0, flags: int = 0) -> bytes:
    """Return the head of a message about an interface, to set `flags` if there are any."""
    return LINK.pack(socket.AF_UNSPEC, 0, index, flags, flags)


def add_link(name: str, kind: str, *attributes: bytes, data: bytes = b"", up: bool = False) -> None:
    """Create an interface of a kind such as `bridge`; `data` are the attributes of that kind."""
    info = nested(IFLA_LINKINFO, text(INFO_KIND, kind), nested(INFO_DATA, data) if data else b"")
    body = link(flags=UP if up else 0) + text(IFLA_IFNAME, name) + b"".join(attributes) + info
    ask(NEWLINK, body, CREATE)


def set_link(index: int, *attributes: bytes, up: bool = False) -> None:
    """Change an interface."""
    ask(NEWLINK, link(index, UP if up else 0) + b"".join(attributes))


def set_port(index: int, *attributes: bytes) -> None:
    """Change a port of a bridge; the attributes are those of ports."""
    head = LINK.pack(socket.AF_BRIDGE, 0, index, 0, 0)
    ask(SETLINK, head + nested(IFLA_PROTINFO, *attributes))


def delete_link(index: int) -> None:
    """Delete an interface. Returns when the kernel has freed it."""
    ask(DELLINK, link(index))


def links() -> list[bytes]:
    """Return a message about each interface."""
    return dump(GETLINK, link())


def link_attributes(message: bytes, *wanted: int) -> dict[int, bytes]:
    """Return attributes of a message about an interface."""
    return parse_attributes(message, wanted, LINK.size)
