"""Managed bridges with real containers, each daemon in a network namespace of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import NetBox, outside, until
from tests.support.networks import box_of, create, dnsmasq_pid, launch, lease, patch, prepared

pytestmark = pytest.mark.root

NONE = {"ipv4.address": "none", "ipv6.address": "none"}


@pytest.fixture
def net(module_net: Daemon) -> Iterator[Daemon]:
    """The module's daemon; what a test leaves of instances and networks is deleted after it."""
    yield module_net
    module_net.delete_instances()
    for network in module_net.get("/1.0/networks?recursion=1"):
        if network["managed"]:
            module_net.do("DELETE", f"/1.0/networks/{network['name']}")


@pytest.fixture
def own_net(busybox_image: Image) -> Iterator[Daemon]:
    """A daemon for one test alone, which may kill or restart it."""
    with boxed_daemon() as daemon:
        yield prepared(daemon, busybox_image)


def chains(daemon: Daemon) -> set[str]:
    listed = box_of(daemon).nft("chains")
    return {o["chain"]["name"] for o in listed if o.get("chain", {}).get("table", "").startswith("utsuwa-")}


# ---- life


def test_an_empty_request_creates_a_complete_network(net: Daemon) -> None:
    reply = net.api("POST", "/1.0/networks", {})
    assert (reply.status, reply.headers["location"]) == (201, "/1.0/networks/utsuwabr0")
    shown = net.get("/1.0/networks/utsuwabr0")
    config = shown["config"]
    assert config.keys() == {"ipv4.address", "ipv4.nat", "ipv6.address", "ipv6.nat"}
    assert config["ipv4.address"].startswith("10.")
    assert config["ipv4.address"].endswith(".1/24")
    assert config["ipv6.address"].startswith("fd42:")
    assert (shown["type"], shown["managed"], shown["status"]) == ("bridge", True, "Created")
    box = box_of(net)
    assert box.addresses("utsuwabr0") == {config["ipv4.address"], config["ipv6.address"]}
    assert chains(net) == {f"{part}.utsuwabr0" for part in ("in", "out", "fwd", "pstrt")}
    assert box.run("cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"
    assert box.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding") == "1\n"
    net.do("POST", "/1.0/networks", {})
    assert {"utsuwabr0", "utsuwabr1"} <= {n["name"] for n in net.get("/1.0/networks?recursion=1")}
    net.do("DELETE", "/1.0/networks/utsuwabr0")
    assert "utsuwabr0" not in box.links()
    assert chains(net) == {f"{part}.utsuwabr1" for part in ("in", "out", "fwd", "pstrt")}
    assert not (net.dir / "networks" / "utsuwabr0").exists()


def test_disabled_features_are_absent(net: Daemon) -> None:
    create(net, "plain", **NONE)
    assert box_of(net).addresses("plain") == set()
    assert chains(net) == set()
    assert not (net.dir / "networks" / "plain" / "dnsmasq.pid").exists()
    patch(net, "plain", ipv4_address="10.44.0.1/24", ipv4_firewall="false")
    assert chains(net) == set()
    assert dnsmasq_pid(net, "plain")
    patch(net, "plain", ipv4_nat="true", ipv4_nat_address="192.0.2.9", ipv4_routes="10.45.0.0/16")
    assert chains(net) == {"pstrt.plain"}
    assert "10.45.0.0/16" in box_of(net).run("ip", "route")
    patch(net, "plain", ipv4_routes="")
    assert "10.45.0.0/16" not in box_of(net).run("ip", "route")
    patch(net, "plain", ipv4_firewall="true", ipv4_routing="false", ipv4_nat_order="after")
    assert chains(net) == {f"{part}.plain" for part in ("in", "out", "fwd", "pstrt")}


def test_unmanaged_interfaces_are_listed_but_not_changed(net: Daemon) -> None:
    box = box_of(net)
    box.run("ip", "link", "add", "br9", "type", "bridge")
    try:
        shown = {n["name"]: n for n in net.get("/1.0/networks?recursion=1")}
        assert (shown["lo"]["type"], shown["br9"]["type"]) == ("loopback", "bridge")
        assert (shown["br9"]["managed"], shown["br9"]["status"]) == (False, "")
        assert net.get("/1.0/networks/br9/state")["bridge"]["upper_devices"] == []
        for method in ("PUT", "PATCH", "DELETE"):
            assert net.api(method, "/1.0/networks/br9", {"config": {}}).status == 404
        refused = net.api("POST", "/1.0/networks", {"name": "br9"})
        assert (refused.status, "already" in refused.error) == (409, True)
    finally:
        box.run("ip", "link", "del", "br9")


def test_edit_with_etag(net: Daemon) -> None:
    create(net, "one", **NONE)
    etag = net.api("GET", "/1.0/networks/one").headers["etag"]
    body = {"description": "x", "config": {**NONE, "user.why": "y"}}
    assert net.api("PUT", "/1.0/networks/one", body, headers={"If-Match": "other"}).status == 412
    assert net.api("PUT", "/1.0/networks/one", body, headers={"If-Match": etag}).status == 200
    shown = net.get("/1.0/networks/one")
    assert (shown["description"], shown["config"]) == ("x", {**NONE, "user.why": "y"})
    net.do("PUT", "/1.0/networks/one", {"config": {}})
    assert net.get("/1.0/networks/one")["config"] == {}


def test_rename(net: Daemon) -> None:
    before = create(net, "one")["config"]
    launch(net, "c1", "one", dhcp=False)
    used = net.api("POST", "/1.0/networks/one", {"name": "two"})
    assert (used.status, "in use" in used.error) == (400, True)
    net.delete_instances()
    assert net.api("POST", "/1.0/networks/one", {"name": "two"}).headers["location"] == "/1.0/networks/two"
    assert net.get("/1.0/networks/two")["config"] == before
    assert box_of(net).addresses("two") == {before["ipv4.address"], before["ipv6.address"]}
    assert "one" not in box_of(net).links()
    assert chains(net) == {f"{part}.two" for part in ("in", "out", "fwd", "pstrt")}


# ---- containers


def test_two_containers_reach_each_other_by_name_and_the_host_reaches_both(net: Daemon) -> None:
    create(net, "br")
    one, two = launch(net, "c1", "br"), launch(net, "c2", "br")
    net.lxc("exec", "c1", "--", "ping", "-c1", "-W3", "c2")
    net.lxc("exec", "c2", "--", "ping", "-c1", "-W3", "c1.lxd")
    net.lxc("exec", "c2", "--", "ping", "-c1", "-W3", "_gateway.lxd")
    for address in (one, two):
        box_of(net).run("busybox", "ping", "-c1", "-W3", address)
    leases = {(x["hostname"], x["type"]): x["address"] for x in net.get("/1.0/networks/br/leases")}
    assert leases["br.gw", "gateway"]
    found = [x for x in net.get("/1.0/networks/br/leases") if x["type"] == "dynamic"]
    assert {(x["hostname"], x["address"]) for x in found} >= {("c1", one), ("c2", two)}
    state = net.get("/1.0/networks/br/state")
    assert len(state["bridge"]["upper_devices"]) == 2
    assert state["counters"]["packets_received"] > 0
    assert net.get("/1.0/networks/br")["used_by"] == ["/1.0/instances/c1", "/1.0/instances/c2"]
    in_use = net.api("DELETE", "/1.0/networks/br")
    assert (in_use.status, "in use" in in_use.error) == (400, True)


@pytest.mark.debian
def test_debian_gets_addresses_and_names_by_itself(own_net: Daemon, debian_image: Image) -> None:
    own_net.import_image(debian_image.metadata, debian_image.rootfs, alias="debian")
    create(own_net, "br")
    nic = {"type": "nic", "name": "eth0", "network": "br"}
    for name in ("d1", "d2"):
        source = {"type": "image", "alias": "debian"}
        own_net.do("POST", "/1.0/instances", {"name": name, "source": source, "devices": {"eth0": nic}})
        own_net.do("PUT", f"/1.0/instances/{name}/state", {"action": "start"})

    def known() -> bool:
        return own_net.lxc("exec", "d1", "--", "getent", "ahosts", "d2.lxd", check=False).returncode == 0

    until(known, 60)
    own_net.lxc("exec", "d1", "--", "ping", "-c1", "-W3", "d2.lxd")


def test_names_follow_their_instances(net: Daemon) -> None:
    create(net, "br")
    launch(net, "c1", "br", dhcp=False)
    hosts = net.dir / "networks" / "br" / "dnsmasq.hosts"
    mac = net.get("/1.0/instances/c1")["config"]["volatile.eth0.hwaddr"]
    assert (hosts / "c1.eth0").read_text() == f"{mac},c1\n"
    net.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    net.do("POST", "/1.0/instances/c1", {"name": "c3"})
    assert {path.name: path.read_text() for path in hosts.iterdir()} == {"c3.eth0": f"{mac},c3\n"}
    net.do("DELETE", "/1.0/instances/c3")
    assert list(hosts.iterdir()) == []


def test_ipv6_addresses_are_assigned_by_router_advertisements(net: Daemon) -> None:
    create(net, "br")
    launch(net, "c1", "br", dhcp=False)
    wanted = [x["address"] for x in net.get("/1.0/networks/br/leases") if x["hostname"] == "c1"]

    def there() -> bool:
        nic = net.get("/1.0/instances/c1/state")["network"]["eth0"]
        return set(wanted) <= {a["address"] for a in nic["addresses"]}

    assert len(wanted) == 1
    until(there, 15)
    until(lambda: box_of(net).succeeds("busybox", "ping", "-6", "-c1", "-W2", wanted[0]), 10)


def test_static_addresses(net: Daemon) -> None:
    create(net, "br", ipv4_address="10.77.0.1/24", ipv6_address="fd42:77::1/64", ipv6_dhcp_stateful="true")
    assert launch(net, "c1", "br", ipv4_address="10.77.0.50", ipv6_address="fd42:77::50") == "10.77.0.50"
    leases = {x["address"]: x for x in net.get("/1.0/networks/br/leases")}
    assert leases["10.77.0.50"]["type"] == leases["fd42:77::50"]["type"] == "static"
    device = net.get("/1.0/instances/c1")["devices"]["eth0"] | {"ipv4.address": "10.77.0.60"}
    net.do("PATCH", "/1.0/instances/c1", {"devices": {"eth0": device}})
    assert lease(net, "c1") == "10.77.0.60"


def test_devices_are_added_and_removed_while_a_container_runs(net: Daemon) -> None:
    create(net, "br")
    create(net, "other")
    launch(net, "c1", "br")
    nic = {"type": "nic", "network": "other", "name": "eth1", "mtu": "1400", "host_name": "myport"}
    devices = net.get("/1.0/instances/c1")["devices"]
    net.do("PATCH", "/1.0/instances/c1", {"devices": {**devices, "eth1": nic}})
    net.lxc("exec", "c1", "--", "ip", "link", "set", "eth1", "up")
    assert lease(net, "c1", "eth1")
    assert net.get("/1.0/networks/other/state")["bridge"]["upper_devices"] == ["myport"]
    assert net.get("/1.0/instances/c1/state")["network"]["eth1"]["mtu"] == 1400
    # Also by a client that knows nothing of volatile keys.
    net.do("PUT", "/1.0/instances/c1", {"config": {}, "devices": devices, "profiles": ["default"]})
    assert "myport" not in box_of(net).links()
    assert net.get("/1.0/networks/other")["used_by"] == []
    assert "eth1" not in net.get("/1.0/instances/c1/state")["network"]


def test_routes_lead_through_the_instance_while_it_runs(net: Daemon) -> None:
    create(net, "br", ipv4_address="10.77.0.1/24", ipv6_address="fd42:77::1/64")
    launch(net, "c1", "br", ipv4_routes="10.91.0.0/24,10.92.0.0/24", ipv6_routes="fd42:91::/64")
    assert routes(net) == {"10.91.0.0/24 br", "10.92.0.0/24 br", "fd42:91::/64 br"}
    net.lxc("exec", "c1", "--", "ip", "addr", "add", "10.91.0.5/24", "dev", "eth0")
    box_of(net).run("busybox", "ping", "-c1", "-W5", "10.91.0.5")
    device = net.get("/1.0/instances/c1")["devices"]["eth0"]
    changed = device | {"ipv4.routes": "10.92.0.0/24, 10.93.0.0/24", "ipv6.routes": ""}
    net.do("PATCH", "/1.0/instances/c1", {"devices": {"eth0": changed}})
    assert routes(net) == {"10.92.0.0/24 br", "10.93.0.0/24 br"}
    alone = {"type": "nic", "nictype": "p2p", "host_name": "alone", "ipv4.routes": "10.94.0.0/24"}
    net.do("PATCH", "/1.0/instances/c1", {"devices": {"alone": alone}})
    assert "10.94.0.0/24 alone" in routes(net)
    net.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    assert routes(net) == set()
    net.do("PUT", "/1.0/instances/c1/state", {"action": "start"})
    assert routes(net) == {"10.92.0.0/24 br", "10.93.0.0/24 br", "10.94.0.0/24 alone"}


def routes(daemon: Daemon) -> set[str]:
    """The routes that are no network's own."""
    shown = [route for v in "46" for route in json.loads(box_of(daemon).run("ip", f"-{v}", "-j", "route"))]
    return {f"{route['dst']} {route['dev']}" for route in shown if route.get("protocol", "boot") == "boot"}


def test_a_bridge_of_the_host(net: Daemon) -> None:
    box = box_of(net)
    box.run("ip", "link", "add", "br9", "type", "bridge")
    try:
        nic = {"type": "nic", "nictype": "bridged", "parent": "br9", "name": "eth0"}
        source = {"type": "image", "alias": "busybox"}
        net.do("POST", "/1.0/instances", {"name": "c1", "source": source, "devices": {"eth0": nic}})
        net.do("PUT", "/1.0/instances/c1/state", {"action": "start"})
        assert len(net.get("/1.0/networks/br9/state")["bridge"]["upper_devices"]) == 1
        assert net.get("/1.0/networks/br9")["used_by"] == ["/1.0/instances/c1"]
        net.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
        assert net.get("/1.0/networks/br9/state")["bridge"]["upper_devices"] == []
    finally:
        box.run("ip", "link", "del", "br9")
    gone = net.wait(net.api("PUT", "/1.0/instances/c1/state", {"action": "start"}))
    assert "no bridge 'br9'" in gone["err"]


def test_a_profile_can_specify_the_network(net: Daemon) -> None:
    create(net, "br")
    net.do("POST", "/1.0/profiles", {"name": "lan", "devices": {"eth0": {"type": "nic", "network": "br"}}})
    try:
        source = {"type": "image", "alias": "busybox"}
        body = {"name": "c1", "source": source, "profiles": ["default", "lan"]}
        net.do("POST", "/1.0/instances", body)
        assert net.get("/1.0/networks/br")["used_by"] == ["/1.0/instances/c1", "/1.0/profiles/lan"]
        hosts = net.dir / "networks" / "br" / "dnsmasq.hosts"
        assert [path.name for path in hosts.iterdir()] == ["c1.eth0"]
        net.do("PUT", "/1.0/profiles/lan", {"devices": {}})
        assert net.get("/1.0/networks/br")["used_by"] == []
        assert list(hosts.iterdir()) == []
    finally:
        net.delete_instances()
        net.do("DELETE", "/1.0/profiles/lan")


def test_nat_replaces_source_addresses(net: Daemon) -> None:
    """A second namespace stands for the outside: it has no route back to the containers."""
    create(net, "br", ipv6_address="none")
    launch(net, "c1", "br")
    world = NetBox()
    try:
        with outside(box_of(net), world, "192.0.2.1/24", "192.0.2.2/24"):
            net.lxc("exec", "c1", "--", "ping", "-c1", "-W3", "192.0.2.2")
            patch(net, "br", ipv4_nat="false")
            assert net.lxc("exec", "c1", "--", "ping", "-c1", "-W1", "192.0.2.2", check=False).returncode == 1
            patch(net, "br", ipv4_nat="true", ipv4_nat_address="192.0.2.1")
            net.lxc("exec", "c1", "--", "ping", "-c1", "-W3", "192.0.2.2")
            patch(net, "br", ipv4_routing="false")
            assert net.lxc("exec", "c1", "--", "ping", "-c1", "-W1", "192.0.2.2", check=False).returncode == 1
    finally:
        world.close()


PEER = """
import socket, sys
size, out = int(sys.argv[2]), sys.argv[3] == "out"
with socket.create_server((sys.argv[1], 5001)) as server:
    print("ready", flush=True)
    peer, _ = server.accept()
    with peer:
        if out:
            while size and (part := peer.recv(65536)):
                size -= len(part)
            assert not size
        else:
            peer.sendall(bytes(size))
"""


def transfer(daemon: Daemon, name: str, gateway: str, size: int, *, out: bool) -> float:
    """Seconds that `size` bytes take from (or into) the container, by TCP."""
    argv = [sys.executable, "-c", PEER, gateway, str(size), "out" if out else "in"]
    with subprocess.Popen(
        [*box_of(daemon).prefix, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "ready\n"
        there = f"head -c {size} /dev/zero | nc {gateway} 5001" if out else f"nc {gateway} 5001 | wc -c"
        began = time.monotonic()
        said = daemon.lxc("exec", name, "--", "sh", "-c", there).stdout
        taken = time.monotonic() - began
        assert said == ("" if out else f"{size}\n")
        assert peer.wait(30) == 0
        return taken


@pytest.mark.alone
@pytest.mark.parametrize("way", ["out", "in"])
def test_limits_hold_and_change_while_a_container_runs(net: Daemon, way: str) -> None:
    gateway = create(net, "br", ipv6_address="none")["config"]["ipv4.address"].split("/")[0]
    key = "limits.egress" if way == "out" else "limits.ingress"
    if way == "out":
        launch(net, "c1", "br", limits_egress="8Mbit")
    else:
        launch(net, "c1", "br", limits_ingress="8Mbit")
    size = 1_500_000  # 1.5 s at 8 Mbit/s, less the burst
    assert 1 < transfer(net, "c1", gateway, size, out=way == "out") < 12
    device = net.get("/1.0/instances/c1")["devices"]["eth0"]
    net.do("PATCH", "/1.0/instances/c1", {"devices": {"eth0": {**device, key: "200Mbit"}}})
    assert transfer(net, "c1", gateway, 10 * size, out=way == "out") < 12  # 0.6 s, instead of 15 s
    net.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    assert [name for name in box_of(net).links() if name.startswith(("ifb", "veth"))] == []


# ---- priorities


PLACES = {"input": "", "postrouting": "oifname outside0"}
"""Where what a container sends to the host arrives, and where what it sends to others leaves."""


def has_priority(daemon: Daemon, priority: str) -> bool:
    """Whether what a container sends to the host and to others has a priority; answers return."""
    box = box_of(daemon)
    commands = ["add table inet counted"]
    for hook, where in PLACES.items():
        commands.append(f"add chain inet counted {hook} {{ type filter hook {hook} priority 300; }}")
        for which in (f"meta priority {priority}", ""):
            commands.append(f"add rule inet counted {hook} {where} icmp type echo-request {which} counter")
    box.run("nft", "-f", "-", input="\n".join(commands))
    try:
        daemon.lxc("exec", "c1", "--", "sh", "-c", "ping -Ac3 -W5 192.0.2.2 && ping -Ac3 -W5 192.0.2.1")
        counters = [o["rule"]["expr"] for o in box.nft("table", "inet", "counted") if "rule" in o]
        found = [rule[-1]["counter"]["packets"] for rule in counters]
    finally:
        box.run("nft", "delete", "table", "inet", "counted")
    assert found in ([0, 3, 0, 3], [3, 3, 3, 3])
    return bool(found[0])


def priorities(daemon: Daemon) -> list[str]:
    """The priorities that rules of the daemon set."""
    return re.findall(r"priority set (\S+)", box_of(daemon).run("nft", "list", "ruleset"))


@pytest.mark.parametrize("kind", ["bridged", "p2p"])
def test_priorities_of_packets_that_leave_the_host(net: Daemon, kind: str) -> None:
    """Of the instance and, in its place, of the interface: at the start, changed live, and removed."""
    nic = {"type": "nic", "name": "eth0", "network": "br"}
    if kind == "p2p":
        nic = {"type": "nic", "name": "eth0", "nictype": "p2p", "host_name": "p2p0"}
    other = NetBox()
    try:
        with outside(box_of(net), other, "192.0.2.1/24", "192.0.2.2/24"):
            other.run("ip", "route", "add", "10.79.0.0/24", "via", "192.0.2.1")
            create(net, "br", ipv4_address="10.77.0.1/24", ipv6_address="none", ipv4_nat="true")
            config = {"limits.network.priority": "5"}
            source = {"type": "image", "alias": "busybox"}
            body = {"name": "c1", "source": source, "devices": {"eth0": nic}, "config": config}
            net.do("POST", "/1.0/instances", body)
            net.do("PUT", "/1.0/instances/c1/state", {"action": "start"})
            connect(net, kind)
            assert has_priority(net, "0:5")
            net.lxc("config", "set", "c1", "limits.network.priority=7")
            assert has_priority(net, "0:7")
            net.lxc("config", "device", "set", "c1", "eth0", "limits.priority=65538")
            assert has_priority(net, "1:2")
            net.kill()
            net.start()
            assert has_priority(net, "1:2")
            net.lxc("config", "device", "unset", "c1", "eth0", "limits.priority")
            assert has_priority(net, "0:7")
            net.lxc("config", "unset", "c1", "limits.network.priority")
            assert not has_priority(net, "0:7")
            assert priorities(net) == []
            net.lxc("config", "set", "c1", "limits.network.priority=1")
            assert priorities(net) == ["0:1", "0:1"]
            net.lxc("stop", "c1", "--force")
            assert priorities(net) == []
    finally:
        other.close()


def connect(daemon: Daemon, kind: str) -> None:
    """Give the container c1 an address and a route."""
    address, gateway = ("10.77.0.2/24", "10.77.0.1") if kind == "bridged" else ("10.79.0.2/24", "10.79.0.1")
    if kind == "p2p":
        box_of(daemon).run("ip", "address", "add", "10.79.0.1/24", "dev", "p2p0")
        box_of(daemon).run("ip", "link", "set", "p2p0", "up")
        box_of(daemon).run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    script = f"ip address add {address} dev eth0; ip link set eth0 up; ip route add default via {gateway}"
    daemon.lxc("exec", "c1", "--", "sh", "-c", script)


# ---- changes, ends and kills


def test_changes_do_not_cut_containers_off(net: Daemon) -> None:
    create(net, "br", ipv4_address="10.77.0.1/24", ipv6_address="none")
    address = launch(net, "c1", "br")
    ports = net.get("/1.0/networks/br/state")["bridge"]["upper_devices"]
    old = dnsmasq_pid(net, "br")
    patch(net, "br", bridge_mtu="1400", bridge_hwaddr="00:16:3e:aa:bb:cc", dns_domain="example.org")
    box_of(net).run("busybox", "ping", "-c1", "-W3", address)
    state = net.get("/1.0/networks/br/state")
    assert state["bridge"]["upper_devices"] == ports
    assert (state["mtu"], state["hwaddr"]) == (1400, "00:16:3e:aa:bb:cc")
    assert dnsmasq_pid(net, "br") != old
    same = dnsmasq_pid(net, "br")
    patch(net, "br", user_note="nothing that dnsmasq reads")
    assert dnsmasq_pid(net, "br") == same
    patch(net, "br", ipv4_address="10.78.0.1/24")
    assert lease(net, "c1").startswith("10.78.0.")
    net.lxc("exec", "c1", "--", "ping", "-c1", "-W3", "c1.example.org")


def test_a_killed_dnsmasq_is_restarted(net: Daemon) -> None:
    create(net, "br")
    old = dnsmasq_pid(net, "br")
    os.kill(old, signal.SIGKILL)

    def back() -> bool:
        with contextlib.suppress(OSError, ValueError):
            return dnsmasq_pid(net, "br") != old
        return False

    until(back)
    assert "dnsmasq of network 'br' has ended" in net.log.read_text()
    assert launch(net, "c1", "br")


def test_a_restarted_daemon_finds_its_networks(own_net: Daemon) -> None:
    create(own_net, "br")
    address = launch(own_net, "c1", "br")
    pid = dnsmasq_pid(own_net, "br")
    own_net.restart()
    assert dnsmasq_pid(own_net, "br") == pid
    box_of(own_net).run("busybox", "ping", "-c1", "-W3", address)
    own_net.kill()
    os.kill(pid, signal.SIGKILL)
    own_net.start()
    assert dnsmasq_pid(own_net, "br") != pid
    own_net.lxc("exec", "c1", "--", "ping", "-c1", "-W3", "c1")


def test_a_network_is_a_reason_to_start_with_the_machine(own_net: Daemon) -> None:
    create(own_net, "br")
    own_net.stop()
    argv = [sys.executable, "-m", "utsuwa.daemon.main", "activateifneeded", "--debug"]
    env = {**os.environ, "UTSUWA_DIR": str(own_net.dir)}
    woken = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30)
    assert "Daemon has managed networks, activating..." in woken.stderr
    own_net.start()


def test_networks_are_restored_after_a_reboot(own_net: Daemon) -> None:
    """The host is shut down, and what the kernel holds is gone with it."""
    config = create(own_net, "br")["config"]
    launch(own_net, "c1", "br", dhcp=False)
    own_net.stop(signal.SIGPWR)
    box = box_of(own_net)
    assert "br" not in box.links()
    assert box.tables() == []
    own_net.start()
    assert box.addresses("br") == {config["ipv4.address"], config["ipv6.address"]}
    until(lambda: own_net.get("/1.0/instances/c1")["status"] == "Running")
    assert lease(own_net, "c1")


@pytest.mark.parametrize("change", ["create", "rename", "delete"])
def test_network_is_complete_or_absent_after_a_kill(own_net: Daemon, change: str) -> None:
    box = box_of(own_net)
    for delay in (0.01, 0.05):
        if change != "create":
            create(own_net, "br")
        method, url, body = {
            "create": ("POST", "/1.0/networks", {"name": "br"}),
            "rename": ("POST", "/1.0/networks/br", {"name": "br2"}),
            "delete": ("DELETE", "/1.0/networks/br", None),
        }[change]

        def send(method: str = method, url: str = url, body: dict[str, str] | None = body) -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                own_net.api(method, url, body)

        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(delay)
        own_net.kill()
        sender.join()
        own_net.start()
        shown = {n["name"]: n for n in own_net.get("/1.0/networks?recursion=1") if n["managed"]}
        assert set(box.links()) - {"lo", "sit0"} == shown.keys() == {n.split(".")[1] for n in chains(own_net)}
        assert {path.name for path in (own_net.dir / "networks").iterdir()} == shown.keys()
        for name, network in shown.items():
            assert network["status"] == "Created"
            assert box.addresses(name) == {network["config"][f"ipv{n}.address"] for n in (4, 6)}
            os.kill(dnsmasq_pid(own_net, name), 0)
            own_net.do("DELETE", f"/1.0/networks/{name}")


def test_a_bridge_that_somebody_removed_is_made_again(net: Daemon) -> None:
    create(net, "br")
    box_of(net).run("ip", "link", "del", "dev", "br")
    assert launch(net, "c1", "br")


def test_two_daemons_leave_each_other_alone(own_net: Daemon) -> None:
    create(own_net, "br")
    address = launch(own_net, "c1", "br")
    other = Daemon(box=own_net.box)
    try:
        other.start()
        assert other.api("POST", "/1.0/networks", {}).headers["location"] == "/1.0/networks/utsuwabr0"
        taken = {n["name"] for n in other.get("/1.0/networks?recursion=1") if not n["managed"]}
        assert "br" in taken
        before, pid = chains(own_net), dnsmasq_pid(own_net, "br")
    finally:
        assert other.close() == []
    assert chains(own_net) == {name for name in before if name.endswith(".br")}
    assert dnsmasq_pid(own_net, "br") == pid
    box_of(own_net).run("busybox", "ping", "-c1", "-W3", address)
    assert lease(own_net, "c1") == address


def test_the_lease_of_a_deleted_instance_is_free_at_once(net: Daemon) -> None:
    create(
        net,
        "br",
        ipv4_address="10.77.0.1/24",
        ipv4_dhcp_ranges="10.77.0.10-10.77.0.10",
        ipv6_address="none",
    )
    assert launch(net, "c1", "br") == "10.77.0.10"
    source = {"type": "image", "alias": "busybox"}
    nic = {"type": "nic", "network": "br", "name": "eth0"}
    net.do("POST", "/1.0/instances", {"name": "c2", "source": source, "devices": {"eth0": nic}})
    full = net.wait(net.api("PUT", "/1.0/instances/c2/state", {"action": "start"}))
    assert "no free address" in full["err"]
    net.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    net.do("DELETE", "/1.0/instances/c1")
    until(lambda: all(x["type"] == "gateway" for x in net.get("/1.0/networks/br/leases")))
    net.do("PUT", "/1.0/instances/c2/state", {"action": "start"})
    assert lease(net, "c2") == "10.77.0.10"


def test_external_interfaces(net: Daemon) -> None:
    box = box_of(net)
    box.run("ip", "link", "add", "ext0", "type", "veth", "peer", "name", "ext1")
    try:
        create(net, "br", bridge_external_interfaces="ext0")
        assert net.get("/1.0/networks/br/state")["bridge"]["upper_devices"] == ["ext0"]
        patch(net, "br", bridge_external_interfaces="")
        assert net.get("/1.0/networks/br/state")["bridge"]["upper_devices"] == []
        box.run("ip", "addr", "add", "192.0.2.7/24", "dev", "ext0")
        refused = net.api("PATCH", "/1.0/networks/br", {"config": {"bridge.external_interfaces": "ext0"}})
        assert (refused.status, "has addresses" in refused.error) == (400, True)
    finally:
        box.run("ip", "link", "del", "ext0")


def test_firewall_that_drops_forwarded_traffic_is_named(net: Daemon) -> None:
    box = box_of(net)
    rules = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }"
    box.run("nft", "-f", "-", input=rules)
    try:
        create(net, "br")
        assert "firewall chain 'ip filter FORWARD' drops" in net.log.read_text()
    finally:
        box.run("nft", "delete", "table", "ip", "filter")


# ---- bad input

BAD: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "long name": ({"name": "n" * 16}, 400, ("n" * 16, "15")),
    "odd name": ({"name": "a b"}, 400, ("'a b'",)),
    "slash": ({"name": "../x"}, 400, ("'../x'",)),
    "dot": ({"name": ".hidden"}, 400, ("'.hidden'",)),
    "all": ({"name": "all"}, 400, ("'all'",)),
    "line break in the name": ({"name": "a\nb"}, 400, ("'a\\nb'",)),
    "type of later": ({"name": "x", "type": "macvlan"}, 501, ("macvlan",)),
    "no type": ({"name": "x", "type": "tokenring"}, 400, ("tokenring",)),
    "unknown key": ({"name": "x", "config": {"ipv4.color": "red"}}, 400, ("ipv4.color",)),
    "key with a line break": ({"name": "x", "config": {"ipv4.nat\nx": "1"}}, 400, ("control",)),
    "value with a line break": ({"name": "x", "config": {"dns.domain": "a\nb"}}, 400, ("dns.domain",)),
    "tunnel": ({"name": "x", "config": {"tunnel.a.protocol": "gre"}}, 501, ("tunnel.a.protocol",)),
    "fan": ({"name": "x", "config": {"bridge.mode": "fan"}}, 501, ("bridge.mode",)),
    "openvswitch": ({"name": "x", "config": {"bridge.driver": "openvswitch"}}, 501, ("native",)),
    "no address": ({"name": "x", "config": {"ipv4.address": "10.0.0.1"}}, 400, ("ipv4.address", "prefix")),
    "subnet": ({"name": "x", "config": {"ipv4.address": "10.0.0.0/24"}}, 400, ("broadcast address",)),
    "tiny": ({"name": "x", "config": {"ipv4.address": "10.0.0.1/31"}}, 400, ("room",)),
    "no bool": ({"name": "x", "config": {"ipv4.nat": "perhaps"}}, 400, ("ipv4.nat",)),
    "mtu": ({"name": "x", "config": {"bridge.mtu": "12"}}, 400, ("bridge.mtu",)),
    "mac": ({"name": "x", "config": {"bridge.hwaddr": "01:00:00:00:00:00"}}, 400, ("multicast",)),
    "range outside": (
        {"name": "x", "config": {"ipv4.address": "10.9.0.1/24", "ipv4.dhcp.ranges": "10.8.0.5-10.8.0.9"}},
        400,
        ("10.8.0.5", "outside"),
    ),
    "range backwards": (
        {"name": "x", "config": {"ipv4.dhcp.ranges": "10.9.0.9-10.9.0.1"}},
        400,
        ("backwards",),
    ),
    "gateway outside": (
        {"name": "x", "config": {"ipv4.address": "10.9.0.1/24", "ipv4.dhcp.gateway": "10.8.0.1"}},
        400,
        ("10.8.0.1", "outside"),
    ),
    "ipv6 prefix": ({"name": "x", "config": {"ipv6.address": "fd42::1/80"}}, 400, ("/64",)),
    "overlap": ({"name": "x", "config": {"ipv4.address": "10.66.0.129/25"}}, 400, ("overlaps", "'taken'")),
    "overlap, IPv6": (
        {"name": "x", "config": {"ipv6.address": "fd42:66::9/64"}},
        400,
        ("overlaps", "'taken'"),
    ),
    "overlap with the host": ({"name": "x", "config": {"ipv4.address": "192.0.2.9/24"}}, 400, ("'lo'",)),
    "raw.dnsmasq": (
        {"name": "x", "config": {"raw.dnsmasq": "domain-needed\nno-such-option=1"}},
        400,
        ("dnsmasq", "bad option", "line 2"),
    ),
    "no such port": ({"name": "x", "config": {"bridge.external_interfaces": "nix0"}}, 400, ("'nix0'",)),
    "taken name": ({"name": "taken"}, 409, ("'taken'", "already")),
    "taken by the host": ({"name": "lo"}, 409, ("'lo'", "already")),
    "config is no object": ({"name": "x", "config": ["a"]}, 400, ("config",)),
}


