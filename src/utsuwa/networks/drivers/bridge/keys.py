"""The config keys of managed bridges.

What one value means beside another (ranges inside the subnet, say) is judged in `settings`.
"""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core.config_keys import ConfigKey, KeyTable, integer_between, one_of
from utsuwa.core.errors import InvalidConfig, NotSupportedYet
from utsuwa.core.network_values import (
    domain,
    domains,
    interfaces,
    ipv4_address,
    ipv4_dhcp_routes,
    ipv4_gateway,
    ipv4_interface,
    ipv4_ranges,
    ipv4_subnets,
    ipv6_address,
    ipv6_interface,
    ipv6_ranges,
    ipv6_subnets,
    lease_time,
    mac_address,
    nameservers,
)

DEFAULT_DOMAIN = "lxd"
"""What names of instances end with: as LXD has it, so that scripts find them."""

LATER_PREFIXES = (
    "bgp.",
    "bridge.mode",
    "dns.zone.",
    "fan.",
    "ipv4.ovn.",
    "ipv6.ovn.",
    "maas.",
    "security.acls",
    "tunnel.",
)
"""Keys that are documented, but that this version does not serve."""


def _driver(value: str) -> None:
    if value == "openvswitch":
        raise InvalidConfig("openvswitch is not supported yet: use native")
    one_of("native")(value)


_COMMON = (
    ConfigKey("bridge.driver", default="native", help="What makes the bridge: the kernel.", validate=_driver),
    ConfigKey(
        "bridge.external_interfaces",
        help="Interfaces of the host, without addresses of their own, that become ports of the bridge; one "
        "that goes away later joins again when it is back.",
        validate=interfaces,
    ),
    ConfigKey("bridge.hwaddr", help="The bridge's own MAC address.", validate=mac_address),
    ConfigKey(
        "bridge.mtu",
        "integer",
        default="1500",
        help="The largest packet, in bytes, that the bridge passes on.",
        validate=integer_between(1280, 65535),
    ),
    ConfigKey(
        "dns.domain",
        default=DEFAULT_DOMAIN,
        help="The domain in which the instances' names are known.",
        validate=domain,
    ),
    ConfigKey(
        "dns.mode",
        default="managed",
        help="Whose names are known: those of the instances (managed), those that DHCP clients claim "
        "(dynamic), or nobody's (none).",
        validate=one_of("managed", "dynamic", "none"),
    ),
    ConfigKey(
        "dns.nameservers",
        help="The name servers that instances are told; the bridge itself where none are given.",
        validate=nameservers,
    ),
    ConfigKey(
        "dns.search",
        help="The domains that instances append to short names; dns.domain where none are given.",
        validate=domains,
    ),
    ConfigKey("raw.dnsmasq", help="Lines that are added to the configuration of dnsmasq.", multiline=True),
)

_IPV4 = (
    ConfigKey(
        "ipv4.address",
        help="The bridge's address with its prefix; auto, which new networks have, picks a free subnet; "
        "none switches IPv4 off.",
        validate=ipv4_interface,
    ),
    ConfigKey("ipv4.dhcp", "bool", default="true", help="Whether instances get addresses by DHCP."),
    ConfigKey(
        "ipv4.dhcp.expiry", default="1h", help="How long a lease lasts unrenewed.", validate=lease_time
    ),
    ConfigKey(
        "ipv4.dhcp.gateway",
        help="The gateway that instances are told: the bridge where none is given; none for no gateway.",
        validate=ipv4_gateway,
    ),
    ConfigKey(
        "ipv4.dhcp.ranges",
        help="Where DHCP takes addresses from, as FIRST-LAST; the whole subnet where none are given.",
        validate=ipv4_ranges,
    ),
    ConfigKey(
        "ipv4.dhcp.routes",
        help="More routes that instances are told: subnet and gateway by turns.",
        validate=ipv4_dhcp_routes,
    ),
    ConfigKey(
        "ipv4.firewall",
        "bool",
        default="true",
        help="Whether the firewall is told to let through what the network needs.",
    ),
    ConfigKey(
        "ipv4.nat",
        "bool",
        default="false",
        help="Whether instances reach out by the host's address; true on a new network with a chosen subnet.",
    ),
    ConfigKey("ipv4.nat.address", help="The address that they go out with.", validate=ipv4_address),
    ConfigKey(
        "ipv4.nat.order",
        default="before",
        help="Whether the rules for this come before or after those of others.",
        validate=one_of("before", "after"),
    ),
    ConfigKey(
        "ipv4.routes", help="More subnets that the host reaches over the bridge.", validate=ipv4_subnets
    ),
    ConfigKey("ipv4.routing", "bool", default="true", help="Whether the host passes packets in and out."),
)

_IPV6 = (
    ConfigKey(
        "ipv6.address",
        help="The bridge's address with its prefix; auto, which new networks have, picks a free subnet; "
        "none switches IPv6 off.",
        validate=ipv6_interface,
    ),
    ConfigKey(
        "ipv6.dhcp", "bool", default="true", help="Whether instances learn more than routes by DHCPv6."
    ),
    ConfigKey(
        "ipv6.dhcp.expiry", default="1h", help="How long a lease lasts unrenewed.", validate=lease_time
    ),
    ConfigKey(
        "ipv6.dhcp.ranges",
        help="Where stateful DHCPv6 takes addresses from, as FIRST-LAST.",
        validate=ipv6_ranges,
    ),
    ConfigKey(
        "ipv6.dhcp.stateful",
        "bool",
        default="false",
        help="Whether DHCPv6 gives addresses, in place of those that instances make for themselves.",
    ),
    ConfigKey(
        "ipv6.firewall",
        "bool",
        default="true",
        help="Whether the firewall is told to let through what the network needs.",
    ),
    ConfigKey(
        "ipv6.nat",
        "bool",
        default="false",
        help="Whether instances reach out by the host's address; true on a new network with a chosen subnet.",
    ),
    ConfigKey("ipv6.nat.address", help="The address that they go out with.", validate=ipv6_address),
    ConfigKey(
        "ipv6.nat.order",
        default="before",
        help="Whether the rules for this come before or after those of others.",
        validate=one_of("before", "after"),
    ),
    ConfigKey(
        "ipv6.routes", help="More subnets that the host reaches over the bridge.", validate=ipv6_subnets
    ),
    ConfigKey("ipv6.routing", "bool", default="true", help="Whether the host passes packets in and out."),
)

BRIDGE_KEYS = KeyTable("networks of the type 'bridge'", (*_COMMON, *_IPV4, *_IPV6))


def check_bridge_config(config: Mapping[str, str]) -> None:
    """Judge every key by itself. Raises InvalidConfig, or NotSupportedYet for keys of later versions."""
    for key, value in config.items():
        if value and key.startswith(LATER_PREFIXES):
            raise NotSupportedYet(f"The network key {key[:60]!r} is not supported yet: leave it out")
        if key == "bridge.driver" and value == "openvswitch":
            raise NotSupportedYet("Bridges of Open vSwitch are not supported yet: use bridge.driver=native")
    BRIDGE_KEYS.check({key: value for key, value in config.items() if not key.startswith(LATER_PREFIXES)})
