"""Addresses and routes of host interfaces, by netlink. Blocking: call in threads.

Functions that change something raise OSError.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from utsuwa.host.helper.rtnetlink import parse_attributes
from utsuwa.host.network import netlink

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

PROTO_BOOT, PROTO_STATIC = 3, 4
"""What has set a route: `ip route add`, or an administrator's program."""
SCOPE_GLOBAL = 0

_ADDRESS = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_NODAD = 0x02

_ROUTE = struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_TABLE_MAIN = 254
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_ANY = 0, 253, 255
_UNICAST = 1

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_VERSIONS = {family: version for version, family in _FAMILIES.items()}


@dataclass(frozen=True)
class Route:
    """A route of the host; `target` is None for a default route, `interface` an index."""

    target: Subnet | None
    interface: int | None
    protocol: int
    table: int


# ---- addresses


def addresses(index: int | None = None) -> Iterator[tuple[int, Interface]]:
    """Yield the index of an interface and an address of global scope, of one interface or of all.

    On a point-to-point link, it is that of the peer.
    """
    for owner, prefix, found in _global(index):
        yield owner, ipaddress.ip_interface((found[_IFA_ADDRESS], prefix))


def own_addresses() -> Iterator[tuple[int, Address]]:
    """Yield the index of an interface and an address of global scope that this host has there."""
    for owner, _, found in _global(None):
        yield owner, ipaddress.ip_address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])


def _global(index: int | None) -> Iterator[tuple[int, int, dict[int, bytes]]]:
    for message in netlink.dump(netlink.GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        family, prefix, _flags, scope, owner = _ADDRESS.unpack_from(message)
        if scope == SCOPE_GLOBAL and family in _VERSIONS and index in (None, owner):
            yield owner, prefix, parse_attributes(message, (_IFA_ADDRESS, _IFA_LOCAL), _ADDRESS.size)


def taken() -> dict[str, list[Subnet]]:
    """Return the subnets of the addresses of each interface, by its name."""
    names = {}
    for message in netlink.links():
        index = netlink.LINK.unpack_from(message)[2]
        names[index] = netlink.to_text(netlink.link_attributes(message, netlink.IFLA_IFNAME).popitem()[1])
    found: dict[str, list[Subnet]] = {}
    for index, address in addresses():
        if index in names:
            found.setdefault(names[index], []).append(address.network)
    return found


def set_addresses(index: int, wanted: Collection[Interface]) -> None:
    """Remove unwanted addresses of global scope, then add missing ones; others are not touched."""
    have = {address for _, address in addresses(index)}
    for address in have - set(wanted):
        netlink.ask(netlink.DELADDR, _address(index, address))
    for address in [one for one in wanted if one not in have]:
        netlink.ask(netlink.NEWADDR, _address(index, address, new=True), netlink.CREATE)


def _address(index: int, address: Interface, *, new: bool = False) -> bytes:
    # Without ports a bridge has no carrier, and an address under duplicate detection could not be bound.
    flags = _NODAD if new and address.version == 6 else 0
    prefix = address.network.prefixlen
    body = _ADDRESS.pack(_FAMILIES[address.version], prefix, flags, SCOPE_GLOBAL, index)
    body += netlink.attribute(_IFA_LOCAL, address.ip.packed) + netlink.attribute(
        _IFA_ADDRESS, address.ip.packed
    )
    if new and address.version == 4 and prefix < 31:
        body += netlink.attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return body


# ---- routes


def routes() -> Iterator[Route]:
    """Yield all routes of the host."""
    for family in _VERSIONS:
        for message in netlink.dump(netlink.GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            have, length, _, _, table, protocol, *_ = _ROUTE.unpack_from(message)
            if have != family:  # a kernel without IPv6 returns IPv4 routes when asked for those of IPv6
                continue
            found = parse_attributes(message, (_RTA_DST, _RTA_OIF, _RTA_TABLE), _ROUTE.size)
            target = (
                ipaddress.ip_network((found[_RTA_DST], length), strict=False) if _RTA_DST in found else None
            )
            interface = netlink.to_number(found[_RTA_OIF]) if _RTA_OIF in found else None
            if _RTA_TABLE in found:
                table = netlink.to_number(found[_RTA_TABLE])
            yield Route(target, interface, protocol, table)


def routed() -> list[Subnet]:
    """Return the destinations of the host's routes, except default routes."""
    return [route.target for route in routes() if route.target is not None and route.target.prefixlen > 0]


def set_routes(index: int, wanted: Collection[Subnet]) -> None:
    """Remove unwanted static routes over an interface, then add missing ones; others are not touched."""
    have = {
        route.target
        for route in routes()
        if (route.interface, route.protocol, route.table) == (index, PROTO_STATIC, _TABLE_MAIN)
        and route.target is not None
    }
    for subnet in have - set(wanted):
        delete_route(index, subnet, PROTO_STATIC)
    for subnet in set(wanted) - have:
        add_route(index, subnet, PROTO_STATIC)


def add_route(index: int, subnet: Subnet, protocol: int) -> None:
    """Route a subnet to an interface. Raises FileExistsError if it is routed already."""
    scope = _SCOPE_LINK if subnet.version == 4 else _SCOPE_UNIVERSE
    netlink.ask(netlink.NEWROUTE, _route(index, subnet, protocol, scope, _UNICAST), netlink.CREATE)


def delete_route(index: int, subnet: Subnet, protocol: int) -> None:
    """Remove a route to an interface. Raises ProcessLookupError if there is none."""
    netlink.ask(netlink.DELROUTE, _route(index, subnet, protocol, _SCOPE_ANY, 0))


def _route(index: int, subnet: Subnet, protocol: int, scope: int, kind: int) -> bytes:
    family, length = _FAMILIES[subnet.version], subnet.prefixlen
    head = _ROUTE.pack(family, length, 0, 0, _TABLE_MAIN, protocol, scope, kind, 0)
    target = netlink.attribute(_RTA_DST, subnet.network_address.packed)
    return head + target + netlink.number(_RTA_OIF, index)
