"""A blocking client of the daemon's API over the unix socket, for subcommands."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utsuwa.core.errors import HostError, UtsuwaError

_REPLY_SECONDS = 120.0
"""Long enough for the daemon to create a file system, which takes longest."""


class Refused(UtsuwaError):
    """The daemon returned an error; `code` is the HTTP status, the message is the daemon's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Answer:
    """The result of a successful request; `etag` is empty if the reply has none."""

    metadata: Any
    etag: str


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("utsuwa", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class LocalApi:
    """The API of the daemon at a socket. All methods raise Refused, or HostError without a daemon."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, url: str) -> Any:
        return self.request("GET", url).metadata

    def find(self, url: str) -> Answer | None:
        """As `get`, but with the ETag; None if the object does not exist."""
        try:
            return self.request("GET", url)
        except Refused as error:
            if error.code == 404:
                return None
            raise

    def request(self, method: str, url: str, body: Any = None, *, etag: str = "") -> Answer:
        """Send a request; with `etag` it fails (412) if the object has been changed since."""
        headers = {"If-Match": etag} if etag else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = UnixConnection(self._path, _REPLY_SECONDS)
        try:
            connection.request(method, url, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            return _answer(reply.status, reply.getheader("ETag", ""), json.loads(reply.read()))
        except PermissionError as error:
            raise HostError(f"Permission denied for the socket {self._path}: run this as root") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise HostError(f"No daemon responds at {self._path} ({why}): start utsuwad first") from error
        except (http.client.HTTPException, ValueError) as error:
            raise HostError(f"The program at {self._path} is not Utsuwa's daemon: {error!r}") from error
        finally:
            connection.close()


def _answer(status: int, etag: str | None, body: Any) -> Answer:
    if not isinstance(body, dict):
        raise ValueError("the reply is not an object")
    if status >= 400:
        raise Refused(status, str(body.get("error", "")) or f"HTTP status {status}")
    return Answer(body.get("metadata"), etag or "")