@pytest.fixture(scope="module")
def taken(module_net: Daemon) -> Iterator[Daemon]:
    """A network that stands in the way of others, and an address of the host's own."""
    box_of(module_net).run("ip", "addr", "add", "192.0.2.1/24", "dev", "lo")
    create(module_net, "taken", ipv4_address="10.66.0.1/24", ipv6_address="fd42:66::1/64")
    yield module_net
    module_net.do("DELETE", "/1.0/networks/taken")
    box_of(module_net).run("ip", "addr", "del", "192.0.2.1/24", "dev", "lo")


@pytest.mark.parametrize("case", BAD)
def test_bad_networks_are_refused_and_leave_nothing(taken: Daemon, case: str) -> None:
    body, status, words = BAD[case]
    links, rules = box_of(taken).links(), chains(taken)
    folders = sorted(path.name for path in (taken.dir / "networks").iterdir())
    reply = taken.api("POST", "/1.0/networks", body)
    assert reply.status == status, reply.body
    for word in words:
        assert word in reply.error, reply.error
    assert box_of(taken).links() == links
    assert chains(taken) == rules
    assert sorted(path.name for path in (taken.dir / "networks").iterdir()) == folders
    assert [n["name"] for n in taken.get("/1.0/networks?recursion=1") if n["managed"]] == ["taken"]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"raw.dnsmasq": "no-such-option"}, "bad option"),
        ({"raw.dnsmasq": "listen-address=203.0.113.1"}, "203.0.113.1"),
        ({"ipv4.address": "10.66.1.0/24"}, "broadcast address"),
        ({"bridge.external_interfaces": "nix0"}, "'nix0'"),
        ({"ipv4.dhcp.ranges": "10.0.0.1-10.0.0.9"}, "outside"),
    ],
)
def test_a_network_is_unchanged_after_a_rejected_change(
    taken: Daemon, config: dict[str, str], word: str
) -> None:
    before = taken.get("/1.0/networks/taken")
    reply = taken.api("PATCH", "/1.0/networks/taken", {"config": config})
    assert reply.status in (400, 500), reply.body
    assert word in reply.error
    assert taken.get("/1.0/networks/taken") == before
    assert box_of(taken).addresses("taken") == {"10.66.0.1/24", "fd42:66::1/64"}
    os.kill(dnsmasq_pid(taken, "taken"), 0)
    dns = box_of(taken).run("busybox", "nslookup", "_gateway.lxd", "10.66.0.1", check=False)
    assert "10.66.0.1" in dns


