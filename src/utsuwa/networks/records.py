"""Networks, interfaces and leases as callers of the manager see them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from utsuwa.core.urls import object_url
from utsuwa.db import profiles as profile_rows
from utsuwa.db.networks import NetworkRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.network.bridges import Link
from utsuwa.networks import subnets
from utsuwa.networks.leases import Lease
from utsuwa.networks.ports import Port, all_ports, bridge_of
from utsuwa.networks.settings import BridgeSettings


@dataclass(frozen=True)
class Network:
    """A managed network as callers see it; `available` is False where the host refused it."""

    row: NetworkRow
    used_by: Sequence[str]
    available: bool


@dataclass(frozen=True)
class Interface:
    """An interface of the host that is not a managed network."""

    link: Link
    used_by: Sequence[str]


@dataclass(frozen=True)
class LeaseView:
    """An address in use; `kind` is static, dynamic or gateway."""

    hostname: str
    mac: str
    address: str
    kind: str


def lease_views(bridge: BridgeSettings, ports: Sequence[Port], given: Sequence[Lease]) -> list[LeaseView]:
    """The bridge's own addresses, those that its ports are configured with, and those that were given out."""
    found = [LeaseView(f"{bridge.name}.gw", "", str(address.ip), "gateway") for address in bridge.addresses]
    found += [
        LeaseView(port.instance, port.mac, str(ipaddress.ip_address(address)), "static")
        for port in ports
        for address in (port.ipv4, port.ipv6)
        if address not in ("", "none")
    ]
    found += _self_made(bridge, ports)
    shown = {view.address for view in found}
    found += [
        LeaseView(lease.hostname, lease.mac, lease.address, "dynamic")
        for lease in given
        if lease.address not in shown
    ]
    return found


def _self_made(bridge: BridgeSettings, ports: Sequence[Port]) -> list[LeaseView]:
    """IPv6 addresses that instances make from their MAC addresses; nobody writes them down."""
    family = bridge.ipv6
    if family is None or family.stateful or family.subnet.prefixlen != 64:
        return []
    return [
        LeaseView(port.instance, port.mac, str(subnets.eui64(family.subnet, port.mac)), "dynamic")
        for port in ports
        if port.mac
    ]


def uses(tx: Transaction) -> dict[str, list[str]]:
    """The URLs of the instances and profiles that use each bridge, by the bridge's name."""
    profiles = profile_rows.get_all(tx, None)
    found: dict[str, list[str]] = {}
    for port in all_ports(tx):
        url = object_url("instances", port.instance, project=port.project)
        if url not in found.setdefault(port.bridge, []):
            found[port.bridge].append(url)
    for profile in profiles:
        for bridge in _bridges_of(profile):
            found.setdefault(bridge, []).append(object_url("profiles", profile.name, project=profile.project))
    return found


def _bridges_of(profile: ProfileRow) -> list[str]:
    return sorted({bridge for device in profile.devices.values() if (bridge := bridge_of(device))})
