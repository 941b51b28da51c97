"""Requests of the subcommands to a running daemon, over its unix socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import time
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths
from utsuwa.daemon import state_lock
from utsuwa.daemon.local_api import UnixConnection

_POLL = 0.05
_REPLY_SECONDS = 10.0


def ask(path: Path, method: str, url: str, seconds: float = _REPLY_SECONDS) -> tuple[int, str]:
    """Send a request; return its status and error message, if any. Raises OSError if there is no response."""
    connection = UnixConnection(path, seconds)
    try:
        connection.request(method, url)
        reply = connection.getresponse()
        return reply.status, str(json.loads(reply.read()).get("error", ""))
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"no HTTP response: {error}") from error
    finally:
        connection.close()


def wait_ready(path: Path, timeout: int, *, api_only: bool) -> None:
    """Poll until the daemon is ready: with `api_only` for requests, otherwise also with its autostart.

    Raises HostError after `timeout` seconds (0 means no limit).
    """
    end = time.monotonic() + timeout if timeout > 0 else None
    url = "/internal/ready?api-only=true" if api_only else "/internal/ready"
    while True:
        try:
            status, reason = ask(path, "GET", url)
        except OSError as error:
            status, reason = 0, f"No daemon responds at {path}: {error.strerror or error}"
        if status == 200:
            return
        if end is not None and time.monotonic() >= end:
            raise HostError(f"The daemon is not ready after {timeout} s: {reason}")
        time.sleep(_POLL)


def shutdown(paths: StatePaths, *, force: bool, timeout: int) -> bool:
    """Ask the daemon to stop its containers and itself, and wait until it has exited.

    Returns False if it still runs after `timeout` seconds (0 means no limit). Raises HostError if no daemon
    is running or it refuses.
    """
    path = paths.socket
    pidfd = _daemon(paths)
    try:
        query = f"force={'true' if force else 'false'}" + (f"&timeout={timeout}" if timeout > 0 else "")
        try:
            status, error_text = ask(path, "PUT", f"/internal/shutdown?{query}")
        except OSError as error:
            raise HostError(f"The daemon at {path} did not respond: {error}") from error
        if status != 200:
            raise HostError(f"The daemon refused to shut down: {error_text}")
        return _wait_exit(pidfd, timeout)
    finally:
        os.close(pidfd)


def _daemon(paths: StatePaths) -> int:
    """Open a pidfd of the daemon.

    Does not use its socket, which may be held by systemd: that would start a daemon.
    """
    pid = state_lock.holder(paths)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            if state_lock.holder(paths) == pid:
                return pidfd
            os.close(pidfd)
    raise HostError(f"No daemon is running on {paths.root}")


def _wait_exit(pidfd: int, timeout: int) -> bool:
    ended, _, _ = select.select([pidfd], [], [], timeout if timeout > 0 else None)
    return bool(ended)
