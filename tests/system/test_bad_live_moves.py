"""Peers of a move of a running instance that lie, send nonsense or disappear.

A target is left with nothing, and at a source the instance goes on.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import pytest

from tests.support import criu
from tests.support.daemon import Daemon
from tests.support.migration_peer import INDEX, RSYNC, Peer, goes_on, launch, nothing_left, say
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.migration import index
from utsuwa.migration.memory import PAGE
from utsuwa.migration.messages import LIVE, NOT_LIVE, Control, Header, LiveTerms, OwnFeatures
from utsuwa.migration.negotiation import owners_message

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

TERMS = LiveTerms(name="c1", operation="op", secret="secret")
IDS = owners_message(IdMap((IdRange(0, 1_000_000, 65_536),), (IdRange(0, 1_000_000, 65_536),)))


def header(criu: int | None = LIVE, live: LiveTerms | None = TERMS, **more: Any) -> Header:
    return Header(
        fs=0, criu=criu, rsync=RSYNC, index_version=1, own=OwnFeatures(links=True, live=live), **more
    )


OFFER = header(idmap=IDS, live=LiveTerms(name="c1"))
"""What a source offers that waits for connections."""
ANSWER = header(live=LiveTerms(name="c1"))


@pytest.fixture(scope="module")
def able(module_daemon: Daemon) -> Daemon:
    """The module's daemon, which can save and restore."""
    criu.provide(module_daemon, criu.installed())
    return module_daemon


# ---- as a source


@contextmanager
def offering(daemon: Daemon) -> Iterator[Peer]:
    """Be the source of an instance that the daemon receives."""
    config = {"volatile.cloud-init.instance-id": str(uuid.uuid4())}
    source = {"type": "migration", "mode": "push", "live": True}
    peer = Peer(daemon, {"name": "c1", "config": config, "source": source})
    try:
        yield peer
    finally:
        peer.close()


OFFERS: dict[str, Header] = {
    "does not offer the running state": dataclasses.replace(OFFER, criu=NOT_LIVE),
    "in a form that this one can restore": header(idmap=IDS, live=None),
    "keeps its name": header(idmap=IDS, live=LiveTerms(name="../c1")),
    "if one server connects to the other": header(idmap=IDS, live=TERMS),
    "privileged on one of the servers": dataclasses.replace(OFFER, idmap=[]),
    "two snapshots of the same name": dataclasses.replace(OFFER, snapshot_names=["s", "s"]),
    "Snapshot name": dataclasses.replace(OFFER, snapshot_names=["../s"]),
}


@pytest.mark.parametrize("reason", OFFERS)
def test_an_offer_that_lies_is_refused(able: Daemon, reason: str) -> None:
    with offering(able) as peer:
        peer.control.send(OFFERS[reason].encode())
        assert reason.lower() in peer.error().lower()
    nothing_left(able)


def images(*files: tuple[str, int], last: bool = True) -> bytes:
    return msgspec.json.encode({"files": files, "last": last})


def state(*parts: bytes | str) -> Callable[[Peer], None]:
    return say(*parts, on="criu")


UNKNOWN_MEMORY = b"\0" * 8 + b"\1" + b"\0" * 7
STATES: dict[str, Callable[[Peer], None]] = {
    "the connection to the other server was lost": Peer.close,
    "no space": lambda peer: peer.control.send(Control(success=False, message="no space").encode()),
    "invalid list of images": state(b"[]", ""),
    "at `$.files": state(images(("../../etc/passwd", 1)), "", b"x", "", "", ""),
    "two images of the same name": state(images(("core-1.img", 0), ("core-1.img", 0)), "", "", "", ""),
    "of another size": state(images(("core-1.img", 1)), "", b"xx", "", "", ""),
    "memory that it has not sent": state(images(("pages-1.img", PAGE)), "", "", UNKNOWN_MEMORY, "", ""),
    "has no saved running state": state(images(("core-1.img", 1)), "", b"x", "", "", ""),
    "is damaged": state(images(("utsuwa.json", 2)), "", b"[]", "", "", ""),
    "files cannot be transferred": say(b"no rsync" * 1000, ""),
}


@pytest.mark.parametrize("reason", STATES)
def test_what_follows_a_good_offer_may_be_anything(able: Daemon, reason: str) -> None:
    with offering(able) as peer:
        peer.control.send(OFFER.encode())
        answer = peer.control.receive()
        assert answer is not None
        assert Header.decode(answer[1]).criu == LIVE
        with suppress(OSError, UtsuwaError):
            say(INDEX, "")(peer)
            STATES[reason](peer)
            peer.control.receive()  # that it has failed; who is silent then is waited for
        peer.close()
        record = able.get(f"/1.0/operations/{peer.operation['id']}/wait?timeout=60")
        assert (record["status"], reason in record["err"].lower() or reason in record["err"]) == (
            "Failure",
            True,
        ), record["err"]
    nothing_left(able)


# ---- as a target


@pytest.fixture(scope="module")
def running(able: Daemon, busybox: str) -> Iterator[Daemon]:
    """The daemon with `c1`, which all targets below leave running."""
    launch(able, busybox)
    yield able
    able.delete_instances()


@contextmanager
def taking(daemon: Daemon) -> Iterator[Peer]:
    """Be the target of the instance, to which it has been offered."""
    peer = Peer(daemon, {"name": "c1", "migration": True, "live": True}, "/1.0/instances/c1")
    offer = peer.control.receive()
    assert offer is not None
    assert Header.decode(offer[1]).criu == LIVE
    try:
        yield peer
    finally:
        peer.close()


ANSWERS: dict[str, Header] = {
    "does not take over running instances": header(criu=NOT_LIVE),
    "use --stateless": header(live=None),
    "if one server connects to the other": header(),
}


@pytest.mark.parametrize("reason", ANSWERS)
def test_an_answer_that_lies_is_refused(running: Daemon, reason: str) -> None:
    with taking(running) as peer:
        peer.control.send(ANSWERS[reason].encode())
        assert reason in peer.error()
    goes_on(running)


def failure(peer: Peer) -> None:
    peer.control.send(Control(success=False, message="no space").encode())


ENDS: dict[str, tuple[bool, Callable[[Peer], None], str]] = {
    "disappears after the offer": (False, Peer.close, "connection to the other server was lost"),
    "answers with nonsense": (False, say(b"\xff" * 9, on="control"), "invalid message"),
    "disappears after its answer": (True, Peer.close, "connection to the other server was lost"),
    "fails after its answer": (True, failure, "no space"),
    "confirms no index": (True, say(b"{", ""), "The other server"),
    "is no rsync": (
        True,
        say(index.answer(refresh=False), "", b"\0" * 100_000, ""),
        "The files cannot be transferred",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_instance_goes_on_if_its_target(running: Daemon, end: str) -> None:
    agrees, act, reason = ENDS[end]
    with taking(running) as peer:
        if agrees:
            peer.control.send(ANSWER.encode())
        with suppress(OSError, UtsuwaError):
            act(peer)
        record = running.get(f"/1.0/operations/{peer.operation['id']}/wait?timeout=60")
        assert (record["status"], reason in record["err"]) == ("Failure", True), record["err"]
    goes_on(running)
