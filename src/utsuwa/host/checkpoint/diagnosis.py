"""The kernel's modules that tell CRIU about sockets: whether each is available."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from utsuwa.host.helper.rtnetlink import parse_messages

_SOCK_DIAG = 4
"""The netlink protocol NETLINK_SOCK_DIAG."""
_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_ERROR = 2
_TIMEOUT = 5.0
_HEADER = struct.Struct("=IHHII")
_INET = struct.Struct("=BBxxI48x")
"""Family, protocol, the wanted states; then a socket's address, unset."""
_OTHERS = struct.Struct("=BB26x")
"""Family, protocol; then the wanted states or parts, none, which is long enough for all families."""
MODULES = {
    "unix_diag": _OTHERS.pack(socket.AF_UNIX, 0),
    "netlink_diag": _OTHERS.pack(socket.AF_NETLINK, 0),
    "af_packet_diag": _OTHERS.pack(socket.AF_PACKET, 0),
    "tcp_diag": _INET.pack(socket.AF_INET, socket.IPPROTO_TCP, 0),
    "udp_diag": _INET.pack(socket.AF_INET, socket.IPPROTO_UDP, 0),
    "raw_diag": _INET.pack(socket.AF_INET, socket.IPPROTO_RAW, 0),
}
"""With the question that each of them answers."""


def missing() -> list[str]:
    """Return those that the kernel neither has nor can load. Blocking.

    Asking has the kernel load them.
    """
    return list(_missing())


def _missing() -> Iterator[str]:
    for module, question in MODULES.items():
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as asked:
            asked.settimeout(_TIMEOUT)
            try:
                header = _HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _REQUEST_DUMP, 1, 0)
                asked.send(header + question)
                kind, payload = next(parse_messages(asked.recv(1 << 16)))
            except OSError:
                continue
            if kind == _ERROR and struct.unpack_from("=i", payload)[0] == -errno.ENOENT:
                yield module
