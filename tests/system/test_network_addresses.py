"""Who gets which address and name from a real dnsmasq, whatever happened before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.netbox import until
from tests.support.networks import box_of, create, launch, lease

pytestmark = pytest.mark.root

STATEFUL = {"ipv4_address": "10.77.0.1/24", "ipv6_address": "fd42:77::1/64", "ipv6_dhcp_stateful": "true"}


@pytest.fixture
def net(module_net: Daemon) -> Iterator[Daemon]:
    yield module_net
    module_net.delete_instances()
    module_net.do("DELETE", "/1.0/networks/br")


def state(daemon: Daemon, name: str, action: str) -> None:
    daemon.do("PUT", f"/1.0/instances/{name}/state", {"action": action, "force": True})


def leases_of(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    return [x for x in daemon.get("/1.0/networks/br/leases") if x["hostname"].lower() == name.lower()]


def resolved(daemon: Daemon, asker: str, name: str) -> str:
    """What the network's DNS says of a name, asked from inside a container."""
    return daemon.lxc("exec", asker, "--", "nslookup", f"{name}.lxd", "10.77.0.1", check=False).stdout


@pytest.mark.parametrize("name", ["ignore", "infinite", "IGNORE", "Ab--c", "Xn--A", "h1m"])
def test_keywords_of_dnsmasq_are_valid_names(net: Daemon, name: str) -> None:
    """`ignore` got no address, `infinite` a lease without end, and neither had a name."""
    create(net, "br", ipv4_address="10.77.0.1/24", ipv6_address="none", ipv4_dhcp_expiry="10m")
    address = launch(net, name, "br", ipv4_address="10.77.0.50")
    assert address == "10.77.0.50"
    assert address in resolved(net, name, name)
    (line,) = (net.dir / "networks/br/dnsmasq.leases").read_text().splitlines()
    assert line.split(" ")[3] == name.lower()
    assert not line.startswith("0 "), "a lease without end"


def test_a_device_may_have_any_name(net: Daemon) -> None:
    """dnsmasq passes over files whose name ends in a tilde."""
    create(net, "br", **STATEFUL)
    nic = {"type": "nic", "network": "br", "name": "eth0", "ipv4.address": "10.77.0.50"}
    source = {"type": "image", "alias": "busybox"}
    for device, name in (("lan~", "c1"), ("ü" * 64, "c2")):
        config = {**nic, "ipv4.address": f"10.77.0.5{name[1]}"}
        net.do("POST", "/1.0/instances", {"name": name, "source": source, "devices": {device: config}})
        state(net, name, "start")
        assert lease(net, name) == f"10.77.0.5{name[1]}"


def test_new_mac_address_is_used_at_the_next_start(net: Daemon) -> None:
    """`lxc config unset c1 volatile.eth0.hwaddr` of a stopped instance, and of one that runs meanwhile."""
    create(net, "br", **STATEFUL)
    launch(net, "c1", "br", ipv4_address="10.77.0.50")
    state(net, "c1", "stop")
    old = net.get("/1.0/instances/c1")["config"]["volatile.eth0.hwaddr"]
    net.lxc("config", "unset", "c1", "volatile.eth0.hwaddr")
    state(net, "c1", "start")
    assert net.get("/1.0/instances/c1")["config"]["volatile.eth0.hwaddr"] != old
    assert lease(net, "c1") == "10.77.0.50"
    assert "10.77.0.50" in resolved(net, "c1", "c1")
    # One that runs has the old address for as long as it does.
    net.lxc("config", "unset", "c1", "volatile.eth0.hwaddr")
    assert lease(net, "c1") == "10.77.0.50"
    state(net, "c1", "restart")
    assert lease(net, "c1") == "10.77.0.50"


