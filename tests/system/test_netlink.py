"""Bridges, addresses and routes, compared with what `ip` shows of them."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.host.network import addressing, bridges, routes

pytestmark = pytest.mark.root

NAME, PORT, MAC = "utnl0", "utnl1", "00:16:3e:aa:00:01"
IPV4 = ipaddress.ip_interface("10.213.7.1/24")
IPV6 = ipaddress.ip_interface("fd42:213:7::1/64")


def ip(*arguments: str) -> Any:
    """Run `ip` in the network namespace of the tests."""
    done = subprocess.run(["ip", "-j", *arguments], capture_output=True, text=True, check=True, timeout=20)
    return json.loads(done.stdout or "[]")


@pytest.fixture(autouse=True)
def _port() -> Iterator[None]:
    ip("link", "add", PORT, "type", "veth", "peer", "name", "utnl3")
    yield
    bridges.delete(NAME)
    ip("link", "del", PORT)


def configure(*addresses: addressing.Interface, route: str = "", mtu: int = 1400) -> None:
    subnets = [ipaddress.ip_network(route)] if route else []
    bridges.configure(NAME, mac=MAC, mtu=mtu, addresses=addresses, routes=subnets)


def shown_addresses() -> set[str]:
    (link,) = ip("addr", "show", "dev", NAME)
    return {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] == "global"}


def shown_routes(family: str) -> dict[str, str]:
    return {route["dst"]: route.get("protocol", "boot") for route in ip(family, "route", "show", "dev", NAME)}


def test_a_bridge_is_made_and_changed() -> None:
    configure(IPV4, IPV6, route="192.0.2.0/24")
    link = bridges.find(NAME)
    assert link is not None
    assert (link.kind, link.mac, link.mtu, link.master, link.loopback) == ("bridge", MAC, 1400, None, False)
    (shown,) = ip("addr", "show", "dev", NAME)
    assert (shown["ifindex"], shown["address"], "UP" in shown["flags"]) == (link.index, MAC, True)
    assert shown["addr_info"][0]["broadcast"] == "10.213.7.255"
    assert shown_addresses() == {str(IPV4), str(IPV6)}
    assert shown_routes("-4")["192.0.2.0/24"] == "static"
    assert {subnet.version for subnet in addressing.taken()[NAME]} == {4, 6}
    assert ipaddress.ip_network("192.0.2.0/24") in addressing.routed()

    other = ipaddress.ip_interface("10.213.8.1/24")
    configure(other, route="2001:db8::/64", mtu=1300)
    assert shown_addresses() == {str(other)}
    assert "192.0.2.0/24" not in shown_routes("-4")
    assert shown_routes("-6")["2001:db8::/64"] == "static"
    changed = bridges.find(NAME)
    assert changed is not None
    assert (changed.index, changed.mtu) == (link.index, 1300)
    bridges.delete(NAME)
    assert bridges.find(NAME) is None
    bridges.delete(NAME)


def test_ports_come_and_go() -> None:
    configure()
    assert bridges.join(NAME, [PORT, "gone0", "lo"]) == {
        "gone0": "the host has no interface 'gone0'",
        "lo": "'lo' already has another master",
    }
    assert bridges.join(NAME, [PORT]) == {}
    bridges.check_ports(NAME, [PORT])
    facts = bridges.facts(NAME)
    assert facts is not None
    (shown,) = ip("-d", "link", "show", "dev", NAME)
    data = shown["linkinfo"]["info_data"]
    assert (facts.ports, facts.stp, facts.vlan_filtering) == ([PORT], False, False)
    assert (facts.forward_delay, facts.vlan_default) == (
        data["forward_delay"],
        data.get("vlan_default_pvid", 0),
    )
    assert facts.id == f"{data['bridge_id'].split('.')[0]}.{MAC.replace(':', '')}"
    bridges.release(NAME, [PORT])
    assert [link.master for link in bridges.links() if link.name == PORT] == [None]


def test_interfaces_that_cannot_be_ports() -> None:
    ip("addr", "add", "10.213.9.1/24", "dev", PORT)
    with pytest.raises(InvalidConfig, match="has addresses: remove them first"):
        bridges.check_ports(NAME, [PORT])


def test_an_interface_of_another_kind() -> None:
    with pytest.raises(InvalidConfig, match="not a bridge"):
        bridges.configure(PORT, mac=MAC, mtu=1500, addresses=())
    bridges.delete(PORT)
    assert bridges.facts(PORT) is None
    assert bridges.vlan(PORT) is None
    assert bridges.exists(PORT)


def test_what_the_kernel_refuses() -> None:
    with pytest.raises(HostError, match=f"cannot set up the bridge '{NAME}': "):
        configure(mtu=1)


def test_routes_behind_an_instance() -> None:
    configure(IPV4)
    behind = ["198.51.100.0/24", "2001:db8:1::/48"]
    for _ in range(2):  # what exists or is gone is passed over
        routes.add(NAME, behind)
        assert shown_routes("-4")["198.51.100.0/24"] == "boot"
        assert shown_routes("-6")["2001:db8:1::/48"] == "boot"
    for _ in range(2):
        routes.remove(NAME, behind)
        assert not {*shown_routes("-4"), *shown_routes("-6")} & {*behind}
    with pytest.raises(HostError, match="no interface 'gone0'"):
        routes.add("gone0", behind[:1])
    routes.remove("gone0", behind)
