"""Requests to the daemon over its unix socket, one at a time; for subcommands, which block as they like."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utsuwa.core.errors import HostError, UtsuwaError

_REPLY_SECONDS = 120.0
"""Long enough for the daemon to make a file system; nothing that is asked here takes longer."""


class Refused(UtsuwaError):
    """The daemon answered with an error; `code` is the HTTP status, the message is the daemon's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Answer:
    """What a successful request gave; `etag` is empty where the reply had none."""

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
    """The API of the daemon that holds a socket. All methods raise Refused, or HostError without a daemon."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, url: str) -> Any:
        return self.request("GET", url).metadata

    def find(self, url: str) -> Answer | None:
        """As `get` with the ETag; None where the daemon knows no such thing."""
        try:
            return self.request("GET", url)
        except Refused as error:
            if error.code == 404:
                return None
            raise

    def request(self, method: str, url: str, body: Any = None, *, etag: str = "") -> Answer:
        """One request; with `etag` it is refused (412) where the object has changed since."""
        headers = {"If-Match": etag} if etag else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = UnixConnection(self._path, _REPLY_SECONDS)
        try:
            connection.request(method, url, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            return _answer(reply.status, reply.getheader("ETag", ""), json.loads(reply.read()))
        except PermissionError as error:
            raise HostError(f"The socket {self._path} is not yours to use: run this as root") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise HostError(f"No daemon answers at {self._path} ({why}): start utsuwad first") from error
        except (http.client.HTTPException, ValueError) as error:
            raise HostError(f"What answers at {self._path} is no daemon of Utsuwa: {error!r}") from error
        finally:
            connection.close()


def _answer(status: int, etag: str | None, body: Any) -> Answer:
    if not isinstance(body, dict):
        raise ValueError("the reply is no object")
    if status >= 400:
        raise Refused(status, str(body.get("error", "")) or f"HTTP status {status}")
    return Answer(body.get("metadata"), etag or "")
