"""Connections from inside of a running instance to the guest API."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.api import Reply
from tests.support.daemon import Daemon
from utsuwa.client.websocket import WebSocket

LXD = "/dev/lxd/sock"
_ENTER = """
import ctypes, os, resource, socket, sys, time
pid, user = int(sys.argv.pop(1)), int(sys.argv.pop(1))
libc = ctypes.CDLL(None, use_errno=True)
for namespace in [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in ("user", "pid", "mnt")]:
    if libc.setns(namespace, 0) != 0 and ctypes.get_errno() != 22:  # EINVAL: it is a privileged one's
        raise OSError(ctypes.get_errno(), "setns")
os.setresgid(user, user, user)
os.setresuid(user, user, user)
"""
_CONNECT = """
back = socket.socket(fileno=0)
for _ in range(int(sys.argv[2])):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    socket.send_fds(back, [b"x"], [connection.fileno()])
    connection.close()
"""


def inside(pid: int, code: str, user: int = 0) -> list[str]:
    """Return a command that runs Python as a user of the container whose init has this pid.

    The code can use the modules that are imported before, and the command's further arguments.
    """
    return [sys.executable, "-c", _ENTER + code, str(pid), str(user)]


class Guest:
    """A running instance of a daemon, as its processes use the guest API."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.pid = int(daemon.get(f"/1.0/instances/{name}/state")["pid"])

    @contextlib.contextmanager
    def run(self, code: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run Python inside, as root, with the path of the socket as its argument.

        Its modules are those of `_ENTER`.
        """
        argv = [*inside(self.pid, code), LXD]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.kill()

    def connect(self, count: int = 1, *, user: int = 0, path: str = LXD) -> list[socket.socket]:
        """Return connections that a process inside has opened as a user, and passed on to the test.

        Raises AssertionError if it fails.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            argv = [*inside(self.pid, _CONNECT, user), path, str(count)]
            process = subprocess.Popen(argv, stdin=theirs.fileno(), stderr=subprocess.PIPE)
            theirs.close()
            found = []
            while (received := socket.recv_fds(ours, 1, 1))[0]:
                found.append(socket.socket(fileno=received[1][0]))
            _, error = process.communicate(timeout=30)
        assert process.returncode == 0, error.decode()
        for connection in found:
            connection.settimeout(30)
        return found

    def api(
        self,
        method: str,
        url: str,
        body: object = None,
        *,
        user: int = 0,
        path: str = LXD,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request and return the reply."""
        (connection,) = self.connect(user=user, path=path)
        return ask(connection, method, url, body, headers)

    def get(self, url: str) -> Any:
        """Return the JSON of a successful request."""
        return json.loads(self.text(url))

    def text(self, url: str) -> str:
        reply = self.api("GET", url)
        assert reply.status == 200, reply
        return reply.body.decode()

    def listen(self, query: str = "") -> WebSocket:
        """Return a websocket with events."""
        (connection,) = self.connect()
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        head = "".join(f"{name}: {value}\r\n" for name, value in upgrade.items())
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        connection.sendall(f"GET /1.0/events{query} HTTP/1.1\r\nHost: lxd\r\n{head}{key}\r\n".encode())
        reply = b""
        while not reply.endswith(b"\r\n\r\n"):
            reply += connection.recv(1)
        assert reply.startswith(b"HTTP/1.1 101 "), reply
        return WebSocket(connection)


def ask(
    connection: socket.socket,
    method: str,
    url: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send a request on a connection, and close it after the reply."""
    client = http.client.HTTPConnection("lxd")
    client.sock = connection
    try:
        client.request(method, url, None if body is None else json.dumps(body), dict(headers or {}))
        answer = client.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, names, answer.read())
    finally:
        client.close()
