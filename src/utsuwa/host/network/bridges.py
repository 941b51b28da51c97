"""Bridges and other host interfaces, by netlink. Blocking: call in threads."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from utsuwa.core.errors import HostError, InvalidConfig, NotFound
from utsuwa.host.network import ip_switches

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

_NODAD = 0x02
_SCOPE_GLOBAL = 0
_PROTO_STATIC = 4
_TABLE_MAIN = 254
_LOOPBACK = 0x8


@dataclass(frozen=True)
class Link:
    """One interface of the host."""

    index: int
    name: str
    kind: str
    """The kernel's kind of link: `bridge`, `veth`, `vlan`, `bond`...; empty for hardware."""
    mac: str
    mtu: int
    loopback: bool
    master: int | None


@dataclass(frozen=True)
class BridgeFacts:
    """Properties of a bridge; times in hundredths of a second."""

    id: str
    stp: bool
    forward_delay: int
    vlan_filtering: bool
    vlan_default: int
    ports: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VlanFacts:
    lower: str
    id: int


def exists(name: str) -> bool:
    """Return whether this network namespace has an interface of that name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def links() -> list[Link]:
    """Return all interfaces, sorted by name."""
    with IPRoute() as netlink:
        return sorted((_link(message) for message in netlink.get_links()), key=lambda link: link.name)


def find(name: str) -> Link | None:
    with IPRoute() as netlink:
        message = _get(netlink, name)
        return None if message is None else _link(message)


def taken_subnets() -> dict[str, list[Subnet]]:
    """Return the subnets of the addresses of each interface, by its name."""
    found: dict[str, list[Subnet]] = {}
    with IPRoute() as netlink:
        names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in netlink.get_links()}
        for message in netlink.get_addr():
            name = names.get(message["index"])
            if name is not None and message["scope"] == _SCOPE_GLOBAL:
                text = f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
                found.setdefault(name, []).append(ipaddress.ip_interface(text).network)
    return found


def routed_subnets() -> list[Subnet]:
    """Return the destinations of the host's routes, except default routes."""
    found: list[Subnet] = []
    with IPRoute() as netlink:
        for message in netlink.get_routes():
            target = message.get_attr("RTA_DST")
            if target is not None and message["dst_len"] > 0:
                found.append(ipaddress.ip_network(f"{target}/{message['dst_len']}", strict=False))
    return found


def configure(
    name: str,
    *,
    mac: str,
    mtu: int,
    addresses: Collection[Interface],
    routes: Collection[Subnet] = (),
) -> None:
    """Create the bridge, or change the existing one without losing its ports, and set it up.

    Raises InvalidConfig if the interface of that name is not a bridge, HostError if the kernel refuses.
    """
    with IPRoute() as netlink, _refusals(f"cannot set up the bridge {name!r}"):
        message = _get(netlink, name)
        if message is None:
            netlink.link("add", ifname=name, kind="bridge", address=mac, mtu=mtu)
            message = _get(netlink, name)
        link = _link(message)
        if link.kind != "bridge":
            raise InvalidConfig(
                f"The host has an interface {name!r} that is not a bridge: choose another name"
            )
        if link.mac != mac.lower():
            netlink.link("set", index=link.index, address=mac)
        if link.mtu != mtu:
            netlink.link("set", index=link.index, mtu=mtu)
        ip_switches.ignore_router_advertisements(name)
        netlink.link("set", index=link.index, state="up")
        _set_addresses(netlink, link.index, addresses)
        _set_routes(netlink, link.index, routes)


def _set_addresses(netlink: Any, index: int, wanted: Collection[Interface]) -> None:
    """Remove unwanted addresses, then add missing ones; others are not touched."""
    have = {
        ipaddress.ip_interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
        for message in netlink.get_addr(index=index)
        if message["scope"] == _SCOPE_GLOBAL
    }
    for address in have - set(wanted):
        netlink.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
    for address in [one for one in wanted if one not in have]:
        # Without ports the bridge has no carrier, and an address under duplicate detection could not be
        # bound.
        more: dict[str, Any] = {"flags": _NODAD} if address.version == 6 else {}
        if address.version == 4 and address.network.prefixlen < 31:
            more["broadcast"] = str(address.network.broadcast_address)
        netlink.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **more)


def _set_routes(netlink: Any, index: int, wanted: Collection[Subnet]) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        have: set[Subnet] = set()
        for message in netlink.get_routes(family=family, oif=index, table=_TABLE_MAIN):
            target = message.get_attr("RTA_DST")
            # A kernel without IPv6 returns IPv4 routes when asked for those of IPv6.
            mine = message["family"] == family and message["proto"] == _PROTO_STATIC
            if mine and target is not None:
                have.add(ipaddress.ip_network(f"{target}/{message['dst_len']}"))
        version = 4 if family == socket.AF_INET else 6
        needed = {subnet for subnet in wanted if subnet.version == version}
        for subnet in have - needed:
            netlink.route("del", dst=str(subnet), oif=index, proto=_PROTO_STATIC, family=family)
        for subnet in needed - have:
            netlink.route("add", dst=str(subnet), oif=index, proto=_PROTO_STATIC, family=family)