NICS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "no network": ({"network": "nix"}, ("'nix'", "does not exist")),
    "outside": ({"ipv4.address": "10.67.0.9"}, ("10.67.0.9", "outside")),
    "the bridge's own": ({"ipv4.address": "10.66.0.1"}, ("10.66.0.1", "own")),
    "broadcast": ({"ipv4.address": "10.66.0.255"}, ("10.66.0.255",)),
    "IPv6 without stateful": ({"ipv6.address": "fd42:66::7"}, ("ipv6.dhcp.stateful",)),
    "taken address": ({"ipv4.address": "10.66.0.40"}, ("10.66.0.40", "taken", "'holder'")),
    "taken MAC": ({"hwaddr": "00:16:3E:00:00:40"}, ("00:16:3e:00:00:40", "taken", "'holder'")),
    "taken route": ({"ipv4.routes": "10.5.0.0/16,10.66.9.0/24"}, ("10.66.9.0/24", "'holder'")),
    "no subnet": ({"ipv4.routes": "10.66.9.1/24"}, ("ipv4.routes", "10.66.9.1/24")),
    "long host name": ({"host_name": "h" * 16}, ("host_name", "15")),
    "short host name": ({"host_name": "h"}, ("host_name", "at least 2 characters")),
    "line break": ({"ipv4.address": "10.66.0.9\n"}, ("ipv4.address",)),
}


