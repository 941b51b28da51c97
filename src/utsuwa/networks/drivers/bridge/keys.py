"""The config keys of managed bridges.

Dependencies between values, such as ranges inside the subnet, are checked in `settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
"""The DNS domain of instances; the same as in LXD, for compatibility with scripts."""

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
"""Prefixes of LXD's keys that are not supported yet."""


def _driver(value: str) -> None:
    if value == "openvswitch":
        raise InvalidConfig("openvswitch is not supported yet: use native")
    one_of("native")(value)


_COMMON = (
    ConfigKey("bridge.driver", default="native", help="The bridge driver: the kernel's.", validate=_driver),
    ConfigKey(
        "bridge.external_interfaces",
        help="Host interfaces without IP addresses that are attached to the bridge; one that disappears is "
        "attached again when it is back.",
        validate=interfaces,
    ),
    ConfigKey("bridge.hwaddr", help="The MAC address of the bridge.", validate=mac_address),
    ConfigKey(
        "bridge.mtu",
        "integer",
        default="1500",
        help="The MTU of the bridge, in bytes.",
        validate=integer_between(1280, 65535),
    ),
    ConfigKey(
        "dns.domain",
        default=DEFAULT_DOMAIN,
        help="The DNS domain of the instances' names.",
        validate=domain,
    ),
    ConfigKey(
        "dns.mode",
        default="managed",
        help="Which names have DNS records: those of the instances (managed), those that DHCP clients send "
        "(dynamic), or no names (none).",
        validate=one_of("managed", "dynamic", "none"),
    ),
    ConfigKey(
        "dns.nameservers",
        help="The name servers announced to instances; the bridge by default.",
        validate=nameservers,
    ),
    ConfigKey(
        "dns.search",
        help="The search domains announced to instances; dns.domain by default.",
        validate=domains,
    ),
    ConfigKey("raw.dnsmasq", help="Lines appended to the configuration of dnsmasq.", multiline=True),
)


def _family_keys(
    version: int,
    *,
    interface: Callable[[str], None],
    address: Callable[[str], None],
    ranges: Callable[[str], None],
    subnets: Callable[[str], None],
) -> tuple[ConfigKey, ...]:
    """Return the keys that exist for both address families, with the validators of one."""
    prefix = f"ipv{version}"
    return (
        ConfigKey(
            f"{prefix}.address",
            help="The bridge's address with its prefix length; auto, the default of new networks, chooses an "
            f"unused subnet, none disables IPv{version}.",
            validate=interface,
        ),
        ConfigKey(
            f"{prefix}.dhcp.expiry", default="1h", help="The duration of DHCP leases.", validate=lease_time
        ),
        ConfigKey(
            f"{prefix}.dhcp.ranges",
            help="The address ranges for DHCP, as FIRST-LAST; the complete subnet by default.",
            validate=ranges,
        ),
        ConfigKey(
            f"{prefix}.firewall",
            "bool",
            default="true",
            help="Whether firewall rules accept the traffic that the network needs.",
        ),
        ConfigKey(
            f"{prefix}.nat",
            "bool",
            default="false",
            help="Whether to masquerade outgoing traffic; true for new networks with a chosen subnet.",
        ),
        ConfigKey(f"{prefix}.nat.address", help="The source address of outgoing traffic.", validate=address),
        ConfigKey(
            f"{prefix}.nat.order",
            default="before",
            help="Whether the NAT rules come before or after those of other programs.",
            validate=one_of("before", "after"),
        ),
        ConfigKey(f"{prefix}.routes", help="Additional subnets to route to the bridge.", validate=subnets),
        ConfigKey(
            f"{prefix}.routing",
            "bool",
            default="true",
            help="Whether to route traffic between the bridge and other interfaces.",
        ),
    )


_IPV4 = (
    *_family_keys(
        4, interface=ipv4_interface, address=ipv4_address, ranges=ipv4_ranges, subnets=ipv4_subnets
    ),
    ConfigKey("ipv4.dhcp", "bool", default="true", help="Whether to assign addresses by DHCP."),
    ConfigKey(
        "ipv4.dhcp.gateway",
        help="The default gateway announced to instances; the bridge by default, none for no gateway.",
        validate=ipv4_gateway,
    ),
    ConfigKey(
        "ipv4.dhcp.routes",
        help="Additional routes announced to instances: subnet and gateway alternately.",
        validate=ipv4_dhcp_routes,
    ),
)

_IPV6 = (
    *_family_keys(
        6, interface=ipv6_interface, address=ipv6_address, ranges=ipv6_ranges, subnets=ipv6_subnets
    ),
    ConfigKey("ipv6.dhcp", "bool", default="true", help="Whether to provide network settings by DHCPv6."),
    ConfigKey(
        "ipv6.dhcp.stateful",
        "bool",
        default="false",
        help="Whether DHCPv6 assigns addresses, instead of SLAAC.",
    ),
)

BRIDGE_KEYS = KeyTable("networks of the type 'bridge'", (*_COMMON, *_IPV4, *_IPV6))


def check_bridge_config(config: Mapping[str, str]) -> None:
    """Validate each key separately. Raises InvalidConfig, or NotSupportedYet for keys of later versions."""
    for key, value in config.items():
        if value and key.startswith(LATER_PREFIXES):
            raise NotSupportedYet(f"The network key {key[:60]!r} is not supported yet: leave it out")
        if key == "bridge.driver" and value == "openvswitch":
            raise NotSupportedYet("Bridges of Open vSwitch are not supported yet: use bridge.driver=native")
    BRIDGE_KEYS.check({key: value for key, value in config.items() if not key.startswith(LATER_PREFIXES)})
