"""The unix socket, created with its final owner and mode, and the credentials of its peers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import grp
import os
import pwd
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from utsuwa.core.errors import HostError
from utsuwa.core.warning_types import NO_SOCKET_GROUP
from utsuwa.httpd.protocol import Handle, HttpServer
from utsuwa.operations.warnings import Warnings
from utsuwa.security.authorization import Caller, unix_caller

DEFAULT_GROUP = "utsuwa"
_BACKLOG = 1024
_UCRED = struct.Struct("3i")


def socket_group(wanted: str | None) -> int | None:
    """Return the id of the group that may use the socket, None for root only.

    The default group need not exist. Raises HostError if a `wanted` group does not exist.
    """
    try:
        return grp.getgrnam(wanted or DEFAULT_GROUP).gr_gid
    except KeyError:
        if wanted:
            raise HostError(f"The group {wanted!r} does not exist: create it or use another one") from None
        return None


def bind_unix(path: Path, group: int | None, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Return a listening socket at `path`, replacing a stale one; the caller holds the daemon's lock.

    It is renamed to `path` after setting its owner and mode. Raises HostError.
    """
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        previous = os.umask(0o177)
        try:
            listener.bind(str(new))
        finally:
            os.umask(previous)
        if group is not None:
            _allow(new, group)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        new.rename(path)
    except OSError as error:
        listener.close()
        raise HostError(f"Cannot listen on {path}: {error}") from error
    return listener


async def judge_group(warnings: Warnings, path: Path, wanted: str | None) -> bool:
    """Warn if the group of the socket at `path` does not exist; when it does, let it use the socket.

    Returns whether the group exists.
    """
    group = await asyncio.to_thread(socket_group, wanted)
    if group is None:
        if not warnings.is_raised(NO_SOCKET_GROUP):
            warnings.report(
                NO_SOCKET_GROUP,
                f"the group {DEFAULT_GROUP!r} does not exist, so only root can use the unix socket: "
                "create it, or use --group",
            )
        return False
    await asyncio.to_thread(_allow, path, group)
    warnings.resolve(NO_SOCKET_GROUP)
    return True


def _allow(path: Path, group: int) -> None:
    os.chown(path, 0 if os.geteuid() == 0 else -1, group)
    path.chmod(0o660)


class UnixListener:
    """Serves requests on a bound unix socket until it is closed.

    The socket's file is removed then, unless the socket was passed by systemd (`ours` is False).
    """

    def __init__(self, path: Path, bound: socket.socket, server: HttpServer, *, ours: bool) -> None:
        self._path = path
        self._bound = bound
        self._ours = ours
        self._server = server
        self._listening: asyncio.Server | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        # Since Python 3.13 a server removes its socket's file by itself, even one held by systemd.
        kept: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._listening = await loop.create_unix_server(
            self._server, sock=self._bound, backlog=_BACKLOG, **kept
        )

    @property
    def is_open(self) -> bool:
        return self._listening is not None

    def answer_with(self, handle: Handle) -> None:
        """Use another handler for new connections."""
        self._server.request_handler = handle

    def stop_accepting(self) -> None:
        """Stop accepting connections; may be called more than once."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._ours:
            _remove(self._path)

    async def close(self, grace: float = 3) -> None:
        """Stop; requests are aborted after `grace` seconds."""
        self.stop_accepting()
        self._bound.close()
        self._server.pre_shutdown()
        await self._server.shutdown(grace)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def unix_peer(transport: asyncio.BaseTransport) -> Caller | None:
    """Return the peer of a unix connection by its credentials; None for other transports."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(data)
    return unix_caller(uid, _user_name(uid))


@functools.lru_cache(maxsize=64)
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
