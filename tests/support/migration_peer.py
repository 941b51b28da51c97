"""The other side of a migration, played by a test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import msgspec

from tests.support.daemon import Daemon
from utsuwa.client.http import open_unix
from utsuwa.client.server import Server
from utsuwa.client.websocket import WebSocket
from utsuwa.migration.messages import RsyncFeatures

RSYNC = RsyncFeatures(xattrs=True, delete=True, compress=False, bidirectional=True)
INDEX = b"{}"


class Peer:
    """The other side of an operation here: its websockets, to say anything to."""

    def __init__(self, daemon: Daemon, body: dict[str, Any], path: str = "/1.0/instances") -> None:
        self.daemon = daemon
        self.server = Server(lambda: open_unix(str(daemon.socket)), "utsuwa")
        self.sockets: dict[str, WebSocket] = {}
        with ExitStack() as refused:
            refused.callback(self.close)
            self.operation: dict[str, Any] = self.server.post(path, body)
            for name in ("control", "fs", "criu"):
                if name in self.operation["metadata"]:
                    self.sockets[name] = self._socket(name)
            refused.pop_all()
        self.control, self.files = self.sockets["control"], self.sockets["fs"]

    def _socket(self, name: str) -> WebSocket:
        secret = self.operation["metadata"][name]
        return self.server.websocket(f"/1.0/operations/{self.operation['id']}/websocket?secret={secret}")

    def error(self) -> str:
        """Disconnect, wait for the operation, and return its error."""
        record = self.server.get(f"/1.0/operations/{self.operation['id']}/wait?timeout=60")
        return str(record["err"])

    def close(self) -> None:
        for socket in self.sockets.values():
            socket.close()
        self.server.close()


def say(*parts: bytes | str, on: str = "fs") -> Callable[[Peer], None]:
    def do(peer: Peer) -> None:
        socket = peer.sockets[on]
        for part in parts:
            if isinstance(part, bytes):
                socket.send(part)
            else:
                socket.send_text(part)

    return do


def undecided(daemon: Daemon) -> list[dict[str, Any]]:
    """The records of moves of running instances; nothing else may be where they are.

    One may be written or removed meanwhile.
    """
    paths = [path for path in (daemon.dir / "migration").iterdir() if path.suffix != ".new"]
    found = []
    for path in paths:
        with suppress(FileNotFoundError):
            found.append(msgspec.json.decode(path.read_bytes()))
    return found


def nothing_left(daemon: Daemon) -> None:
    """Neither an instance nor files; only that a running one does not run here is still told."""
    assert daemon.get("/1.0/instances") == []
    pool = daemon.dir / "storage-pools" / "default"
    folders = ("containers", "containers-snapshots", "layers")
    assert [path for folder in folders for path in (pool / folder).iterdir()] == []
    assert {(record["side"], record["runs"]) for record in undecided(daemon)} <= {("target", False)}


def launch(daemon: Daemon, image: str) -> None:
    """Launch `c1`, of which `goes_on` can tell whether its processes run."""
    daemon.lxc("launch", image, "c1")
    beat = "(while :; do date >/alive; sleep 0.1; done) </dev/null >/dev/null 2>&1 &"
    daemon.lxc("exec", "c1", "--", "sh", "-c", beat)


def goes_on(daemon: Daemon) -> None:
    """The processes of the instance run, and nothing is left of a saved state."""
    assert daemon.get("/1.0/instances/c1")["status"] == "Running"
    daemon.lxc("exec", "c1", "--", "sh", "-c", "rm /alive; while ! [ -s /alive ]; do sleep 0.1; done")
    folder = daemon.dir / "storage-pools" / "default" / "containers" / "c1"
    assert [path.name for path in folder.iterdir() if path.name.startswith("state")] == []
    assert "source" not in {record["side"] for record in undecided(daemon)}
