"""A daemon that is killed while it changes a running container's devices: its next start takes it back."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.boxed import daemon_with_faults
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image
from utsuwa.host import lxc
from utsuwa.host.network import traffic

pytestmark = pytest.mark.root

ROW = "before update instance"
"""The point before the row is stored: all else is done."""
BASE = {"type": "nic", "name": "eth1", "network": "br"}
LIMITED = BASE | {"limits.max": "10Mbit", "limits.priority": "3", "ipv4.routes": "10.91.0.0/24"}
OTHER = BASE | {"limits.max": "20Mbit", "limits.priority": "4", "ipv4.routes": "10.92.0.0/24"}
RENAMED = OTHER | {"name": "lan"}
CASES = {
    "add": (None, LIMITED, ("veth pair created", ROW)),
    "remove": (LIMITED, None, ("veth pair deleted", ROW)),
    "change in place": (LIMITED, OTHER, (ROW,)),
    "free of limits": (LIMITED, BASE, (ROW,)),
    "replace": (LIMITED, RENAMED, ("veth pair deleted", "veth pair created")),
}
Nic = dict[str, str] | None


@pytest.fixture(scope="module")
def net(busybox_image: Image, faults: Faults) -> Iterator[Daemon]:
    """A daemon with the running container c1, on the network `br` by eth0."""
    nic = {"type": "nic", "name": "eth0", "network": "second"}
    body = {"name": "c1", "devices": {"eth0": nic}}
    with daemon_with_faults(busybox_image, faults, body, "br", "second") as daemon:
        yield daemon


def set_nic(daemon: Daemon, nic: Nic) -> None:
    """Give c1 this second interface, or none."""
    instance = daemon.get("/1.0/instances/c1")
    devices = {name: device for name, device in instance["devices"].items() if name != "nic"}
    daemon.do("PUT", "/1.0/instances/c1", {**instance, "devices": devices | ({"nic": nic} if nic else {})})


def state(daemon: Daemon) -> dict[str, object]:
    """All that the host has of c1's second interface."""
    box = daemon.box
    assert box is not None
    instance = daemon.get("/1.0/instances/c1")
    host_name = instance["config"].get("volatile.nic.host_name", "")
    links = set(box.links())
    ours = {name for name in links if name.startswith(("veth", "ifb"))}
    ours -= {instance["config"]["volatile.eth0.host_name"], host_name, traffic.helper_name(host_name)}
    shown = box.run("tc", "class", "show", "dev", host_name) if host_name else ""
    return {
        "devices": instance["devices"],
        "noted": instance["config"].get("volatile.last_state.change", ""),
        "there": not host_name or host_name in links,
        "unknown": ours,
        "inside": set(daemon.get("/1.0/instances/c1/state")["network"]),
        "rates": re.findall(r" rate (\S+)", shown),
        "priorities": re.findall(r"priority set (\S+)", box.run("nft", "list", "ruleset")),
        "helper": traffic.helper_name(host_name) in links,
        "routes": {
            route["dst"]
            for route in json.loads(box.run("ip", "-j", "route", "show", "dev", "br"))
            if route["dst"] != "10.77.0.0/24"
        },
    }


@pytest.mark.parametrize("case", CASES)
def test_interrupted_changes_are_reverted(net: Daemon, faults: Faults, case: str) -> None:
    before, after, points = CASES[case]
    set_nic(net, before)
    was = state(net)
    assert was["unknown"] == set()
    for name in points:
        instance = net.get("/1.0/instances/c1")
        devices = {key: device for key, device in instance["devices"].items() if key != "nic"}
        body = {**instance, "devices": devices | ({"nic": after} if after else {})}
        with faults.kill_at(net, name):
            net.do("PUT", "/1.0/instances/c1", body)
        assert state(net) == was, name
    set_nic(net, after)
    assert state(net)["noted"] == ""


def test_one_that_ended_meanwhile_leaves_nothing(net: Daemon, faults: Faults) -> None:
    set_nic(net, None)
    instance = net.get("/1.0/instances/c1")
    body = {**instance, "devices": instance["devices"] | {"nic": LIMITED}}
    with faults.kill_at(net, ROW, meanwhile=lambda: os.kill(net_pid(net), 9)):
        net.do("PUT", "/1.0/instances/c1", body)
    box = net.box
    assert box is not None
    assert [name for name in box.links() if name.startswith(("veth", "ifb"))] == []
    assert "10.91.0.0/24" not in box.run("ip", "route")
    assert net.get("/1.0/instances/c1")["status"] == "Stopped"
    assert "volatile.last_state.change" not in net.get("/1.0/instances/c1")["config"]
    net.do("PUT", "/1.0/instances/c1/state", {"action": "start"})


def net_pid(daemon: Daemon) -> int:
    """The pid of c1's init, also where the daemon does not run."""
    (monitor,) = lxc.active(daemon.dir / "containers")["c1"]
    return int(Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()[0])


def test_a_start_that_was_not_finished_is(net: Daemon, faults: Faults) -> None:
    net.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    set_nic(net, LIMITED)
    with faults.kill_at(net, "container started"):
        net.do("PUT", "/1.0/instances/c1/state", {"action": "start"})
    found = state(net)
    assert net.get("/1.0/instances/c1")["status"] == "Running"
    assert found["routes"] == {"10.91.0.0/24"}
    assert found["rates"] != []
    assert found["unknown"] == set()


def test_fault_point_that_is_not_reached_fails_the_test(net: Daemon, faults: Faults) -> None:
    """Of the test itself: it would show nothing."""
    failure = pytest.raises(AssertionError, match="did not end at the point 'nowhere'")
    with failure, faults.kill_at(net, "nowhere"):
        net.get("/1.0")
    net.start()


@pytest.mark.parametrize(
    ("case", "point"),
    [
        ("replace", "veth pair deleted"),
        ("add", "before update profile"),
        ("remove", "before update profile"),
        ("replace", "after update profile"),
    ],
)
def test_interrupted_profile_change_applies_to_all_or_none(
    net: Daemon, faults: Faults, case: str, point: str
) -> None:
    before, after, _ = CASES[case]
    url, root = "/1.0/profiles/default", net.get("/1.0/profiles/default")["devices"]

    def give(nic: Nic) -> None:
        devices = root | ({"nic": nic} if nic else {})
        net.do("PUT", url, {"devices": devices, "config": {}, "description": ""})

    set_nic(net, None)
    give(after)
    then = state(net)
    give(before)
    was = state(net)
    assert was["unknown"] == then["unknown"] == set()
    with faults.kill_at(net, point):
        give(after)
    stored = net.get(url)["devices"].get("nic")
    assert stored == (after if point.startswith("after") else before)
    assert state(net) == (then if point.startswith("after") else was)
    give(None)
    assert state(net)["inside"] == {"eth0", "lo"}
