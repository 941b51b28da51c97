"""Config keys of bridges, judged one by one and together."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidConfig, NotSupportedYet
from utsuwa.networks.drivers.bridge.keys import BRIDGE_KEYS, check_bridge_config
from utsuwa.networks.drivers.bridge.settings import generated_mac, settings

OWNER = "utsuwa-12345678"
BOTH = {"ipv4.address": "10.1.2.1/24", "ipv6.address": "fd42:1::1/64"}

GOOD = [
    ("bridge.driver", "native"),
    ("bridge.external_interfaces", "eth1, eth2"),
    ("bridge.hwaddr", "00:16:3E:01:02:03"),
    ("bridge.mtu", "9000"),
    ("dns.domain", "example.org"),
    ("dns.mode", "dynamic"),
    ("dns.nameservers", "10.1.2.5, fd42::5"),
    ("dns.search", "a.example,b.example"),
    ("ipv4.address", "auto"),
    ("ipv4.address", "none"),
    ("ipv4.address", "172.16.0.1/16"),
    ("ipv4.dhcp", "off"),
    ("ipv4.dhcp.expiry", "45m"),
    ("ipv4.dhcp.expiry", "infinite"),
    ("ipv4.dhcp.expiry", "3600"),
    ("ipv4.dhcp.gateway", "none"),
    ("ipv4.dhcp.ranges", "10.1.2.5-10.1.2.9, 10.1.2.20-10.1.2.20"),
    ("ipv4.dhcp.routes", "10.9.0.0/24,10.1.2.9,0.0.0.0/0,10.1.2.1"),
    ("ipv4.nat.address", "192.0.2.1"),
    ("ipv4.nat.order", "after"),
    ("ipv4.routes", "10.9.0.0/24,10.8.0.0/16"),
    ("ipv6.address", "fd42::1/64"),
    ("ipv6.dhcp.ranges", "fd42::5-fd42::ff"),
    ("ipv6.nat.address", "2001:db8::1"),
    ("ipv6.routes", "2001:db8::/64"),
    ("raw.dnsmasq", "log-queries\nlog-dhcp"),
    ("user.note", "any\nthing"),
    ("ipv4.nat", ""),
]

BAD = [
    ("bridge.driver", "magic", "native"),
    ("bridge.external_interfaces", "eth1,a b", "'a b'"),
    ("bridge.hwaddr", "00:16:3e", "MAC"),
    ("bridge.hwaddr", "03:00:00:00:00:00", "multicast"),
    ("bridge.mtu", "1279", "between"),
    ("dns.domain", "-x", "domain"),
    ("dns.domain", "a..b", "domain"),
    ("dns.domain", "a,b", "domain"),
    ("dns.mode", "always", "managed"),
    ("dns.nameservers", "ns.example", "IP address"),
    ("ipv4.address", "10.0.0.1", "prefix"),
    ("ipv4.address", "fd42::1/64", "prefix"),
    ("ipv4.address", "10.0.0.0/24", "network or broadcast"),
    ("ipv4.address", "10.0.0.255/24", "network or broadcast"),
    ("ipv4.address", "127.0.0.1/8", "valid host address"),
    ("ipv4.address", "10.0.0.1/31", "room"),
    ("ipv4.address", "10.0.0.1/4", "room"),
    ("ipv4.dhcp", "perhaps", "true or false"),
    ("ipv4.dhcp.expiry", "5 minutes", "45m"),
    ("ipv4.dhcp.expiry", "30s", "two minutes"),
    ("ipv4.dhcp.expiry", "99999999w", "32 bits"),
    ("ipv4.dhcp.gateway", "here", "IPv4"),
    ("ipv4.dhcp.ranges", "10.1.2.5", "ranges"),
    ("ipv4.dhcp.ranges", "10.1.2.9-10.1.2.5", "backwards"),
    ("ipv4.dhcp.ranges", "10.1.2.9-fd42::1", "IPv4"),
    ("ipv4.dhcp.routes", "10.9.0.0/24", "pairs"),
    ("ipv4.dhcp.routes", "10.9.0.1/24,10.1.2.9", "subnet"),
    ("ipv4.nat.address", "2001:db8::1", "IPv4"),
    ("ipv4.nat.order", "middle", "before"),
    ("ipv4.routes", "10.9.0.1/24", "subnet"),
    ("ipv6.address", "10.0.0.1/24", "prefix"),
    ("ipv6.address", "fd42::/64", "network or broadcast"),
    ("ipv6.dhcp.ranges", "10.0.0.1-10.0.0.2", "IPv6"),
    ("ipv6.routes", "10.0.0.0/8", "IPv6"),
    ("raw.dnsmasq", "a\0b", "NUL"),
    ("ipv4.nat.address", "192.0.2.1\nx", "line break"),
    ("nothing", "1", "Unknown"),
]


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_good_values(key: str, value: str) -> None:
    check_bridge_config({key: value})


@pytest.mark.parametrize(("key", "value", "why"), BAD)
def test_bad_values(key: str, value: str, why: str) -> None:
    with pytest.raises(InvalidConfig, match=why) as caught:
        check_bridge_config({key: value})
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bridge.driver", "openvswitch"),
        ("bridge.mode", "fan"),
        ("fan.underlay_subnet", "auto"),
        ("tunnel.x.protocol", "gre"),
        ("security.acls", "a"),
        ("maas.subnet.ipv4", "x"),
        ("bgp.peers.x.asn", "1"),
        ("dns.zone.forward", "x"),
        ("ipv4.ovn.ranges", "10.0.0.1-10.0.0.2"),
    ],
)
def test_unsupported_bridge_keys_are_rejected(key: str, value: str) -> None:
    with pytest.raises(NotSupportedYet):
        check_bridge_config({key: value})
    check_bridge_config({key: ""} if key == "bridge.driver" else {})


@given(st.sampled_from([key.name for key in BRIDGE_KEYS.keys]), st.text(max_size=40))
def test_no_value_breaks_anything(key: str, value: str) -> None:
    """Whatever the value, it is taken or refused with a reason."""
    try:
        settings("br0", {key: value if value != "auto" else ""}, OWNER)
    except (InvalidConfig, NotSupportedYet):
        return


def test_defaults() -> None:
    bridge = settings("br0", BOTH, OWNER)
    assert (bridge.mtu, bridge.domain, bridge.dns_mode) == (1500, "lxd", "managed")
    assert bridge.mac == generated_mac(OWNER, "br0")
    assert bridge.serves
    assert bridge.ipv4 is not None
    assert bridge.ipv6 is not None
    assert (bridge.ipv4.dhcp, bridge.ipv4.firewall, bridge.ipv4.routing, bridge.ipv4.nat) == (
        True, True, True, False,
    )  # fmt: skip
    assert bridge.ipv4.assigns_addresses
    assert not bridge.ipv6.assigns_addresses
    assert [str(end) for end in bridge.ipv4.ranges[0]] == ["10.1.2.2", "10.1.2.254"]
    last = settings("br0", {"ipv4.address": "10.1.2.254/24"}, OWNER).ipv4
    assert last is not None
    assert [str(end) for end in last.ranges[0]] == ["10.1.2.1", "10.1.2.253"]


def test_bridge_without_addresses_serves_nothing() -> None:
    for config in ({}, {"ipv4.address": "none", "ipv6.address": "none"}):
        bridge = settings("br0", config, OWNER)
        assert (bridge.families, bridge.addresses, bridge.serves) == ((), (), False)


def test_generated_macs_differ_between_bridges_and_daemons() -> None:
    macs = {generated_mac(owner, name) for owner in (OWNER, "utsuwa-0") for name in ("br0", "br1")}
    assert len(macs) == 4
    assert all(mac.startswith("00:16:3e:") for mac in macs)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"ipv4.dhcp.ranges": "10.1.3.5-10.1.3.9"}, r"10\.1\.3\.5 is outside"),
        ({"ipv4.dhcp.ranges": "10.1.2.5-10.1.3.9"}, r"10\.1\.3\.9 is outside"),
        ({"ipv4.dhcp.gateway": "10.1.3.1"}, "outside"),
        ({"ipv6.dhcp.ranges": "fd43::5-fd43::9"}, "outside"),
        ({"ipv6.address": "fd42::1/80"}, "not a /64"),
        ({"ipv6.address": "fd42::1/48", "ipv6.dhcp.stateful": "true"}, "not a /64"),
    ],
)
def test_conflicting_settings_are_rejected(more: dict[str, str], why: str) -> None:
    with pytest.raises(InvalidConfig, match=why):
        settings("br0", BOTH | more, OWNER)


def test_a_small_ipv6_subnet_with_stateful_dhcp() -> None:
    bridge = settings("br0", {"ipv6.address": "fd42::1/80", "ipv6.dhcp.stateful": "true"}, OWNER)
    assert bridge.ipv6 is not None
    assert bridge.ipv6.subnet == ipaddress.ip_network("fd42::/80")
    assert bridge.ipv6.assigns_addresses
