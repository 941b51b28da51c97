"""TCP connections whose peers may vanish without a word, such as by a loss of power."""

from __future__ import annotations

import socket

_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


def keep_alive(connection: socket.socket) -> None:
    """Have the end of an idle connection be noticed within two minutes. Raises OSError."""
    for level, option, value in _OPTIONS:
        connection.setsockopt(level, option, value)
