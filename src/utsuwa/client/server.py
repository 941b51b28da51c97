"""A server of the REST API: requests and their envelopes, operations, websockets."""

from __future__ import annotations

import os

from utsuwa.client import lean
from utsuwa.client.errors import ApiError, BadAnswer
from utsuwa.client.http import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from utsuwa.client.http import FileBody, Opener, Reply
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


def instance_path(name: str) -> str:
    """Return the path of an instance, or that of a snapshot for `instance/snapshot`."""
    instance, slash, snapshot = name.partition("/")
    path = path_to("instances", instance)
    return f"{path}/snapshots/{quote(snapshot)}" if slash else path


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
        body: bytes | Iterable[bytes] | FileBody | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Make a request without envelopes, for uploads and downloads.

        Headers that begin with `X-LXD-` are sent under the names of Incus, too.
        """
        target = self._target(path, {})
        if self._trace:
            self._trace(f"> {method} {target}" + ("" if body is None else " with a raw body"))
        return self._connection.request(method, target, body, _for_both(headers or {}))

    def send_ahead(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Make a request without waiting; `reply_ahead` returns the responses in order."""
        target = self._target(path, {})
        if self._trace:
            self._trace(f"> {method} {target} with a raw body")
        self._connection.send(method, target, body, _for_both(headers))

    def reply_ahead(self, method: str) -> Reply:
        return self._connection.receive(method)

    def has(self, extension: str) -> bool:
        """Whether the server has an extension of the API."""
        return extension in self.get("/1.0").get("api_extensions", ())

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
        return self._websockets(path)[0]

    def upgrade(self, path: str, headers: Mapping[str, str]) -> tuple[lean.Socket, bytes]:
        """Have a separate connection carry another protocol.

        Returns its socket, and what has arrived already.
        """
        return self._upgraded(self._ask_upgrade(path, headers))

    def _ask_upgrade(self, path: str, headers: Mapping[str, str]) -> Connection:
        connection = Connection(self._opener, self._host)
        target = self._target(path, {})
        if self._trace:
            self._trace(f"{headers['Upgrade']} {target}")
        connection.send("GET", target, None, {**headers, "Connection": "Upgrade"})
        return connection

    def _upgraded(self, connection: Connection) -> tuple[lean.Socket, bytes]:
        reply = connection.receive("GET")
        if reply.status != 101:
            self._metadata(reply)
            raise BadAnswer(f"{self._host} refused to upgrade the connection with status {reply.status}")
        return connection.take_socket()

    def operation_socket(self, operation: Mapping[str, Any], name: str) -> WebSocket:
        """Open the websocket of an operation by the name of its secret (`0`, `control`, ...)."""
        return self.operation_sockets(operation, (name,))[name]

    def operation_sockets(self, operation: Mapping[str, Any], names: Iterable[str]) -> dict[str, WebSocket]:
        """Open several of them, with a single wait for the server."""
        secrets = {name: quote(operation["metadata"]["fds"][name]) for name in names}
        path = f"/1.0/operations/{operation['id']}/websocket?secret="
        return dict(
            zip(secrets, self._websockets(*(path + secret for secret in secrets.values())), strict=True)
        )

    def _websockets(self, *paths: str) -> list[WebSocket]:
        import binascii

        from utsuwa.client.websocket import WebSocket

        asked = []
        for path in paths:
            key = binascii.b2a_base64(os.urandom(16), newline=False).decode()
            headers = {"Upgrade": "websocket", "Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"}
            asked.append(self._ask_upgrade(path, headers))
        return [WebSocket(*self._upgraded(connection)) for connection in asked]

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


def _for_both(headers: Mapping[str, str]) -> dict[str, str]:
    incus = {
        f"X-Incus-{name.removeprefix('X-LXD-')}": value
        for name, value in headers.items()
        if name.startswith("X-LXD-")
    }
    return {**headers, **incus}
