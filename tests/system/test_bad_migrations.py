"""Peers of a migration that lie, send nonsense or disappear: an error, and nothing is left."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.migration_peer import INDEX, RSYNC, Peer, nothing_left, say
from utsuwa.core.errors import UtsuwaError
from utsuwa.migration.layers import encode_chains
from utsuwa.migration.messages import (
    Control,
    Header,
    IdRangeMessage,
    KeyValue,
    OwnFeatures,
    SnapshotMessage,
)

pytestmark = pytest.mark.root

GOOD = Header(fs=0, rsync=RSYNC, index_version=1)


def target(**more: object) -> dict[str, Any]:
    return {"name": "c1", "source": {"type": "migration", "mode": "push"}, **more}


@contextlib.contextmanager
def receiving(daemon: Daemon, **more: object) -> Iterator[Peer]:
    peer = Peer(daemon, target(**more))
    try:
        yield peer
    finally:
        peer.close()


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
}


@pytest.mark.parametrize("reason", HEADERS)
def test_a_lying_header_is_refused(shared_daemon: Daemon, reason: str) -> None:
    with receiving(shared_daemon) as peer:
        peer.control.send(HEADERS[reason].encode())
        assert reason.lower() in peer.error().lower()
    nothing_left(shared_daemon)


def close_all(peer: Peer) -> None:
    peer.close()


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
        with contextlib.suppress(OSError, UtsuwaError):
            ENDS[end](peer)
        record = shared_daemon.get(f"/1.0/operations/{peer.operation['id']}/wait?timeout=30")
        assert record["status"] == "Failure"
        assert "Internal error" not in record["err"]
    nothing_left(shared_daemon)


LAYERED = Header(fs=0, rsync=RSYNC, index_version=1, own=OwnFeatures(links=True, layers=True))
LAYER = "a" * 16
CHAINS = encode_chains([(LAYER,)])


def archive(*members: tuple[str, bytes, str]) -> bytes:
    """A tar with members of a name, a type and a target."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, target, 0o755
            tar.addfile(member)
    return data.getvalue()


METADATA = (b"[[]]", "", "")
"""That of an instance without any: a list of no files, and a stream of their contents."""


def metadata(*files: tuple[Sequence[bytes], int], content: bytes = b"") -> Callable[[Peer], None]:
    """Sends a list of files, given by the names of their paths and their sizes."""
    listed = [[[base64.b64encode(name).decode() for name in path], size] for path, size in files]
    return say(CHAINS, "", json.dumps([listed]).encode(), "", content, "")


EMPTY = archive((".", tarfile.DIRTYPE, ""))
TO_ETC = archive(("etc", tarfile.SYMTYPE, "/etc"))
LAYERS: dict[str, Callable[[Peer], None]] = {
    "lists its layers wrongly": say(b"{}", ""),
    "other layers than there can be": say(encode_chains([("../../etc",)]), ""),
    "cannot be transferred": say(CHAINS, "", *METADATA, b"", "", b"\x01" * 5000, ""),
    "describes a layer wrongly": say(CHAINS, "", *METADATA, b"etc\0o\0y\0", "", TO_ETC, ""),
    "lists an instance's metadata wrongly": say(CHAINS, "", b"[[{}]]", ""),
    "other metadata of an instance": say(CHAINS, "", b"[[], []]", ""),
    "other metadata of an instance than there can be": metadata(([b"templates", b"..", b"x"], 0)),
    "than there can be": metadata(([b"templates", b"/etc/x"], 0)),
    "other metadata": metadata(([b"rootfs"], 0)),
    "metadata of the other server's instance is too large": metadata(
        *[([b"templates", b"%d" % number], 2**25) for number in range(3)]
    ),
    "another size": metadata(([b"metadata.yaml"], 2)),
    "another size than it said": metadata(([b"metadata.yaml"], 2), content=b"123"),
    "metadata of the other server's instance is invalid": metadata(
        ([b"templates", b"x"], 0), ([b"templates", b"x", b"y"], 0)
    ),
}


@pytest.mark.parametrize("reason", LAYERS)
def test_layers_may_be_anything(shared_daemon: Daemon, reason: str) -> None:
    with receiving(shared_daemon) as peer:
        peer.control.send(LAYERED.encode())
        assert peer.control.receive() is not None
        say(INDEX, "")(peer)
        with contextlib.suppress(OSError, UtsuwaError):
            LAYERS[reason](peer)
        record = shared_daemon.get(f"/1.0/operations/{peer.operation['id']}/wait?timeout=30")
        assert (record["status"], reason in record["err"]) == ("Failure", True), record["err"]
    nothing_left(shared_daemon)


def _stream(peer: Peer) -> bytes:
    """The content of the next stream of the other side."""
    parts = []
    while (received := peer.files.receive()) is not None and received[1]:
        parts.append(received[1])
    return b"".join(parts)


def offered(peer: Peer, *chain: str) -> list[str]:
    """Offer layers, the newest first, and return those that are wanted."""
    peer.control.send(LAYERED.encode())
    assert peer.control.receive() is not None
    say(INDEX, "")(peer)
    _stream(peer)  # the answer to the index
    say(encode_chains([chain]), "")(peer)
    wanted: list[str] = json.loads(_stream(peer))
    return wanted


def test_a_refresh_goes_on_with_the_layers_that_have_arrived(shared_daemon: Daemon) -> None:
    shared_daemon.do("POST", "/1.0/instances", {"name": "c1", "source": {"type": "none"}})
    pool = shared_daemon.dir / "storage-pools" / "default" / "layers"
    body = target() | {"source": {**target()["source"], "refresh": True}}
    old, new = "1" * 16, "2" * 16
    peer = Peer(shared_daemon, body)
    assert offered(peer, new, old) == [old, new]
    with contextlib.suppress(OSError, UtsuwaError):
        say(*METADATA, b"", "", EMPTY, "", b"", "", b"\x01" * 5000, "")(peer)
    assert "cannot be transferred" in peer.error()
    peer.close()
    assert [file.read_text() for file in pool.glob("*/identity")] == [old]
    peer = Peer(shared_daemon, body)
    assert offered(peer, new, old) == [new]
    say(*METADATA, b"", "", EMPTY, "")(peer)
    verdict = peer.control.receive()
    assert verdict is not None
    assert Control.decode(verdict[1]).success
    peer.control.close()
    assert peer.error() == ""
    peer.close()
    assert sorted(file.read_text() for file in pool.glob("*/identity")) == [old, new]
    shared_daemon.do("DELETE", "/1.0/instances/c1")
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
        ({"mode": "push", "live": True}, "can be moved, but not copied"),
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


def test_a_target_that_wants_layers_that_were_not_offered_is_refused(
    shared_daemon: Daemon, busybox: str
) -> None:
    shared_daemon.lxc("init", busybox, "c1")
    peer = Peer(shared_daemon, {"migration": True}, "/1.0/instances/c1")
    assert peer.control.receive() is not None
    answer = Header(fs=0, rsync=RSYNC, own=OwnFeatures(links=True, layers=True))
    peer.control.send(answer.encode())
    say(json.dumps([LAYER]).encode(), "")(peer)
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
