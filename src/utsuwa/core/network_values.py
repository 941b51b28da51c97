"""Validators of the values of network and NIC config keys: addresses, subnets, names."""

from __future__ import annotations

import ipaddress
import re

from utsuwa.core.errors import InvalidConfig, InvalidName
from utsuwa.core.names import check_interface_name

MEMBER_KEYS = frozenset({"bridge.external_interfaces"})
"""Keys that are set per member; the others are the same on all members."""

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}\Z")
_EXPIRY = re.compile(r"(?:[0-9]{1,9}[smhdw]?|infinite)\Z")
_DOMAIN = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}))*\Z"
)


def mac_address(value: str) -> None:
    if not _MAC.match(value):
        raise InvalidConfig("must be a MAC address such as 00:16:3e:01:02:03")
    if int(value[:2], 16) & 1:
        raise InvalidConfig("must not be a multicast address")


def ipv4_interface(value: str) -> None:
    """`auto`, `none`, or an address with its prefix length."""
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
        raise InvalidConfig("must be a valid host address")
    if address.ip == network.network_address or (kind is ipaddress.IPv4Interface and _is_last(address)):
        raise InvalidConfig(
            f"must be the address of a host: {address.ip} is the network or broadcast address"
        )


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
    """Parse comma-separated `FIRST-LAST` ranges, each from a lower to a higher address."""
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


def is_within(subnet: str, other: str) -> bool:
    """Return whether all addresses of a subnet are in another one."""
    inner, outer = ipaddress.ip_network(subnet, strict=False), ipaddress.ip_network(other, strict=False)
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def subnets_of_networks(value: str) -> None:
    """`block`, or comma-separated entries NETWORK:SUBNET."""
    for entry in [] if value == "block" else value.split(","):
        network, _, subnet = entry.strip().partition(":")
        try:
            ipaddress.ip_network(subnet)
        except ValueError as error:
            raise InvalidConfig(f"must be NETWORK:SUBNET entries such as br0:10.9.0.0/24 ({error})") from None
        check_interface_name(network)


def ipv4_dhcp_routes(value: str) -> None:
    """Alternating subnets and gateways: `10.9.0.0/24,10.1.2.9`."""
    parts = [part.strip() for part in value.split(",")]
    if len(parts) % 2:
        raise InvalidConfig("must be comma-separated pairs of a subnet and a gateway")
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
