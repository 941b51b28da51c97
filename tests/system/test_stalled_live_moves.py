"""Moves of running instances whose target stalls, lies or disappears after the instance was stopped for it.

The test forwards all messages between both servers until then. At the source, the instance goes on within a
minute, or as soon as users say so if it could run on the target by then.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from tests.support import criu
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.long import usually
from tests.support.migration_peer import Peer, goes_on, launch, undecided
from tests.support.netbox import until
from utsuwa.client.http import open_unix
from utsuwa.client.server import Server
from utsuwa.client.websocket import TEXT
from utsuwa.core.errors import UtsuwaError
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.instances.lifecycle import orphans
from utsuwa.instances.model import MOVED, POWER
from utsuwa.migration.messages import Control, Header, LiveTerms

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

THERE, BACK = "there", "back"
PASSED = 2
"""The streams from the target on `fs` before the last files: the index is confirmed, and a pass is done."""
SAVED = 4
"""The streams to the target on `criu` before the permission: all of the running state."""


class Between:
    """Forwards what a source and a target say to each other."""

    def __init__(self, source: Peer, target: Peer, rule: Callable[[Between, str], bool]) -> None:
        self.source = source
        self.target = target
        self._rule = rule
        self.ended = {(name, way): 0 for name in source.sockets for way in (THERE, BACK)}
        """The number of streams that have ended, by socket and direction."""
        self.over = threading.Event()
        self.claimed = False
        self._threads = [threading.Thread(target=self._forward, args=place) for place in self.ended]
        for thread in self._threads:
            thread.start()

    def _forward(self, name: str, way: str) -> None:
        ends = (self.source, self.target) if way == THERE else (self.target, self.source)
        begin, end = (peer.sockets[name] for peer in ends)
        first = True
        with suppress(OSError, UtsuwaError):
            while (message := begin.receive()) is not None:
                kind, data = message
                if first and name == "control":
                    data = without_address(data)
                first = False
                if self._rule(self, f"{name} {way}"):
                    end.send(data, kind)
                self.ended[name, way] += kind == TEXT

    def close(self) -> None:
        self.over.set()
        for peer in (self.source, self.target):
            peer.close()
        for thread in self._threads:
            thread.join()


def without_address(header: bytes) -> bytes:
    """A header by which either server takes the other one for that which connects."""
    found = Header.decode(header)
    assert found.own is not None
    return dataclasses.replace(found, own=dataclasses.replace(found.own, live=LiveTerms(name="c1"))).encode()


# ---- what the target does; each says whether a message is forwarded


def takes_no_last_files(between: Between, at: str) -> bool:
    return at != "fs back" or between.ended["fs", BACK] < PASSED


def takes_no_memory(between: Between, at: str) -> bool:
    if at == "criu there":
        between.over.wait()
    return True


def claims_to_run_before(between: Between, at: str) -> bool:
    """Before the instance is stopped, so that the source knows when it has sent the running state."""
    if at == "fs back" and not between.claimed:
        between.claimed = True
        between.source.control.send(Control(success=True).encode())
    return True


def answers_nonsense(between: Between, at: str) -> bool:
    if at == "criu there" and between.ended["criu", THERE] == SAVED:
        between.source.control.send(b"\xff" * 9)
        return False
    return True


def says_nothing(between: Between, at: str) -> bool:
    return at != "criu there" or between.ended["criu", THERE] < SAVED


def disappears(between: Between, at: str) -> bool:
    if not says_nothing(between, at):
        between.source.close()
        return False
    return True


ENDS = {
    "claims to run before": (claims_to_run_before, "which it was not told to"),
    "takes no last files": (takes_no_last_files, "for 30 seconds"),
    "takes no memory": (takes_no_memory, "for 30 seconds"),
}
_REMEMBER = """
(x=$(head -c 8000000 /dev/urandom | base64); : >/remembered; while [ -n "$x" ]; do sleep 1; done) \\
</dev/null >/dev/null 2>&1 &
while ! [ -e /remembered ]; do sleep 0.1; done
"""
"""More memory than the kernel takes for a connection."""
SHORT = ("claims to run before", "takes no last files")
SILENT = {"disappears": disappears, "says nothing": says_nothing}


@pytest.fixture(scope="module")
def near(module_daemon: Daemon, busybox_image: Image) -> Iterator[Daemon]:
    prepared(module_daemon, busybox_image)
    launch(module_daemon, "busybox")
    yield module_daemon
    module_daemon.delete_instances()


@pytest.fixture(scope="module")
def far(busybox_image: Image) -> Iterator[Daemon]:
    daemon = Daemon()
    try:
        daemon.start()
        daemon.make_defaults()
        prepared(daemon, busybox_image)
        yield daemon
    finally:
        problems = daemon.close()
    assert not problems, problems


def prepared(daemon: Daemon, image: Image) -> None:
    criu.provide(daemon, criu.installed())
    daemon.import_image(image.metadata, image.rootfs, alias="busybox")


@contextmanager
def moving(near: Daemon, far: Daemon, rule: Callable[[Between, str], bool]) -> Iterator[Peer]:
    """Move `c1` by way of the test; nothing is left on the target afterwards."""
    source = Peer(near, {"name": "c1", "migration": True, "live": True}, "/1.0/instances/c1")
    kept = ("architecture", "config", "devices", "profiles")
    body = {key: value for key, value in near.get("/1.0/instances/c1").items() if key in kept}
    request = {"type": "migration", "mode": "push", "live": True}
    with (
        closing(source),
        closing(Peer(far, {"name": "c1", "source": request, **body})) as target,
        closing(Between(source, target, rule)),
    ):
        yield source
    until(lambda: far.get("/1.0/instances") == [], 60)


@pytest.mark.parametrize("end", usually(SHORT, ENDS))
def test_it_goes_on_at_the_source_if_the_target(near: Daemon, far: Daemon, end: str) -> None:
    rule, reason = ENDS[end]
    if rule is takes_no_memory:
        near.lxc("exec", "c1", "--", "sh", "-c", _REMEMBER)
    with moving(near, far, rule) as source:
        assert reason in error_of(near, source)
        goes_on(near)


def error_of(near: Daemon, source: Peer) -> str:
    """Wait until the move has failed; return the reason."""
    url = f"/1.0/operations/{source.operation['id']}/wait?timeout=20"
    record = near.get(url)
    end = time.monotonic() + 180
    while record["status"] == "Running":
        assert time.monotonic() < end, "the move has not ended"
        record = near.get(url)
    assert record["status"] == "Failure"
    return str(record["err"])


def asks(near: Daemon, operation: str = "") -> dict[str, Any]:
    """Wait until the source waits for the decision of another move than one on another connection."""

    def found() -> list[dict[str, Any]]:
        return [record for record in undecided(near) if record["operation"] != operation]

    until(
        lambda: [near.api("GET", f"/1.0/operations/{one['operation']}").status for one in found()] == [200],
        180,
    )
    return found()[0]


def tell(near: Daemon, record: dict[str, Any], *, runs: bool) -> None:
    """Tell the decision as the target that connects again, and wait for its confirmation."""
    server = Server(lambda: open_unix(str(near.socket)), "utsuwa")
    socket = server.websocket(f"/1.0/operations/{record['operation']}/websocket?secret={record['secret']}")
    socket.send(Control(success=runs).encode())
    reply = socket.receive()
    assert reply is not None
    assert Control.decode(reply[1]).success
    socket.close()
    server.close()
    until(lambda: record not in undecided(near), 30)


def test_what_is_no_verdict_is_asked_for_again(near: Daemon, far: Daemon) -> None:
    with moving(near, far, answers_nonsense) as source:
        tell(near, asks(near), runs=False)
        assert "connection to the other server was lost" in error_of(near, source)
        goes_on(near)


@pytest.mark.long
def test_an_earlier_move_says_nothing_of_a_later_one(near: Daemon, far: Daemon) -> None:
    with moving(near, far, answers_nonsense):
        earlier = asks(near)
        near.kill()
    near.start()
    until(lambda: near.get("/1.0/instances/c1")["status"] == "Frozen", 60)
    near.lxc("start", "c1")
    with moving(near, far, answers_nonsense):
        later = asks(near, earlier["operation"])
        tell(near, earlier, runs=True)
        tell(near, later, runs=False)
        goes_on(near)


def test_processes_that_are_lost_meanwhile_are_not_started_before_the_decision(
    near: Daemon, far: Daemon
) -> None:
    near.do("PATCH", "/1.0/instances/c1", {"config": {"boot.autorestart": "true"}})
    try:
        with moving(near, far, answers_nonsense):
            asks(near)
            near.kill()
        near.start()
        record = asks(near)
        pid = near.get("/1.0/instances/c1/state")["pid"]
        asyncio.run(orphans.kill({*cgroups.folders_of(pid).values()}))
        until(lambda: near.get("/1.0/instances/c1")["config"].get(POWER) == MOVED, 60)
        until(lambda: near.get("/1.0/instances/c1")["status"] == "Stopped", 60)
        tell(near, record, runs=False)
        assert near.get("/1.0/instances/c1")["status"] == "Running"
    finally:
        near.delete_instances()
        launch(near, "busybox")


@pytest.mark.long
def test_a_late_verdict_counts(near: Daemon, far: Daemon) -> None:
    with moving(near, far, says_nothing) as source:
        record = asks(near)
        source.control.send(Control(success=False, message="no space").encode())
        assert "no space" in error_of(near, source)
        tell(near, record, runs=False)
        goes_on(near)


@pytest.mark.long
@pytest.mark.parametrize("end", SILENT)
def test_users_decide_if_the_target_that_may_run_it(near: Daemon, far: Daemon, end: str) -> None:
    with moving(near, far, SILENT[end]) as source:
        assert "`utsuwa start c1`" in error_of(near, source)
        assert near.get("/1.0/instances/c1")["status"] == "Frozen"
        near.lxc("start", "c1")
        near.lxc("exec", "c1", "--", "sh", "-c", "rm /alive; while ! [ -s /alive ]; do sleep 0.1; done")
        assert [record["side"] for record in undecided(near)] == ["source"]
    near.restart()  # the question is asked again, and changes nothing
    assert near.get("/1.0/instances/c1")["status"] == "Running"
    (near.dir / "migration").joinpath(f"{undecided(near)[0]['operation']}.undecided").unlink()
    near.restart()
    goes_on(near)
