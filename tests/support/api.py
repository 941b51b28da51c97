"""A minimal HTTP client over a unix socket, for tests."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over the unix socket at `path`."""

    def __init__(self, path: Path, timeout: float = 60) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


@dataclass(frozen=True)
class Reply:
    """A response; `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(
        cls,
        connection: http.client.HTTPConnection,
        method: str,
        url: str,
        payload: str | bytes | None,
        headers: Mapping[str, str],
    ) -> Reply:
        """Send a request on a connection that is closed afterwards; return its response."""
        try:
            connection.request(method, url, payload, headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return cls(answer.status, names, answer.read())
        finally:
            connection.close()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def metadata(self) -> Any:
        return self.json["metadata"]

    @property
    def error(self) -> str:
        """The message of an error envelope. Raises KeyError for other replies."""
        return str(self.json["error"])

    @property
    def operation(self) -> str:
        """The URL of the background operation. Raises KeyError if there is none."""
        return str(self.json["operation"])


def request(
    path: Path,
    method: str,
    url: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> Reply:
    """Send one request; `body` is bytes, an open file or anything JSON can hold (None sends nothing)."""
    connection = UnixConnection(path, timeout)
    sent = dict(headers or {})
    payload: Any = body
    if body is not None and not isinstance(body, bytes) and not hasattr(body, "read"):
        payload = json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    try:
        connection.request(method, url, payload, sent)
        answer = connection.getresponse()
        content = answer.read()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, names, content)
    finally:
        connection.close()


class Endpoint:
    """A server of the API at a unix socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def api(
        self,
        method: str,
        url: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Reply:
        """Send a request over the unix socket and return the reply, whatever its status."""
        return request(self.socket, method, url, body, headers=headers, timeout=timeout)

    def get(self, url: str) -> Any:
        """Return the metadata of a successful GET."""
        reply = self.api("GET", url)
        assert reply.status == 200, f"GET {url}: {reply.status} {reply.body!r}"
        return reply.metadata

    def do(self, method: str, url: str, body: object = None, *, timeout: float = 60) -> Any:
        """Send a request, wait for its operation if any, and return the metadata; both must succeed."""
        reply = self.api(method, url, body, timeout=timeout)
        assert reply.status in (200, 201, 202), f"{method} {url}: {reply.status} {reply.body!r}"
        if reply.status != 202:
            return reply.metadata
        ended = self.wait(reply, timeout=timeout)
        assert ended["status_code"] == 200, f"{method} {url}: {ended['err']}"
        return ended["metadata"]

    def wait(self, reply: Reply, *, timeout: float = 60) -> dict[str, Any]:
        """Wait for the operation of `reply` and return it."""
        ended = self.api("GET", f"{reply.operation}/wait", timeout=timeout)
        assert ended.status == 200, f"{reply.operation}: {ended.status} {ended.body!r}"
        metadata: dict[str, Any] = ended.metadata
        return metadata
