"""Choice and comparison of subnets. Pure functions: subnets in use are passed as arguments."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Collection, Mapping

from utsuwa.core.errors import InvalidConfig

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_TRIES = 1000
_PRIVATE = ipaddress.IPv4Network("10.0.0.0/8")
_LOCAL = ipaddress.IPv6Network("fd42::/16")


def free_ipv4(taken: Collection[Subnet], chance: random.Random) -> ipaddress.IPv4Interface:
    """Return the first address of an unused /24 in 10.0.0.0/8. Raises InvalidConfig."""
    for _ in range(_TRIES):
        subnet = ipaddress.IPv4Network((int(_PRIVATE[0]) + (chance.getrandbits(16) << 8), 24))
        if not meets(subnet, taken):
            return ipaddress.IPv4Interface((subnet[1], 24))
    raise InvalidConfig("No free IPv4 subnet was found in 10.0.0.0/8: set ipv4.address yourself")


def free_ipv6(taken: Collection[Subnet], chance: random.Random) -> ipaddress.IPv6Interface:
    """Return the first address of an unused unique local /64. Raises InvalidConfig."""
    for _ in range(_TRIES):
        subnet = ipaddress.IPv6Network((int(_LOCAL[0]) + (chance.getrandbits(48) << 64), 64))
        if not meets(subnet, taken):
            return ipaddress.IPv6Interface((subnet[1], 64))
    raise InvalidConfig("No free IPv6 subnet was found in fd42::/16: set ipv6.address yourself")


def meets(subnet: Subnet, others: Collection[Subnet]) -> bool:
    """Return whether the subnet overlaps with one of the others (of its own family)."""
    return any(overlap(subnet, other) for other in others)


def overlap(one: Subnet, other: Subnet) -> bool:
    if isinstance(one, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and one.overlaps(other)
    return isinstance(other, ipaddress.IPv6Network) and one.overlaps(other)


def refuse_overlap(key: str, subnet: Subnet, others: Mapping[str, Collection[Subnet]]) -> None:
    """Raise InvalidConfig if the subnet overlaps with one of the others, which are given by owner."""
    for owner, subnets in others.items():
        for other in subnets:
            if overlap(subnet, other):
                raise InvalidConfig(
                    f"Invalid value for {key!r}: {subnet} overlaps {other} of {owner}: use another subnet"
                )


def eui64(subnet: Subnet, mac: str) -> ipaddress.IPv6Address:
    """Return the SLAAC address of a host with this MAC address in a /64."""
    octets = bytes.fromhex(mac.replace(":", ""))
    tail = bytes((octets[0] ^ 2,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Address(int(subnet.network_address) | int.from_bytes(tail, "big"))