@pytest.fixture(scope="module")
def holder(taken: Daemon) -> Iterator[Daemon]:
    """An instance with an address and a MAC of its own on the network `taken`."""
    launch(
        taken,
        "holder",
        "taken",
        dhcp=False,
        ipv4_address="10.66.0.40",
        hwaddr="00:16:3e:00:00:40",
        ipv4_routes="10.66.9.0/24",
    )
    yield taken
    taken.delete_instances()


@pytest.mark.parametrize("case", NICS)
def test_bad_nics_are_refused(holder: Daemon, case: str) -> None:
    device, words = NICS[case]
    nic = {"type": "nic", "network": "taken", "name": "eth0", **device}
    body = {"name": "c9", "source": {"type": "image", "alias": "busybox"}, "devices": {"eth0": nic}}
    made = holder.api("POST", "/1.0/instances", body)
    holder_nic = holder.get("/1.0/instances/holder")["devices"] | {"eth5": nic | {"name": "eth5"}}
    added = holder.api("PATCH", "/1.0/instances/holder", {"devices": holder_nic})
    for reply in (made, added):
        assert reply.status == 400, reply.body
        for word in words:
            assert word in reply.error, reply.error
    assert [i["name"] for i in holder.get("/1.0/instances?recursion=1")] == ["holder"]


