"""Moves of running instances of which one side is killed: they run on one host, never on none or on both."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.hosts import LAN, Hosts, hosts
from tests.support.images import Image
from tests.support.long import LONG, amount, usually
from tests.support.migration_peer import undecided
from tests.support.netbox import process_ended, until
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.instances.lifecycle import orphans
from utsuwa.operations.kinds import INSTANCE_RECEIVE

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

AT_SOURCE = {
    "migration agreed": "near",
    "CRIU waits for the container": "near",
    "container held": "near",
    "running state saved": "near",
    "running state sent": "near",
    "move is undecided": "either",
    "moved container is told": "far",
    "moved container recorded": "far",
    "devices taken from killed container": "far",
}
"""Where the instance runs after the source was killed at a point."""
AT_TARGET = {
    "migration agreed": "near",
    "memory round received": "near",
    "running state received": "near",
    "instance is received": "near",
    "moved instance is about to start": "near",
    "state is about to be restored": "either",
    "container started": "far",
    "moved instance runs": "far",
}

LAST_WORDS = {
    "source has forgotten the move": ("near", "pull"),
    "source has recorded the decision": ("near", "push"),
    "target has forgotten the move": ("far", "push"),
}
"""The points at which a last word is lost if the side that is named is killed there; and the mode."""

RANDOM_KILLS = amount(0, long=24)
_LONGEST = 3.0
"""Seconds within which most moves have ended."""

ALWAYS = {
    "running state sent",
    "move is undecided",
    "moved container recorded",
    "state is about to be restored",
}
"""The points of which short runs take one mode; `scripts/test --long` takes all, in both modes."""


def moves(points: Iterable[str]) -> list[tuple[str, str]]:
    if LONG:
        return [(point, mode) for point in points for mode in ("pull", "push")]
    return [(point, "pull" if "sent" in point else "push") for point in points if point in ALWAYS]


@pytest.fixture(scope="module")
def at_far(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """The fault points of the target."""
    return Faults(tmp_path_factory.mktemp("far"))


@pytest.fixture(scope="module")
def module_hosts(busybox_image: Image, faults: Faults, at_far: Faults) -> Iterator[Hosts]:
    with hosts(busybox_image, faults.env, at_far.env) as found:
        for daemon in (found.near, found.far):
            daemon.faults_expected = True
        yield found


@pytest.fixture
def both(module_hosts: Hosts) -> Iterator[Hosts]:
    """Both hosts, with the instance `c1` that runs and serves on `near`."""
    module_hosts.lxc("launch", "busybox", "c1")
    module_hosts.serve("c1")
    yield module_hosts
    module_hosts.clean()


@contextmanager
def moving(both: Hosts, mode: str) -> Iterator[Callable[[Daemon], None]]:
    """Begin the move when the result is called with a daemon, which waits until that has died.

    The operation of a source that does not know what has become of the move waits for the target.
    """
    said: list[str] = []

    def move() -> None:
        said.append(both.lxc("move", "near:c1", "far:c1", "--mode", mode, check=False))

    thread = threading.Thread(target=move)

    def died(daemon: Daemon) -> None:
        thread.start()
        assert daemon.process is not None
        while daemon.process.poll() is None and thread.is_alive():
            time.sleep(0.02)

    yield died
    thread.join()
    print(said)


def check(both: Hosts, place: str) -> None:
    both.settled()
    found = both.where("c1")
    assert found in ([["near"], ["far"]] if place == "either" else [[place]])
    other = both.far if found == ["near"] else both.near
    assert both.state(other, "c1") in ("", "Stopped")
    if found == ["near"]:
        assert both.state(both.far, "c1") == ""
    # Neither starts it again, or forgets it.
    other.restart()
    assert both.where("c1") == found


@pytest.mark.parametrize(("point", "mode"), moves(AT_SOURCE))
def test_a_killed_source(both: Hosts, faults: Faults, point: str, mode: str) -> None:
    with both.peer() as peer:
        with moving(both, mode) as died, faults.kill_at(both.near, point):
            died(both.near)
        check(both, AT_SOURCE[point])
        peer.report("again")


@pytest.mark.parametrize("mode", usually(("pull",), ["pull", "push"]))
def test_a_source_that_is_restarted_waits_for_the_decision(both: Hosts, at_far: Faults, mode: str) -> None:
    """Its processes stay frozen meanwhile; users see that."""

    def move() -> None:
        both.lxc("move", "near:c1", "far:c1", "--mode", mode, check=False)

    with both.peer() as peer:
        with at_far.hold_at("moved instance is about to start"):
            thread = threading.Thread(target=move)
            thread.start()
            at_far.wait_for("moved instance is about to start")
            both.near.restart()
            assert both.state(both.near, "c1") == "Frozen"
        thread.join()
        check(both, "far")
        peer.report("again")


@pytest.mark.parametrize(("point", "mode"), moves(AT_TARGET))
def test_a_killed_target(both: Hosts, at_far: Faults, point: str, mode: str) -> None:
    with both.peer() as peer:
        with moving(both, mode) as died, at_far.kill_at(both.far, point):
            died(both.far)
        check(both, AT_TARGET[point])
        peer.report("again")


@pytest.mark.parametrize("point", usually(("source has forgotten the move",), LAST_WORDS))
def test_nobody_waits_for_last_words_that_are_lost(
    both: Hosts, faults: Faults, at_far: Faults, point: str
) -> None:
    place, mode = LAST_WORDS[point]
    killed, points = (both.near, faults) if place == "near" else (both.far, at_far)
    with moving(both, mode) as died, points.kill_at(killed, point):
        died(killed)
    check(both, "far")


def test_nobody_waits_for_the_lost_confirmation_of_a_failed_move(both: Hosts, faults: Faults) -> None:
    """With another interface there, it cannot be restored. The container runs on before that is confirmed."""
    url, pid = "/1.0/profiles/default", both.near.get("/1.0/instances/c1/state")["pid"]
    frozen: list[bool] = []
    before, earlier = both.far.get(url), moves_of(both.far)
    nic = {"type": "nic", "nictype": "bridged", "parent": LAN, "name": "eth1"}
    both.far.do("PATCH", url, {"devices": before["devices"] | {"eth1": nic}})
    try:
        with (
            moving(both, "push") as died,
            faults.kill_at(
                both.near,
                "source has recorded the decision",
                meanwhile=lambda: frozen.append(cgroups.frozen(pid)),
            ),
        ):
            died(both.near)
        assert frozen == [False]
        check(both, "near")
        until(lambda: moves_of(both.far) <= earlier, 60)
    finally:
        both.far.do("PUT", url, before)


@pytest.mark.parametrize(
    ("point", "place"), [("move is undecided", "near"), ("moved container is told", "far")]
)
def test_a_source_whose_host_loses_its_power_does_not_start_what_may_run_there(
    both: Hosts, faults: Faults, point: str, place: str
) -> None:
    """Its processes are gone, but the target decides."""
    both.near.do("PATCH", "/1.0/instances/c1", {"config": {"boot.autostart": "true"}})
    pid = both.near.get("/1.0/instances/c1/state")["pid"]

    def lose() -> None:
        asyncio.run(orphans.kill({*cgroups.folders_of(pid).values()}))
        until(lambda: process_ended(pid), 60)

    with moving(both, "pull") as died, faults.kill_at(both.near, point, meanwhile=lose):
        died(both.near)
    check(both, place)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["pull", "push"])
def test_nobody_waits_if_the_target_has_hung_up_before(both: Hosts, faults: Faults, mode: str) -> None:
    """As it does when the source takes long to end its processes."""
    words = ("move", "near:c1", "far:c1", "--mode", mode)
    thread = threading.Thread(target=both.lxc, args=words, kwargs={"check": False})
    with faults.hold_at("moved container recorded"):
        thread.start()
        faults.wait_for("moved container recorded")
        until(lambda: INSTANCE_RECEIVE.text not in running(both.far), 60)
    thread.join()
    check(both, "far")


def moves_of(daemon: Daemon) -> set[str]:
    """The operations of undecided moves, each of which ends with its record."""
    return {record["operation"] for record in undecided(daemon)}


def running(daemon: Daemon) -> list[str]:
    """What the operations are that run."""
    found = daemon.get("/1.0/operations?recursion=1").get("running", [])
    return [operation["description"] for operation in found]


@pytest.mark.parametrize("number", range(RANDOM_KILLS))
def test_killed_at_a_random_instant(both: Hosts, number: int) -> None:
    """One side, or both; the instants are the same in each run."""
    chosen = random.Random(number)
    killed = [both.near, both.far][number % 3 : number % 3 + 1] or [both.near, both.far]
    words = ("move", "near:c1", "far:c1", "--mode", chosen.choice(("pull", "push")))
    thread = threading.Thread(target=both.lxc, args=words, kwargs={"check": False})
    with both.peer() as peer:
        thread.start()
        time.sleep(chosen.uniform(0, _LONGEST))
        for daemon in killed:
            daemon.kill()
        thread.join()
        for daemon in killed:
            daemon.start()
        check(both, "either")
        peer.report("again")
