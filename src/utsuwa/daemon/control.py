"""What the subcommands ask of a running daemon, over its unix socket."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import struct
import time
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.daemon.local_api import UnixConnection

_POLL = 0.05
_REPLY_SECONDS = 10.0


def ask(path: Path, method: str, url: str) -> tuple[int, str]:
    """The status of a request and the text of its error, if any. Raises OSError where nobody answers."""
    connection = UnixConnection(path, _REPLY_SECONDS)
    try:
        connection.request(method, url)
        reply = connection.getresponse()
        return reply.status, str(json.loads(reply.read()).get("error", ""))
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"no HTTP answer: {error}") from error
    finally:
        connection.close()


def wait_ready(path: Path, timeout: int) -> bool:
    """Poll until the daemon serves; False after `timeout` seconds (0 waits for ever)."""
    end = time.monotonic() + timeout if timeout > 0 else None
    while True:
        try:
            if ask(path, "GET", "/internal/ready")[0] == 200:
                return True
        except OSError:
            pass
        if end is not None and time.monotonic() >= end:
            return False
        time.sleep(_POLL)


def shutdown(path: Path, *, force: bool, timeout: int) -> bool:
    """Ask the daemon to stop its containers and itself, and wait until it is gone.

    False where it still runs after `timeout` seconds (0 waits for ever). Raises HostError where no daemon
    answers or it refuses.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with peer:
        try:
            peer.connect(str(path))
            pidfd = os.pidfd_open(_peer_pid(peer))
        except OSError as error:
            raise HostError(f"No daemon answers at {path}: {error.strerror}") from error
    try:
        query = f"force={'true' if force else 'false'}" + (f"&timeout={timeout}" if timeout > 0 else "")
        try:
            status, error_text = ask(path, "PUT", f"/internal/shutdown?{query}")
        except OSError as error:
            raise HostError(f"The daemon at {path} did not answer: {error}") from error
        if status != 200:
            raise HostError(f"The daemon refused to shut down: {error_text}")
        return _wait_exit(pidfd, timeout)
    finally:
        os.close(pidfd)


def _peer_pid(connected: socket.socket) -> int:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, _, _ = struct.unpack("3i", credentials)
    return int(pid)


def _wait_exit(pidfd: int, timeout: int) -> bool:
    ended, _, _ = select.select([pidfd], [], [], timeout if timeout > 0 else None)
    return bool(ended)
