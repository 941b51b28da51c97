"""Copies between two servers: one of them connects to the other, or the client connects both."""

from __future__ import annotations

import select

from utsuwa.cli import sources
from utsuwa.client.errors import ApiError, BadAnswer, Unreachable
from utsuwa.client.server import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.downtime import Downtime
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server
    from utsuwa.client.websocket import WebSocket

PULL, PUSH, RELAY = "pull", "push", "relay"
MODES = (PULL, PUSH, RELAY)
_ENOUGH = 8 * 2**20
"""Bytes that are kept for a server that receives more slowly than the other one sends."""


class Migration:
    """One migration: what the source is asked for, and what the target."""

    def __init__(
        self,
        session: Session,
        source: tuple[str, str, dict[str, Any]],
        target: tuple[str, str, dict[str, Any]],
        downtime: Downtime | None = None,
    ) -> None:
        """Both are the name of a remote, a path, and the body of a POST."""
        self._session = session
        self._downtime = downtime
        (self._from, self._source_path, self._offer) = source
        (self._to, self._target_path, self._wanted) = target
        self._source, self._target = session.server(self._from), session.server(self._to)

    def run(self, mode: str, label: str, **query: str) -> None:
        """Copy it; returns once the target has it completely. Raises ApiError, CommandFailed."""
        run = {PULL: self._pull, PUSH: self._push, RELAY: self._relay}[mode]
        try:
            run(label, query)
        except (ApiError, Unreachable, BadAnswer):
            if self._downtime is None or not self._downtime.settle(self._source, self._target, query):
                raise

    def _follow(self, sending: dict[str, Any], receiving: dict[str, Any], label: str) -> None:
        """Wait until the target has it all, or for a planned downtime, until both servers have ended."""
        if self._downtime is None:
            self._receive(receiving, label)
            return
        self._downtime.agree(self._source, sending)
        try:
            self._receive(receiving, label)
        finally:
            record = self._session.wait(self._source, sending, label)
        self._downtime.ended(record)

    def _receive(self, receiving: dict[str, Any], label: str) -> None:
        """Wait for the target; tell why a saved running state was left out."""
        record = self._session.wait(self._target, receiving, label)
        if reason := (record.get("metadata") or {}).get("without_running_state"):
            self._session.warn(f"The copy has not all of the saved running state: {reason}")

    def _pull(self, label: str, query: dict[str, str]) -> None:
        address, certificate = sources.reachable(self._session, self._from)
        sending = self._source.post(self._source_path, self._offer)
        try:
            body = self._body(PULL)
            body["source"] |= _operation(address, sending, certificate)
            receiving = self._target.post(self._target_path, body, **query)
            self._follow(sending, receiving, label)
        except BaseException:
            _cancel(self._source, sending)
            raise

    def _push(self, label: str, query: dict[str, str]) -> None:
        address, certificate = sources.reachable(self._session, self._to)
        receiving = self._target.post(self._target_path, self._body(PUSH), **query)
        try:
            target = _operation(address, receiving, certificate)
            sending = self._source.post(self._source_path, self._offer | {"target": target})
            if self._downtime is not None:
                self._follow(sending, receiving, label)
                return
            self._session.wait(self._source, sending, label)
        except BaseException:
            _cancel(self._target, receiving)
            raise
        self._receive(receiving, label)

    def _relay(self, label: str, query: dict[str, str]) -> None:
        import threading

        sending = self._source.post(self._source_path, self._offer)
        try:
            receiving = self._target.post(self._target_path, self._body(PUSH), **query)
            pairs = [
                (_socket(self._source, sending, name), _socket(self._target, receiving, name))
                for name in ("control", "fs")
            ]
            threading.Thread(target=relay, args=(pairs,), daemon=True).start()
            self._follow(sending, receiving, label)
        except BaseException:
            _cancel(self._source, sending)
            raise

    def _body(self, mode: str) -> dict[str, Any]:
        source = self._wanted.get("source", {}) | {"type": "migration", "mode": mode}
        return self._wanted | {"source": source}


def _operation(address: str, operation: dict[str, Any], certificate: str) -> dict[str, Any]:
    return {
        "operation": f"{address}/1.0/operations/{operation['id']}",
        "secrets": {name: text for name, text in operation["metadata"].items() if name != "downtime"},
        "certificate": certificate,
    }


def _socket(server: Server, operation: dict[str, Any], name: str) -> WebSocket:
    secret = quote(operation["metadata"][name])
    return server.websocket(f"/1.0/operations/{operation['id']}/websocket?secret={secret}")


def _cancel(server: Server, operation: dict[str, Any]) -> None:
    """Have a server give up waiting, as far as it still does."""
    try:
        server.close()
        server.delete(f"/1.0/operations/{operation['id']}")
    except (ApiError, OSError):
        pass


def relay(pairs: list[tuple[WebSocket, WebSocket]]) -> None:
    """Forward messages between websockets until the first pair, that for control, is closed."""
    others = {a: b for a, b in pairs} | {b: a for a, b in pairs}
    by_descriptor = {socket.fileno(): socket for socket in others}
    control = pairs[0]
    try:
        while not any(socket.closed and not others[socket].unsent for socket in control):
            poll = select.poll()
            for socket, other in others.items():
                events = select.POLLIN if not socket.closed and other.unsent < _ENOUGH else 0
                events |= select.POLLOUT if socket.unsent else 0
                if events:
                    poll.register(socket.fileno(), events)
            for descriptor, event in poll.poll():
                _forward(by_descriptor[descriptor], others[by_descriptor[descriptor]], event)
    except OSError:
        pass  # the servers tell what has happened
    finally:
        for socket in others:
            socket.close()


def _forward(socket: WebSocket, other: WebSocket, event: int) -> None:
    if event & select.POLLOUT:
        socket.flush()
    if event & ~select.POLLOUT:
        for kind, data in socket.receive_ready():
            other.queue(data, kind)
        other.flush()
