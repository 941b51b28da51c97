"""The config keys of managed bridges, and the checks of their values one by one.

What one value means beside another (ranges inside the subnet, say) is judged in `networks.settings`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from utsuwa.core.config_keys import ConfigKey, KeyTable, integer_between, one_of
from utsuwa.core.errors import InvalidConfig, InvalidName, NotSupportedYet
from utsuwa.core.names import check_interface_name

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}\Z")
_EXPIRY = re.compile(r"(?:[0-9]{1,9}[smhdw]?|infinite)\Z")
_DOMAIN = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}))*\Z"
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


def mac_address(value: str) -> None:
    if not _MAC.match(value):
        raise InvalidConfig("must be a MAC address such as 00:16:3e:01:02:03")
    if int(value[:2], 16) & 1:
        raise InvalidConfig("must not be a multicast address")


def ipv4_interface(value: str) -> None:
    """`auto`, `none`, or an address with its prefix."""
    _interface(value, ipaddress.IPv4Interface, "10.1.2.1/24")


def ipv6_interface(value: str) -> None:
    _interface(value, ipaddress.IPv6Interface, "fd42:1:2:3::1/64")


def _interface(
    value: str, kind: type[ipaddress.IPv4Interface] | type[ipaddress.IPv6Interface], example: str
) -> None:
    if value in ("auto", "none"):
        return
    try:
        address = kind(value)
    except ValueError:
        raise InvalidConfig(f"must be auto, none, or an address with its prefix such as {example}") from None
    network = address.network
    if "/" not in value or network.num_addresses < 4 or network.prefixlen < 8:
        raise InvalidConfig(f"must have a prefix that leaves room for instances, such as {example}")
    if address.ip.is_loopback or address.ip.is_multicast or address.ip.is_unspecified:
        raise InvalidConfig("must be an address that hosts can have")
    if address.ip == network.network_address or (kind is ipaddress.IPv4Interface and _is_last(address)):
        raise InvalidConfig(f"must be the address of a host: {address.ip} stands for the whole subnet")


def _is_last(address: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> bool:
    return address.ip == address.network.broadcast_address


def ipv4_address(value: str) -> None:
    _address(value, 4)


def ipv6_address(value: str) -> None:
    _address(value, 6)


def _address(value: str, version: int) -> None:
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        found = None
    if found is None or found.version != version or getattr(found, "scope_id", None):
        raise InvalidConfig(f"must be an IPv{version} address")


def ipv4_gateway(value: str) -> None:
    if value != "none":
        ipv4_address(value)


def ipv4_ranges(value: str) -> None:
    parse_ranges(value, 4)


def ipv6_ranges(value: str) -> None:
    parse_ranges(value, 6)


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_ranges(value: str, version: int) -> list[tuple[Address, Address]]:
    """`FIRST-LAST` with commas between several, each from a lower to a higher address."""
    found = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        for end in (first, last):
            if not dash:
                raise InvalidConfig("must be ranges such as 10.1.2.50-10.1.2.99")
            _address(end.strip(), version)
        low, high = ipaddress.ip_address(first.strip()), ipaddress.ip_address(last.strip())
        if int(low) > int(high):
            raise InvalidConfig(f"the range {part.strip()} runs backwards")
        found.append((low, high))
    return found


def ipv4_subnets(value: str) -> None:
    _subnets(value, 4)


def ipv6_subnets(value: str) -> None:
    _subnets(value, 6)


def _subnets(value: str, version: int) -> None:
    for part in value.split(","):
        try:
            found = ipaddress.ip_network(part.strip())
        except ValueError:
            found = None
        if found is None or found.version != version:
            raise InvalidConfig(f"{part.strip()[:50]!r} is not an IPv{version} subnet such as 10.9.0.0/24")


def ipv4_dhcp_routes(value: str) -> None:
    """Subnets and gateways by turns: `10.9.0.0/24,10.1.2.9`."""
    parts = [part.strip() for part in value.split(",")]
    if len(parts) % 2:
        raise InvalidConfig("must be pairs of a subnet and a gateway, all with commas between them")
    for subnet, gateway in zip(parts[::2], parts[1::2], strict=True):
        _subnets(subnet, 4)
        ipv4_address(gateway)


def nameservers(value: str) -> None:
    for part in value.split(","):
        try:
            ipaddress.ip_address(part.strip())
        except ValueError:
            raise InvalidConfig(f"{part.strip()[:50]!r} is not an IP address") from None


def lease_time(value: str) -> None:
    if not _EXPIRY.match(value):
        raise InvalidConfig("must be a time such as 45m, 12h, 7d, or infinite")
    if value[:-1].isdigit() and value[-1] in "smhdw":
        seconds = int(value[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[value[-1]]
    else:
        seconds = int(value) if value.isdigit() else 120
    if not 120 <= seconds < 2**32:
        raise InvalidConfig("must be two minutes or more, and fit into 32 bits of seconds")


def domain(value: str) -> None:
    if not _DOMAIN.match(value):
        raise InvalidConfig("must be a domain of letters, digits, dashes and dots")


def domains(value: str) -> None:
    for part in value.split(","):
        domain(part.strip())


def interfaces(value: str) -> None:
    for part in value.split(","):
        try:
            check_interface_name(part.strip())
        except InvalidName as error:
            raise InvalidConfig(error.message) from error


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

MEMBER_KEYS = frozenset({"bridge.external_interfaces"})
"""Keys that each member has itself; it has the others in common with all."""


def check_bridge_config(config: Mapping[str, str]) -> None:
    """Judge every key by itself. Raises InvalidConfig, or NotSupportedYet for keys of later versions."""
    for key, value in config.items():
        if value and key.startswith(LATER_PREFIXES):
            raise NotSupportedYet(f"The network key {key[:60]!r} is not supported yet: leave it out")
        if key == "bridge.driver" and value == "openvswitch":
            raise NotSupportedYet("Bridges of Open vSwitch are not supported yet: use bridge.driver=native")
    BRIDGE_KEYS.check({key: value for key, value in config.items() if not key.startswith(LATER_PREFIXES)})
