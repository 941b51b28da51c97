"""Announces the addresses of all interfaces of a network namespace to its neighbours.

Started in it as `python -S -E -I <this file>`. Switches and bridges learn from the frames where the MAC
addresses are now, neighbours to which of these IPv4 addresses belong. Uses nothing but the standard library's
core.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys

_SIOCGIFADDR, _SIOCGIFHWADDR, _SIOCGIFFLAGS = 0x8915, 0x8927, 0x8913
_UP, _LOOPBACK = 0x1, 0x8
_ETHERNET = 1
_ARP, _REQUEST = 0x0806, 1
_BROADCAST = b"\xff" * 6


def announcement(mac: bytes, address: bytes) -> bytes:
    """Return a gratuitous ARP request; with the address 0.0.0.0 it only tells where the MAC address is."""
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, _REQUEST, mac, address, bytes(6), address)
    return _BROADCAST + mac + struct.pack("!H", _ARP) + arp


def main() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])

            def ask(what: int, request: bytes = request) -> bytes:
                return fcntl.ioctl(asking, what, request)[16:]

            flags = struct.unpack("=H", ask(_SIOCGIFFLAGS)[:2])[0]
            kind, mac = struct.unpack("=H6s", ask(_SIOCGIFHWADDR)[:8])
            if kind != _ETHERNET or flags & _LOOPBACK or not flags & _UP:
                continue
            try:
                address = ask(_SIOCGIFADDR)[4:8]
            except OSError:  # it has none
                address = bytes(4)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sending:
                sending.bind((name, 0))
                sending.send(announcement(mac, address))
    return 0


if __name__ == "__main__":
    sys.exit(main())
