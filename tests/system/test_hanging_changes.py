"""A change that hangs on the host holds up its own instance, and what it has reserved, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.boxed import daemon_with_faults
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image

pytestmark = pytest.mark.root

ATTACH = "veth pair created"
NIC = {"type": "nic", "name": "eth1", "network": "br"}
SOURCE = {"type": "image", "alias": "busybox"}


@pytest.fixture(scope="module")
def net(busybox_image: Image, faults: Faults) -> Iterator[Daemon]:
    """A daemon with the network `br`, and c1, which runs without an interface."""
    none = {"eth0": {"type": "none"}}
    body = {"name": "c1", "devices": none}
    with daemon_with_faults(busybox_image, faults, body, "br") as daemon:
        daemon.do("PATCH", "/1.0/profiles/default", {"devices": none})
        daemon.do("POST", "/1.0/profiles", {"name": "more"})
        daemon.do("PATCH", "/1.0/instances/c1", {"profiles": ["default", "more"]})
        yield daemon


@pytest.fixture
def hanging(net: Daemon, faults: Faults) -> Iterator[Future[Any]]:
    """While c1 gets an interface with a static address, which does not come to its end."""
    with ThreadPoolExecutor(1) as thread:
        with faults.hold_at(ATTACH):
            devices = {"nic": NIC | {"ipv4.address": "10.77.0.9"}}
            attach = thread.submit(net.do, "PATCH", "/1.0/instances/c1", {"devices": devices})
            faults.wait_for(ATTACH)
            yield attach
            assert not attach.done()
        attach.result(timeout=30)
    assert net.get("/1.0/instances/c1")["devices"]["nic"]["ipv4.address"] == "10.77.0.9"
    assert "volatile.last_state.change" not in net.get("/1.0/instances/c1")["config"]
    net.do("PATCH", "/1.0/instances/c1", {"devices": {"nic": {"type": "none"}}})


def test_others_are_made_changed_and_deleted(net: Daemon, hanging: Future[Any]) -> None:
    nic = NIC | {"ipv4.address": "10.77.0.10"}
    net.do("POST", "/1.0/instances", {"name": "c2", "source": SOURCE, "devices": {"nic": nic}})
    net.do("PUT", "/1.0/instances/c2/state", {"action": "start"})
    net.do("PATCH", "/1.0/instances/c2", {"config": {"limits.processes": "100"}})
    net.do("PUT", "/1.0/instances/c2/state", {"action": "stop", "force": True})
    net.do("PATCH", "/1.0/instances/c2", {"config": {"security.idmap.isolated": "true"}})
    net.do("DELETE", "/1.0/instances/c2")


def test_reserved_addresses_are_not_assigned_to_others(net: Daemon, hanging: Future[Any]) -> None:
    body = {"name": "c2", "source": SOURCE, "devices": {"nic": NIC | {"ipv4.address": "10.77.0.9"}}}
    reply = net.api("POST", "/1.0/instances", body)
    assert reply.status == 400
    assert b"10.77.0.9 is taken by device 'nic' of instance 'c1'" in reply.body


def test_other_instances_are_not_blocked_by_a_hanging_profile(net: Daemon, faults: Faults) -> None:
    """Those with the same profile are made when it has come to its end, with what it has then."""
    with ThreadPoolExecutor(2) as threads:
        with faults.hold_at(ATTACH):
            devices = {"lan": NIC}
            change = threads.submit(net.do, "PATCH", "/1.0/profiles/more", {"devices": devices})
            faults.wait_for(ATTACH)
            net.do("POST", "/1.0/instances", {"name": "c3", "source": SOURCE})
            body = {"name": "c4", "source": SOURCE, "profiles": ["default", "more"]}
            same = threads.submit(net.do, "POST", "/1.0/instances", body)
            net.do("DELETE", "/1.0/instances/c3")
            assert not same.done()
        change.result(timeout=30)
        same.result(timeout=30)
    shown = net.get("/1.0/instances/c4")
    assert shown["expanded_devices"]["lan"] == NIC
    assert shown["config"]["volatile.lan.hwaddr"]
    net.do("DELETE", "/1.0/instances/c4")
    net.do("PATCH", "/1.0/profiles/more", {"devices": {"lan": {"type": "none"}}})


def test_a_limit_that_was_set_meanwhile_holds(net: Daemon, faults: Faults) -> None:
    net.do("PATCH", "/1.0/instances/c1", {"config": {"limits.memory": "64MiB"}})
    before = net.get("/1.0/instances/c1")
    with ThreadPoolExecutor(1) as thread:
        with faults.hold_at(ATTACH):
            change = {"devices": {"nic": NIC}, "config": {"limits.memory": "128MiB"}}
            attach = thread.submit(net.api, "PATCH", "/1.0/instances/c1", change)
            faults.wait_for(ATTACH)
            net.do("PATCH", "/1.0/projects/default", {"config": {"limits.memory": "100MiB"}})
        reply = attach.result(timeout=30)
    try:
        operation = net.get(f"{reply.operation}/wait") if reply.status == 202 else {"err": reply.body}
        assert "has the limit limits.memory=100MiB" in str(operation["err"])
        assert net.get("/1.0/instances/c1") == before
    finally:
        net.do("PATCH", "/1.0/projects/default", {"config": {"limits.memory": ""}})


def test_an_instance_that_becomes_protected_is_not_deleted(net: Daemon, faults: Faults) -> None:
    url = "/1.0/instances/c5"
    net.do("POST", "/1.0/instances", {"name": "c5", "source": SOURCE})
    with faults.hold_at("before copy_volume"):
        begun = [net.api("POST", f"{url}/snapshots", {"name": "s1", "stateful": False})]
        faults.wait_for("before copy_volume")
        shown = net.get(url)
        begun.append(net.api("PUT", url, shown | {"config": {"security.protection.delete": "true"}}))
        begun.append(net.api("DELETE", url))
    operations = [net.get(f"{reply.operation}/wait") for reply in begun]
    assert [operation["status"] for operation in operations] == ["Success", "Success", "Failure"]
    assert "is protected" in operations[2]["err"]
    net.do("PATCH", url, {"config": {"security.protection.delete": ""}})
    net.do("DELETE", url)
