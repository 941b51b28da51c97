"""Peers of a migration that lie, send nonsense or disappear: an error, and nothing is left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.daemon import Daemon
from utsuwa.client.http import open_unix
from utsuwa.client.server import Server
from utsuwa.client.websocket import WebSocket
from utsuwa.migration.messages import (
    Control,
    Header,
    IdRangeMessage,
    KeyValue,
    RsyncFeatures,
    SnapshotMessage,
)

pytestmark = pytest.mark.root

RSYNC = RsyncFeatures(xattrs=True, delete=True, compress=False, bidirectional=True)
GOOD = Header(fs=0, rsync=RSYNC, index_version=1)
INDEX = b"{}"


class Peer:
    """The other side of an operation here: its websockets, to say anything to."""

    def __init__(self, daemon: Daemon, body: dict[str, Any], path: str = "/1.0/instances") -> None:
        self.daemon = daemon
        self.server = Server(lambda: open_unix(str(daemon.socket)), "utsuwa")
        self.operation: dict[str, Any] = self.server.post(path, body)
        self.control, self.files = (self._socket(name) for name in ("control", "fs"))

    def _socket(self, name: str) -> WebSocket:
        secret = self.operation["metadata"][name]
        return self.server.websocket(f"/1.0/operations/{self.operation['id']}/websocket?secret={secret}")

    def error(self) -> str:
        """Disconnect, wait for the operation, and return its error."""
        record = self.server.get(f"/1.0/operations/{self.operation['id']}/wait?timeout=60")
        return str(record["err"])

    def close(self) -> None:
        for socket in (self.control, self.files):
            socket.close()
        self.server.close()


def target(**more: object) -> dict[str, Any]:
    return {"name": "c1", "source": {"type": "migration", "mode": "push"}, **more}


@contextlib.contextmanager
def receiving(daemon: Daemon, **more: object) -> Iterator[Peer]:
    peer = Peer(daemon, target(**more))
    try:
        yield peer
    finally:
        peer.close()


def nothing_left(daemon: Daemon) -> None:
    assert daemon.get("/1.0/instances") == []
    pool = daemon.dir / "storage-pools" / "default"
    assert [
        path for folder in ("containers", "containers-snapshots") for path in (pool / folder).iterdir()
    ] == []


def with_snapshot(**more: object) -> Header:
    fields: dict[str, Any] = {"name": "s", "architecture": 2, "ephemeral": False, "stateful": False, **more}
    return Header(fs=0, rsync=RSYNC, snapshot_names=["s"], snapshots=[SnapshotMessage(**fields)])


HEADERS: dict[str, Header] = {
    "Snapshot name": Header(fs=0, rsync=RSYNC, snapshot_names=["../../etc"]),
    "two snapshots of the same name": Header(fs=0, rsync=RSYNC, snapshot_names=["s", "s"]),
    "describes other snapshots": Header(
        fs=0, rsync=RSYNC, snapshot_names=["s"], snapshots=[SnapshotMessage(name="t")]
    ),
    "invalid id map": Header(fs=0, rsync=RSYNC, idmap=[IdRangeMessage(True, True, -1, 0, 65536)]),
    "raw.unknown": with_snapshot(config=[KeyValue("raw.unknown", "1")]),
    "invalid date": with_snapshot(creation_date=2**60),
}


@pytest.mark.parametrize("reason", HEADERS)
def test_a_lying_header_is_refused(shared_daemon: Daemon, reason: str) -> None:
    with receiving(shared_daemon) as peer:
        peer.control.send(HEADERS[reason].encode())
        assert reason.lower() in peer.error().lower()
    nothing_left(shared_daemon)


def close_all(peer: Peer) -> None:
    peer.close()


def say(*parts: bytes | str) -> Callable[[Peer], None]:
    def do(peer: Peer) -> None:
        for part in parts:
            if isinstance(part, bytes):
                peer.files.send(part)
            else:
                peer.files.send_text(part)

    return do


ENDS: dict[str, Callable[[Peer], None]] = {
    "nothing": close_all,
    "invalid index": say(b"[]", ""),
    "no rsync": say(INDEX, "", b"\x00" * 100_000, ""),
    "silence and end": say(INDEX, "", ""),
    "failure": lambda peer: peer.control.send(Control(success=False, message="no space").encode()),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_follows_a_good_header_may_be_anything(shared_daemon: Daemon, end: str) -> None:
    with receiving(shared_daemon) as peer:
        peer.control.send(GOOD.encode())
        assert peer.control.receive() is not None
        ENDS[end](peer)
        record = shared_daemon.get(f"/1.0/operations/{peer.operation['id']}/wait?timeout=30")
        assert record["status"] == "Failure"
        assert "Internal error" not in record["err"]
    nothing_left(shared_daemon)


@pytest.mark.parametrize("message", [b"", b"\xff" * 50, "text"])
def test_control_messages_may_be_anything(shared_daemon: Daemon, message: bytes | str) -> None:
    with receiving(shared_daemon) as peer:
        if isinstance(message, str):
            peer.control.send_text(message)
        else:
            peer.control.send(message)
            peer.control.close()
        record = shared_daemon.get(f"/1.0/operations/{peer.operation['id']}/wait?timeout=30")
        assert record["status"] == "Failure"
        assert "Internal error" not in record["err"]
    nothing_left(shared_daemon)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"mode": "fly"}, "Unknown mode"),
        ({"mode": "pull"}, "Invalid URL"),
        ({"mode": "pull", "operation": "http://a/1.0/operations/x"}, "Invalid operation"),
        ({"mode": "pull", "operation": "https://a/1.0/images/x"}, "Invalid operation"),
        ({"mode": "pull", "operation": "https://a/1.0/operations/a"}, "secret of the websocket"),
        ({"mode": "push", "live": True}, "not supported yet"),
    ],
)
def test_requests_that_cannot_work_are_refused_at_once(
    shared_daemon: Daemon, source: dict[str, object], reason: str
) -> None:
    body = {"name": "c1", "source": {"type": "migration", **source}}
    reply = shared_daemon.api("POST", "/1.0/instances", body)
    assert reply.status >= 400
    assert reason in reply.error
    nothing_left(shared_daemon)


def test_a_target_that_wants_what_was_not_offered_is_refused(shared_daemon: Daemon, busybox: str) -> None:
    shared_daemon.lxc("init", busybox, "c1")
    peer = Peer(shared_daemon, {"migration": True}, "/1.0/instances/c1")
    assert peer.control.receive() is not None
    answer = Header(fs=0, rsync=RSYNC, refresh=True, snapshot_names=["../x"])
    peer.control.send(answer.encode())
    assert "not offered" in peer.error()
    peer.close()
    shared_daemon.do("PUT", "/1.0/instances/c1/state", {"action": "start", "timeout": 20})


def test_the_configuration_is_judged(shared_daemon: Daemon) -> None:
    reply = shared_daemon.api("POST", "/1.0/instances", target(config={"raw.unknown": "1"}))
    assert (reply.status, "raw.unknown" in reply.error) == (400, True)
    nothing_left(shared_daemon)


@pytest.fixture
def held(shared_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon with the project `held`, whose instances may not be privileged."""
    config = {"restricted": "true", "features.profiles": "false"}
    config |= {"restricted.snapshots": "allow", "restricted.devices.nic": "allow"}
    shared_daemon.do("POST", "/1.0/projects", {"name": "held", "config": config})
    yield shared_daemon
    assert shared_daemon.get("/1.0/instances?project=held") == []
    shared_daemon.delete_projects()


def test_restrictions_hold_for_what_is_received(held: Daemon) -> None:
    privileged = target(config={"security.privileged": "true"})
    reply = held.api("POST", "/1.0/instances?project=held", privileged)
    assert (reply.status, "privileged" in reply.error) == (403, True)


def test_restrictions_hold_for_received_snapshots(held: Daemon) -> None:
    """A restore would bring such a configuration into force."""
    offer = with_snapshot(config=[KeyValue("security.privileged", "true")])
    peer = Peer(held, target(), "/1.0/instances?project=held")
    peer.control.send(offer.encode())
    assert "privileged" in peer.error()
    peer.close()
    held.do("PATCH", "/1.0/projects/held", {"config": {"restricted.snapshots": "block"}})
    peer = Peer(held, target(), "/1.0/instances?project=held")
    peer.control.send(with_snapshot().encode())
    assert "snapshots" in peer.error()
    peer.close()
