"""Messages between liblxc's monitor and a worker: `struct seccomp_notify_proxy_msg` and what follows it."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct

_HEAD = struct.Struct("=QiiHHH2xQ")
"""Reserved, pids of the monitor and of init, sizes of the kernel's three structures, length of the cookie."""
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
"""`struct seccomp_notif`: id, pid, flags, number of the call, architecture, instruction, arguments."""
_RESPONSE = struct.Struct("=QqiI")
"""`struct seccomp_notif_resp`: id, value, error, flags."""
_CONTINUE = 1
_ID_VALID = 0x40082102
_ADD_FD = 0x40182103
_ADDITION = struct.Struct("=QIIII")
"""`struct seccomp_notif_addfd`: id of the call, flags, descriptor here, number and flags there."""
_MAX_MESSAGE = 4096
_MAX_FDS = 3

Answer = tuple[int, int, int]
"""The errno (0 for success), the value that a successful call returns, and the flags of an answer."""
SUCCESS: Answer = (0, 0, 0)
CONTINUE: Answer = (0, 0, _CONTINUE)
"""Let the kernel perform the call as if it had not been intercepted."""


def failure(number: int) -> Answer:
    return number, 0, 0


def result(value: int) -> Answer:
    return 0, value, 0


class Notification:
    """A call that waits for an answer; `close` it."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        """Raises ValueError or struct.error if the message is not one of this version of liblxc."""
        self._fds = fds
        if len(fds) != _MAX_FDS:
            raise ValueError(f"{len(fds)} descriptors")
        self.process, self.memory, self._listener = fds
        """The caller's directory in /proc, and its memory."""
        _, _, self.init, request, response, _, cookie = _HEAD.unpack_from(data)
        if request < _NOTIFICATION.size or response < _RESPONSE.size:
            raise ValueError("the kernel's structures are too small")
        self._without_cookie = data[: _HEAD.size + request + response]
        if len(data) != len(self._without_cookie) + cookie:
            raise ValueError(f"{len(data)} bytes")
        self.cookie = data[len(self._without_cookie) :].rstrip(b"\0")
        """`lxc.seccomp.notify.cookie` of the container's configuration."""
        fields = _NOTIFICATION.unpack_from(data, _HEAD.size)
        self.id, self.pid, _, self.number, self.architecture, _, *self.arguments = fields
        self._response_at = _HEAD.size + request

    def waits(self) -> bool:
        """Return whether the caller still waits for an answer, so that all that was read was its own."""
        try:
            fcntl.ioctl(self._listener, _ID_VALID, struct.pack("=Q", self.id))
        except OSError:
            return False
        return True

    def give(self, fd: int) -> int:
        """Give the caller a copy of a descriptor, close-on-exec; return its number there.

        Raises OSError: EMFILE if it has too many, ENOENT if it does not wait any more.
        """
        addition = bytearray(_ADDITION.pack(self.id, 0, fd, 0, os.O_CLOEXEC))
        number: int = fcntl.ioctl(self._listener, _ADD_FD, addition)
        return number

    def reply(self, answer: Answer) -> bytes:
        """Return the message with an answer."""
        number, value, flags = answer
        message = bytearray(self._without_cookie)
        _RESPONSE.pack_into(message, self._response_at, self.id, value, -number, flags)
        return bytes(message)

    def close(self) -> None:
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def receive(connection: socket.socket) -> Notification | None:
    """Wait for the next call; None when the monitor has ended. Raises as `Notification`."""
    size = array.array("i").itemsize
    data, ancillary, _, _ = connection.recvmsg(
        _MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * size), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % size])
    if not data:
        return None
    try:
        return Notification(data, list(fds))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
