"""Release of DHCP leases on behalf of clients that are gone, to a server on this host. Blocking."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import struct

_BOOTREQUEST, _ETHERNET = 1, 1
_COOKIE = b"\x63\x82\x53\x63"
_MESSAGE_TYPE, _SERVER, _CLIENT, _END = 53, 54, 61, 255
_RELEASE = 7
_PORT = 67


def release_packet(server: str, address: str, mac: str, client_id: bytes = b"") -> bytes:
    """Return a DHCPRELEASE of `address` by the client with this MAC address and identifier."""
    head = struct.pack(
        "!BBBBIHH4s4s4s4s16s192x",
        _BOOTREQUEST,
        _ETHERNET,
        6,
        0,
        secrets.randbits(32),
        0,
        0,
        ipaddress.IPv4Address(address).packed,
        bytes(4),
        bytes(4),
        bytes(4),
        bytes.fromhex(mac.replace(":", "")),
    )
    options = bytes((_MESSAGE_TYPE, 1, _RELEASE, _SERVER, 4)) + ipaddress.IPv4Address(server).packed
    if client_id:
        options += bytes((_CLIENT, len(client_id))) + client_id
    return head + _COOKIE + options + bytes((_END,))


def release(interface: str, server: str, address: str, mac: str, client_id: bytes = b"") -> None:
    """Release the address at the server `server` on `interface`. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # The server accepts only packets from its interface, although this one never leaves the host.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        sock.sendto(release_packet(server, address, mac, client_id), (server, _PORT))


_SERVERS6 = "ff02::1:2"
_PORT6 = 547
_RELEASE6 = 8
_CLIENT6, _SERVER6, _IA_NA, _IA_TA, _ADDRESS6 = 1, 2, 3, 4, 5


def release6_packet(server: bytes, address: str, client: bytes, iaid: int, *, temporary: bool) -> bytes:
    """Return a DHCPv6 release of `address`; server and client are identified by their DUIDs."""
    leased = _option6(_ADDRESS6, ipaddress.IPv6Address(address).packed + bytes(8))
    number = iaid.to_bytes(4, "big")
    association = (
        _option6(_IA_TA, number + leased) if temporary else _option6(_IA_NA, number + bytes(8) + leased)
    )
    head = bytes((_RELEASE6,)) + secrets.token_bytes(3)
    return head + _option6(_CLIENT6, client) + _option6(_SERVER6, server) + association


def _option6(code: int, data: bytes) -> bytes:
    return struct.pack("!HH", code, len(data)) + data


def release6(interface: str, packet: bytes) -> None:
    """Send a release to the servers on `interface`, including the one on this host. Raises OSError."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendto(packet, (_SERVERS6, _PORT6, 0, socket.if_nametoindex(interface)))