@pytest.mark.parametrize(
    "second", [{"network": "taken"}, {"nictype": "bridged", "parent": "taken"}], ids=["network", "parent"]
)
def test_a_second_nic_on_one_network_is_refused(holder: Daemon, second: dict[str, str]) -> None:
    """Its name in the network's DNS could mean either."""
    nic = {"type": "nic", "name": "eth5", **second}
    added = holder.api("PATCH", "/1.0/instances/holder", {"devices": {"eth5": nic}})
    assert added.status == 400, added.body
    assert "DNS name 'holder' is used on network 'taken', by device 'eth0'" in added.error
    assert "eth5" not in holder.get("/1.0/instances/holder")["devices"]


def test_a_change_that_leaves_an_instance_outside_is_refused(holder: Daemon) -> None:
    for config in ({"ipv4.address": "10.68.0.1/24"}, {"ipv4.dhcp": "false"}, {"ipv4.address": "none"}):
        reply = holder.api("PATCH", "/1.0/networks/taken", {"config": config})
        assert (reply.status, "'holder'" in reply.error) == (400, True), reply.body


def test_lxc_shows_it_all(holder: Daemon) -> None:
    shown = json.loads(holder.lxc("network", "list", "--format=json").stdout)
    assert {"lo", "taken"} <= {network["name"] for network in shown}
    assert "10.66.0.1" in holder.lxc("network", "info", "taken").stdout
    assert "STATIC" in holder.lxc("network", "list-leases", "taken").stdout
    assert holder.lxc("network", "get", "taken", "ipv4.address").stdout == "10.66.0.1/24\n"
