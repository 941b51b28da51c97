"""Bridges and other host interfaces, by netlink. Blocking: call in threads."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.host.helper.rtnetlink import parse_attributes
from utsuwa.host.network import addressing, ip_switches, netlink
from utsuwa.host.network.addressing import Interface, Subnet

_BR_FORWARD_DELAY, _BR_STP_STATE, _BR_VLAN_FILTERING, _BR_ID, _BR_PVID = 1, 5, 7, 11, 39
_VLAN_ID = 1
_PORT_STATE = 1
_DISABLED, _FORWARDING = b"\0", b"\3"
_DEFAULT_PRIORITY = b"\x80\0"


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
    lower: int | None = None
    """The interface on which it is based."""
    data: bytes = b""
    """The settings of its kind, as netlink attributes."""


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
    return sorted(map(_parse, netlink.links()), key=lambda link: link.name)


def find(name: str) -> Link | None:
    try:
        return at(socket.if_nametoindex(name))
    except OSError:
        return None


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
    with _refusals(f"cannot set up the bridge {name!r}"):
        link = find(name)
        if link is None:
            netlink.add_link(name, "bridge", _mac(mac), netlink.number(netlink.IFLA_MTU, mtu))
            link = at(socket.if_nametoindex(name))
        if link is None or link.kind != "bridge":
            raise InvalidConfig(
                f"The host has an interface {name!r} that is not a bridge: choose another name"
            )
        if link.mac != mac.lower():
            netlink.set_link(link.index, _mac(mac))
        if link.mtu != mtu:
            netlink.set_link(link.index, netlink.number(netlink.IFLA_MTU, mtu))
        ip_switches.ignore_router_advertisements(name)
        netlink.set_link(link.index, up=True)
        addressing.set_addresses(link.index, addresses)
        addressing.set_routes(link.index, routes)


def _mac(mac: str) -> bytes:
    return netlink.attribute(netlink.IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))


def join(name: str, external: Collection[str]) -> dict[str, str]:
    """Make host interfaces ports of the bridge; return those that cannot be, with the reason."""
    problems = {}
    with _refusals(f"cannot add ports to the bridge {name!r}"):
        bridge = find(name)
        for port in external if bridge is not None else ():
            link = find(port)
            if link is not None and bridge is not None and link.master == bridge.index:
                continue
            if link is None or (why := _unfit(link, bridge)):
                problems[port] = why if link is not None else _missing(port)
            elif bridge is not None:
                netlink.set_link(link.index, netlink.number(netlink.IFLA_MASTER, bridge.index), up=True)
    return problems


def check_ports(name: str, external: Collection[str]) -> None:
    """Raise InvalidConfig if an interface cannot become a port of the bridge in its current state."""
    with _refusals(f"cannot inspect the ports of {name!r}"):
        bridge = find(name)
        for port in external:
            link = find(port)
            if link is not None and bridge is not None and link.master == bridge.index:
                continue
            why = _missing(port) if link is None else _unfit(link, bridge)
            if why:
                raise InvalidConfig(f"Invalid value for 'bridge.external_interfaces': {why}")


def _missing(name: str) -> str:
    return f"the host has no interface {name!r}"


def _unfit(link: Link, bridge: Link | None) -> str:
    """Return why an interface cannot become a port; empty if it can."""
    if link.master is not None or link.loopback or link == bridge:
        return f"{link.name!r} already has another master"
    if any(addressing.addresses(link.index)):
        return f"{link.name!r} has addresses: remove them first"
    return ""


def release(name: str, external: Collection[str]) -> None:
    """Remove host interfaces from this bridge."""
    with _refusals(f"cannot remove the ports of {name!r}"):
        bridge = find(name)
        for port in external:
            link = find(port)
            if link is not None and bridge is not None and link.master == bridge.index:
                netlink.set_link(link.index, netlink.number(netlink.IFLA_MASTER, 0))


def delete(name: str) -> None:
    """Remove a bridge; does nothing if it does not exist."""
    with _refusals(f"cannot remove the bridge {name!r}"):
        link = find(name)
        if link is not None and link.kind == "bridge":
            netlink.delete_link(link.index)


def facts(name: str) -> BridgeFacts | None:
    """Return the properties of a bridge; None if the interface is not a bridge."""
    bridge = find(name)
    if bridge is None or bridge.kind != "bridge":
        return None
    wanted = (_BR_ID, _BR_STP_STATE, _BR_FORWARD_DELAY, _BR_VLAN_FILTERING, _BR_PVID)
    found = parse_attributes(bridge.data, wanted)
    return BridgeFacts(
        # Priority and address in the format of `brctl`.
        id=f"{found.get(_BR_ID, _DEFAULT_PRIORITY)[:2].hex()}.{bridge.mac.replace(':', '')}",
        stp=bool(netlink.to_number(found.get(_BR_STP_STATE, b""))),
        forward_delay=netlink.to_number(found.get(_BR_FORWARD_DELAY, b"")),
        vlan_filtering=bool(netlink.to_number(found.get(_BR_VLAN_FILTERING, b""))),
        vlan_default=netlink.to_number(found.get(_BR_PVID, b"")),
        ports=[link.name for link in links() if link.master == bridge.index],
    )


def vlan(name: str) -> VlanFacts | None:
    """Return the properties of a VLAN interface; None if it is not one."""
    link = find(name)
    if link is None or link.kind != "vlan":
        return None
    lower = None if link.lower is None else at(link.lower)
    number = parse_attributes(link.data, (_VLAN_ID,)).get(_VLAN_ID, b"")
    return VlanFacts(lower="" if lower is None else lower.name, id=netlink.to_number(number))


def at(index: int) -> Link | None:
    """Return the interface with that index, None if there is none (any more)."""
    try:
        return _parse(netlink.ask(netlink.GETLINK, netlink.link(index)))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _parse(message: bytes) -> Link:
    _type, index, flags = netlink.LINK.unpack_from(message)[1:4]
    found = netlink.link_attributes(
        message,
        netlink.IFLA_IFNAME,
        netlink.IFLA_ADDRESS,
        netlink.IFLA_MTU,
        netlink.IFLA_MASTER,
        netlink.IFLA_LINK,
        netlink.IFLA_LINKINFO,
    )
    info = parse_attributes(found.get(netlink.IFLA_LINKINFO, b""), (netlink.INFO_KIND, netlink.INFO_DATA))
    return Link(
        index=index,
        name=netlink.to_text(found.get(netlink.IFLA_IFNAME, b"")),
        kind=netlink.to_text(info.get(netlink.INFO_KIND, b"")),
        mac=found.get(netlink.IFLA_ADDRESS, b"").hex(":"),
        mtu=netlink.to_number(found.get(netlink.IFLA_MTU, b"")),
        loopback=bool(flags & netlink.LOOPBACK),
        master=_index(found, netlink.IFLA_MASTER),
        lower=_index(found, netlink.IFLA_LINK),
        data=info.get(netlink.INFO_DATA, b""),
    )


def _index(attributes: dict[int, bytes], kind: int) -> int | None:
    return netlink.to_number(attributes[kind]) if kind in attributes else None


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"{what}: {error.strerror or error}") from error


def set_forwarding(port: str, *, forwarding: bool) -> None:
    """Let a bridge forward frames from and to one of its ports, or keep all of them from passing.

    The interface stays up, so that its peer does not notice. Does nothing if no bridge has it. Raises
    HostError.
    """
    with _refusals(f"cannot change the port {port!r} of its bridge"):
        link = find(port)
        if link is None or link.master is None:
            return
        netlink.set_port(link.index, netlink.attribute(_PORT_STATE, _FORWARDING if forwarding else _DISABLED))