def join(name: str, external: Collection[str]) -> dict[str, str]:
    """Make host interfaces ports of the bridge; return those that cannot be, with the reason."""
    problems = {}
    with IPRoute() as netlink, _refusals(f"cannot add ports to the bridge {name!r}"):
        bridge = _get(netlink, name)
        for port in external if bridge is not None else ():
            message = _get(netlink, port)
            if message is not None and _link(message).master == bridge["index"]:
                continue
            why = _unfit(netlink, port, bridge["index"], message)
            if why:
                problems[port] = why
            else:
                netlink.link("set", index=message["index"], master=bridge["index"], state="up")
    return problems


def check_ports(name: str, external: Collection[str]) -> None:
    """Raise InvalidConfig if an interface cannot become a port of the bridge in its current state."""
    with IPRoute() as netlink, _refusals(f"cannot inspect the ports of {name!r}"):
        bridge = _get(netlink, name)
        for port in external:
            message = _get(netlink, port)
            if message is None or bridge is None or _link(message).master != bridge["index"]:
                why = _unfit(netlink, port, bridge["index"] if bridge is not None else None, message)
                if why:
                    raise InvalidConfig(f"Invalid value for 'bridge.external_interfaces': {why}")


def _unfit(netlink: Any, name: str, bridge: int | None, message: Any) -> str:
    """Return why an interface cannot become a port; empty if it can."""
    if message is None:
        return f"the host has no interface {name!r}"
    link = _link(message)
    if link.master is not None or link.loopback or link.index == bridge:
        return f"{name!r} already has another master"
    if any(a["scope"] == _SCOPE_GLOBAL for a in netlink.get_addr(index=link.index)):
        return f"{name!r} has addresses: remove them first"
    return ""


def release(name: str, external: Collection[str]) -> None:
    """Remove host interfaces from this bridge."""
    with IPRoute() as netlink, _refusals(f"cannot remove the ports of {name!r}"):
        bridge = _get(netlink, name)
        for port in external:
            message = _get(netlink, port)
            if message is not None and bridge is not None and _link(message).master == bridge["index"]:
                netlink.link("set", index=message["index"], master=0)


def attach(name: str, bridge: str) -> None:
    """Make an interface a port of a bridge and set it up. Raises NotFound if either does not exist."""
    with IPRoute() as netlink, _refusals(f"cannot add {name!r} to the bridge {bridge!r}"):
        port, to = _get(netlink, name), _get(netlink, bridge)
        if port is None or to is None:
            raise NotFound(f"The host has no interface {(bridge if port else name)!r}")
        netlink.link("set", index=port["index"], master=to["index"], state="up")


def delete(name: str) -> None:
    """Remove a bridge; does nothing if it does not exist."""
    with IPRoute() as netlink, _refusals(f"cannot remove the bridge {name!r}"):
        message = _get(netlink, name)
        if message is not None and _link(message).kind == "bridge":
            netlink.link("del", index=message["index"])


def facts(name: str) -> BridgeFacts | None:
    """Return the properties of a bridge; None if the interface is not a bridge."""
    with IPRoute() as netlink:
        message = _get(netlink, name)
        if message is None or _link(message).kind != "bridge":
            return None
        data = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
        ports = [
            link.get_attr("IFLA_IFNAME")
            for link in netlink.get_links()
            if link.get_attr("IFLA_MASTER") == message["index"]
        ]
        identity = data.get_attr("IFLA_BR_BRIDGE_ID")
        return BridgeFacts(
            id=_bridge_id(identity, _link(message).mac),
            stp=bool(data.get_attr("IFLA_BR_STP_STATE")),
            forward_delay=int(data.get_attr("IFLA_BR_FORWARD_DELAY") or 0),
            vlan_filtering=bool(data.get_attr("IFLA_BR_VLAN_FILTERING")),
            vlan_default=int(data.get_attr("IFLA_BR_VLAN_DEFAULT_PVID") or 0),
            ports=sorted(ports),
        )


def _bridge_id(identity: Any, mac: str) -> str:
    """Return priority and address in the format of `brctl`."""
    priority = 0x8000
    if isinstance(identity, dict) and isinstance(identity.get("prio"), int):
        priority = socket.ntohs(identity["prio"]) if identity["prio"] & 0xFF else identity["prio"]
    return f"{priority:04x}.{mac.replace(':', '')}"


def vlan(name: str) -> VlanFacts | None:
    """Return the properties of a VLAN interface; None if it is not one."""
    with IPRoute() as netlink:
        message = _get(netlink, name)
        if message is None or _link(message).kind != "vlan":
            return None
        data = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
        below = next(iter(netlink.get_links(message.get_attr("IFLA_LINK"))), None)
        lower = "" if below is None else below.get_attr("IFLA_IFNAME")
        return VlanFacts(lower=lower, id=int(data.get_attr("IFLA_VLAN_ID")))


def _get(netlink: Any, name: str) -> Any:
    try:
        index = socket.if_nametoindex(name)
        return next(iter(netlink.get_links(index)), None)
    except OSError:
        return None
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind or "",
        mac=(message.get_attr("IFLA_ADDRESS") or "").lower(),
        mtu=message.get_attr("IFLA_MTU") or 0,
        loopback=bool(message["flags"] & _LOOPBACK),
        master=message.get_attr("IFLA_MASTER"),
    )


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except (NetlinkError, OSError) as error:
        raise HostError(f"{what}: {error}") from error