@pytest.mark.parametrize("order", ["set while stopped", "set while running"])
def test_a_static_address_is_assigned_from_the_first_start(net: Daemon, order: str) -> None:
    """Although a stopped instance still has a lease for it (incus#1265, lxd#7397)."""
    create(net, "br", **STATEFUL)
    address = launch(net, "a", "br")
    if order == "set while stopped":
        state(net, "a", "stop")
    launch(net, "b", "br", dhcp=False)
    state(net, "b", "stop")
    nic = net.get("/1.0/instances/b")["devices"]["eth0"] | {"ipv4.address": address}
    net.do("PATCH", "/1.0/instances/b", {"devices": {"eth0": nic}})
    if order == "set while running":
        refused = net.wait(net.api("PUT", "/1.0/instances/b/state", {"action": "start"}))
        assert f"{address} is in use by device 'eth0' of instance 'a', which is running" in refused["err"]
        state(net, "a", "stop")
    state(net, "b", "start")
    assert lease(net, "b") == address
    assert [(x["address"], x["type"]) for x in leases_of(net, "b") if "." in x["address"]] == [
        (address, "static")
    ]
    state(net, "a", "start")
    assert lease(net, "a") != address
    shown = [x["address"] for x in net.get("/1.0/networks/br/leases")]
    assert len(shown) == len(set(shown))


def test_a_static_address_is_not_taken_from_a_running_instance(net: Daemon) -> None:
    create(net, "br", **STATEFUL)
    address = launch(net, "a", "br")
    launch(net, "b", "br")
    nic = net.get("/1.0/instances/b")["devices"]["eth0"] | {"ipv4.address": address}
    refused = net.api("PATCH", "/1.0/instances/b", {"devices": {"eth0": nic}})
    assert (refused.status, "restart that instance first" in refused.error) == (400, True)
    assert "ipv4.address" not in net.get("/1.0/instances/b")["devices"]["eth0"]


SOLICIT = """
import socket, struct, sys, time

def option(code, data):
    return struct.pack("!HH", code, len(data)) + data

mac = bytes.fromhex(sys.argv[1].replace(":", ""))
rapid_commit, association = option(14, b""), option(3, struct.pack("!III", 7, 0, 0))
message = b"\\x01abc" + option(1, b"\\0\\3\\0\\1" + mac) + option(8, b"\\0\\0") + rapid_commit + association
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    sock.bind(("::", 546))
    sock.settimeout(1)
    for _ in range(50):  # the interface may still be looking for duplicates of its address
        try:
            sock.sendto(message, ("ff02::1:2", 547, 0, socket.if_nametoindex("eth0")))
            sock.recv(4096)
            break
        except OSError:
            time.sleep(0.2)
"""


def test_a_dhcpv6_lease_does_not_block_a_static_address(net: Daemon) -> None:
    """dnsmasq gives an address that is leased to nobody else, whoever is configured with it."""
    create(net, "br", **STATEFUL)
    launch(net, "a", "br", dhcp=False, ipv6_address="fd42:77::50")
    config = net.get("/1.0/instances/a")["config"]
    pid = net.get("/1.0/instances/a/state")["pid"]
    python = ("nsenter", f"--target={pid}", "--net", "--", sys.executable, "-c", SOLICIT)
    subprocess.run([*python, config["volatile.eth0.hwaddr"]], check=True)
    file = net.dir / "networks/br/dnsmasq.leases"
    until(lambda: " fd42:77::50 a " in file.read_text())  # dnsmasq answers before it notes the lease
    state(net, "a", "stop")
    nic = net.get("/1.0/instances/a")["devices"]["eth0"]
    net.do("PATCH", "/1.0/instances/a", {"devices": {"eth0": nic | {"ipv6.address": "fd42:77::60"}}})
    until(lambda: " fd42:77::50 " not in file.read_text())


def test_network_created_later_has_earlier_changes(net: Daemon) -> None:
    create(net, "br", **STATEFUL)
    launch(net, "c1", "br", dhcp=False)
    state(net, "c1", "stop")
    net.stop()
    box_of(net).run("ip", "link", "del", "dev", "br")
    box_of(net).run("ip", "link", "add", "name", "br", "type", "veth", "peer", "name", "br-peer")
    net.start()
    net.do("POST", "/1.0/instances/c1", {"name": "c2"})
    box_of(net).run("ip", "link", "del", "dev", "br")
    state(net, "c2", "start")
    address = lease(net, "c2")
    assert address in resolved(net, "c2", "c2")
