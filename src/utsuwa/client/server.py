"""A server of the REST API: requests and their envelopes, operations, websockets."""

from __future__ import annotations

import os

from utsuwa.client import lean
from utsuwa.client.errors import ApiError, BadAnswer
from utsuwa.client.http import Connection, open_unix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from utsuwa.client.http import Opener, Reply
    from utsuwa.client.remotes import ClientConfig, Remote
    from utsuwa.client.websocket import WebSocket

    Trace = Callable[[str], None]

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def quote(text: str) -> str:
    """Percent-encode a path segment or a query value."""
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in data)


def path_to(*parts: str) -> str:
    """Return `/1.0/a/b`, quoting every part."""
    return "/".join(("/1.0", *map(quote, parts)))


def socket_path() -> str:
    """Return `$UTSUWA_SOCKET`, or the socket in `$UTSUWA_DIR`, or that in `/var/lib/utsuwa`."""
    configured = os.environ.get("UTSUWA_SOCKET")
    return configured or (os.environ.get("UTSUWA_DIR") or "/var/lib/utsuwa") + "/unix.socket"


class Server:
    """The server of a remote. Methods raise ApiError with the server's message."""

    def __init__(self, opener: Opener, host: str, *, project: str = "", trace: Trace | None = None) -> None:
        self._opener = opener
        self._host = host
        self._connection = Connection(opener, host)
        self.project = project
        self._trace = trace

    # Requests. Dashes in names of query parameters are written as underscores.

    def get(self, path: str, **query: str) -> Any:
        return self._metadata(self._send("GET", path, None, query))

    def get_with_etag(self, path: str, **query: str) -> tuple[Any, str]:
        """Return the object and its ETag, for a change that must not overwrite others."""
        reply = self._send("GET", path, None, query)
        return self._metadata(reply), reply.headers.get("etag", "")

    def put(self, path: str, body: Any, etag: str = "", **query: str) -> Any:
        return self._metadata(self._send("PUT", path, body, query, etag))

    def patch(self, path: str, body: Any, etag: str = "", **query: str) -> Any:
        return self._metadata(self._send("PATCH", path, body, query, etag))

    def post(self, path: str, body: Any, **query: str) -> Any:
        return self._metadata(self._send("POST", path, body, query))

    def delete(self, path: str, **query: str) -> Any:
        return self._metadata(self._send("DELETE", path, None, query))

    def raw(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Make a request without envelopes, for uploads and downloads."""
        target = self._target(path, {})
        if self._trace:
            self._trace(f"> {method} {target}" + ("" if body is None else " with a raw body"))
        return self._connection.request(method, target, body, headers)

    def checked(self, reply: Reply) -> Reply:
        """Return a reply of `raw`, or raise ApiError if it is an error."""
        if reply.status >= 400:
            self._metadata(reply)
        return reply

    def metadata(self, reply: Reply) -> Any:
        """Return the metadata in the envelope of a reply of `raw`."""
        return self._metadata(reply)

    def envelope(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return the complete envelope of a response, also of an error."""
        return self._envelope(self._send(method, path, body, {}))

    # Operations.

    def wait(self, operation: Mapping[str, Any]) -> dict[str, Any]:
        """Wait for an operation and return its record. Raises ApiError if it failed."""
        return succeeded(self.get(f"/1.0/operations/{operation['id']}/wait"))

    def websocket(self, path: str) -> WebSocket:
        """Open a websocket on a separate connection."""
        import binascii

        from utsuwa.client.websocket import WebSocket

        connection = Connection(self._opener, self._host)
        key = binascii.b2a_base64(os.urandom(16), newline=False).decode()
        target = self._target(path, {})
        if self._trace:
            self._trace(f"websocket {target}")
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
        }
        reply = connection.request("GET", target, headers=upgrade)
        if reply.status != 101:
            self._metadata(reply)
            raise BadAnswer(f"{self._host} refused a websocket with status {reply.status}")
        return WebSocket(*connection.take_socket())

    def operation_socket(self, operation: Mapping[str, Any], name: str) -> WebSocket:
        """Open the websocket of an operation by the name of its secret (`0`, `control`, ...)."""
        secret = quote(operation["metadata"]["fds"][name])
        return self.websocket(f"/1.0/operations/{operation['id']}/websocket?secret={secret}")

    def listen(self, types: Iterable[str] = (), *, all_projects: bool = False) -> WebSocket:
        """Open a websocket for events of the given types, or all types if none is given."""
        fields = [f"type={quote(','.join(types))}"] if types else []
        fields += ["all-projects=true"] if all_projects else []
        return self.websocket("/1.0/events" + ("?" + "&".join(fields) if fields else ""))

    def close(self) -> None:
        self._connection.close()

    # Internals.

    def _send(self, method: str, path: str, body: Any, query: Mapping[str, str], etag: str = "") -> Reply:
        target = self._target(path, query)
        headers = {"If-Match": etag} if etag else {}
        data = None
        if body is not None:
            data = lean.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if self._trace:
            self._trace(f"> {method} {target}" + (f"\n{_pretty(body)}" if data else ""))
        return self._connection.request(method, target, data, headers)

    def _target(self, path: str, query: Mapping[str, str]) -> str:
        fields = {name.replace("_", "-"): value for name, value in query.items()}
        if self.project and "all-projects" not in fields and "project=" not in path:
            fields.setdefault("project", self.project)
        if not fields:
            return path
        joined = "&".join(f"{name}={quote(value)}" for name, value in fields.items())
        return f"{path}{'&' if '?' in path else '?'}{joined}"

    def _envelope(self, reply: Reply) -> dict[str, Any]:
        data = reply.read()
        try:
            envelope = lean.loads(data.decode())
        except ValueError as error:
            raise BadAnswer(f"{self._host} did not respond with JSON (status {reply.status})") from error
        if not isinstance(envelope, dict) or "type" not in envelope:
            raise BadAnswer(f"{self._host} did not respond with an envelope of the REST API")
        if self._trace:
            self._trace(f"< {reply.status}\n{_pretty(envelope)}")
        return envelope

    def _metadata(self, reply: Reply) -> Any:
        envelope = self._envelope(reply)
        if envelope["type"] == "error":
            raise ApiError(envelope.get("error") or f"status {reply.status}", reply.status)
        return envelope.get("metadata")


def _pretty(value: Any) -> str:
    import json

    return json.dumps(value, indent=2)


def succeeded(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a completed operation. Raises ApiError if it failed."""
    if record["status_code"] != 200:
        raise ApiError(record["err"] or record["status"], 0)
    return record


def connect(config: ClientConfig, name: str, *, project: str = "", trace: Trace | None = None) -> Server:
    """Return a remote's server, not connected yet. Raises NotFound, or InvalidRequest for image servers."""
    remote = config.remote(name)
    if remote.protocol == "simplestreams":
        from utsuwa.core.errors import NotSupportedYet

        raise NotSupportedYet(
            f'The remote "{name}" is an image server (simplestreams): this client cannot read it; '
            "name its images as the source of launch or init"
        )
    opener, host = _opener(config, name, remote)
    return Server(opener, host, project=project or remote.project, trace=trace)


def _opener(config: ClientConfig, name: str, remote: Remote) -> tuple[Opener, str]:
    if remote.is_unix:
        path = remote.addr.removeprefix("unix:").removeprefix("//") or socket_path()

        def open_local() -> lean.Socket:
            return open_unix(path)

        return open_local, "utsuwa"
    from utsuwa.client.https import opener

    return opener(config, name, remote), remote.addr.split("//", 1)[-1]
