"""The interfaces and addresses of a network namespace, read by netlink dumps."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator
from typing import Any

_GETLINK, _NEWLINK = 18, 16
_GETADDR, _NEWADDR = 22, 20
_DONE, _ERROR = 3, 2
_REQUEST, _REQUEST_DUMP = 0x1, 0x1 | 0x300
_BUFFER = 1 << 16
"""Receive buffer size in bytes; the kernel uses at most half of it for one message of a dump."""

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_STATS64 = 1, 3, 4, 5, 23
_OF_LINK = frozenset((_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_STATS64))
_OF_PEER = frozenset((_IFLA_IFNAME, _IFLA_LINK))
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_OF_ADDRESS = frozenset((_IFA_ADDRESS, _IFA_LOCAL))
_IFF_UP, _IFF_BROADCAST, _IFF_LOOPBACK, _IFF_POINTOPOINT = 0x1, 0x2, 0x8, 0x10
_SCOPES = {0: "global", 253: "link", 254: "local"}
_FAMILIES = {socket.AF_INET: "inet", socket.AF_INET6: "inet6"}

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_STATS64 = struct.Struct("=8Q")

_WITHOUT_COUNTERS = struct.pack("=HHI", 8, 29, 1 << 3)
"""The attribute IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS."""

Interface = dict[str, Any]


def connect() -> socket.socket:
    """Open a socket, which stays in the network namespace in which it was created."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        sock.bind((0, 0))
    except OSError:
        sock.close()
        raise
    return sock


def interfaces() -> list[Interface]:
    """Return every interface of this process's network namespace, with addresses and counters.

    Keys: name, index, peer (the index of the linked interface, or None), hwaddr, mtu, state, type,
    counters (name to number), addresses (family, address, netmask as prefix length, scope).
    """
    with connect() as sock:
        found = {link["index"]: link for link in map(parse_link, _dump(sock, _GETLINK, _NEWLINK)) if link}
        for payload in _dump(sock, _GETADDR, _NEWADDR):
            parsed = parse_address(payload)
            if parsed and parsed[0] in found:
                found[parsed[0]]["addresses"].append(parsed[1])
    return list(found.values())


def name_of_peer(sock: socket.socket, link: Interface) -> str:
    """Return the name of a veth's peer if it is in the namespace of `sock`; empty for all other links."""
    if link["peer"] is None:
        return ""
    body = _LINK.pack(0, 0, link["peer"], 0, 0) + _WITHOUT_COUNTERS
    sock.send(_HEADER.pack(_HEADER.size + len(body), _GETLINK, _REQUEST, 1, 0) + body)
    for kind, payload in parse_messages(sock.recv(_BUFFER)):
        attributes = parse_attributes(payload, _OF_PEER, _LINK.size) if kind == _NEWLINK else {}
        if _number(attributes.get(_IFLA_LINK)) == link["index"]:
            return _text(attributes.get(_IFLA_IFNAME, b""))
    return ""


def _dump(sock: socket.socket, request: int, answer: int) -> Iterator[bytes]:
    """Yield the payloads of one dump."""
    body = bytes(_LINK.size if request == _GETLINK else _ADDRESS.size)
    sock.send(_HEADER.pack(_HEADER.size + len(body), request, _REQUEST_DUMP, 1, 0) + body)
    while True:
        for kind, payload in parse_messages(sock.recv(_BUFFER)):
            if kind == answer:
                yield payload
            elif kind == _ERROR:
                number = -struct.unpack_from("=i", payload)[0]
                raise OSError(number, "netlink dump failed")
            elif kind == _DONE:
                return


def parse_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and payload of each netlink message, stopping at a truncated or malformed one."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def parse_attributes(data: bytes, wanted: Collection[int], offset: int = 0) -> dict[int, bytes]:
    """Return the attributes of the `wanted` types, starting at `offset`; a link has dozens of others."""
    found: dict[int, bytes] = {}
    end, header = len(data), _ATTRIBUTE.unpack_from
    missing = len(wanted)
    while missing and offset + 4 <= end:
        length, kind = header(data, offset)
        if length < 4 or offset + length > end:
            break
        kind &= 0x3FFF
        if kind in wanted:
            found[kind] = data[offset + 4 : offset + length]
            missing = len(wanted) - len(found)
        offset += (length + 3) & ~3
    return found


def parse_link(payload: bytes) -> Interface | None:
    if len(payload) < _LINK.size:
        return None
    _family, _type, index, flags, _change = _LINK.unpack_from(payload)
    attributes = parse_attributes(payload, _OF_LINK, _LINK.size)
    name = _text(attributes.get(_IFLA_IFNAME, b""))
    if not name:
        return None
    return {
        "name": name,
        "index": index,
        "peer": _number(attributes.get(_IFLA_LINK)),
        "hwaddr": _hwaddr(attributes.get(_IFLA_ADDRESS, b""), flags),
        "mtu": _number(attributes.get(_IFLA_MTU)) or 0,
        "state": "up" if flags & _IFF_UP else "down",
        "type": _type_of(flags),
        "counters": _counters(attributes.get(_IFLA_STATS64, b"")),
        "addresses": [],
    }


def parse_address(payload: bytes) -> tuple[int, dict[str, str]] | None:
    """Return the index of the interface and its address; None for families that are not shown."""
    if len(payload) < _ADDRESS.size:
        return None
    family, prefix, _flags, scope, index = _ADDRESS.unpack_from(payload)
    attributes = parse_attributes(payload, _OF_ADDRESS, _ADDRESS.size)
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS) or b""
    if len(raw) != {socket.AF_INET: 4, socket.AF_INET6: 16}.get(family):
        return None
    return index, {
        "family": _FAMILIES[family],
        "address": socket.inet_ntop(family, raw),
        "netmask": str(prefix),
        "scope": _SCOPES.get(scope, "global"),
    }


def _number(raw: bytes | None) -> int | None:
    return int(struct.unpack("=I", raw)[0]) if raw is not None and len(raw) == 4 else None


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _hwaddr(raw: bytes, flags: int) -> str:
    return "" if flags & _IFF_LOOPBACK or len(raw) > 20 else raw.hex(":")


def _type_of(flags: int) -> str:
    if flags & _IFF_LOOPBACK:
        return "loopback"
    if flags & _IFF_POINTOPOINT:
        return "point-to-point"
    return "broadcast" if flags & _IFF_BROADCAST else "unknown"


def _counters(raw: bytes) -> dict[str, int]:
    values = _STATS64.unpack_from(raw) if len(raw) >= _STATS64.size else (0,) * 8
    return {
        "packets_received": values[0],
        "packets_sent": values[1],
        "bytes_received": values[2],
        "bytes_sent": values[3],
        "errors_received": values[4],
        "errors_sent": values[5],
        "packets_dropped_inbound": values[6],
        "packets_dropped_outbound": values[7],
    }
