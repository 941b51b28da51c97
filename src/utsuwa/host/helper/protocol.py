"""Encoding of messages between daemon and helper: one packet of JSON with file descriptors.

Messages too large for a packet (arguments and environment may be megabytes) are passed in a memfd, whose
descriptor comes last.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

PACKET = 60_000
"""Maximum size of JSON in the packet itself, in bytes."""
LIMIT = 64 * 1024 * 1024
"""Maximum size of JSON in a memfd, in bytes."""
MAX_FDS = 8

_INLINE = b"J"
_IN_FILE = b"F"


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def send(sock: socket.socket, value: object, fds: Sequence[int] = ()) -> None:
    """Send one message. Raises OSError as `sendmsg` does. The descriptors stay open on this side."""
    data = encode(value)
    if len(data) <= PACKET:
        send_packet(sock, _INLINE + data, fds)
        return
    file = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        send_packet(sock, _IN_FILE, [*fds, file])
    finally:
        os.close(file)


def send_packet(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, decode: Callable[[bytes], Any] = json.loads) -> tuple[Any, list[int]] | None:
    """Receive a message and its descriptors (close-on-exec, to be closed by the caller); None at the end."""
    space = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    data, ancillary, _flags, _address = sock.recvmsg(PACKET + 1, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        return None
    if data[:1] == _INLINE:
        return decode(data[1:]), list(fds)
    file = fds.pop()
    try:
        return decode(os.pread(file, min(LIMIT, os.fstat(file).st_size), 0)), list(fds)
    finally:
        os.close(file)
