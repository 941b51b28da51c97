"""Names and addresses on a bridge, as its dnsmasq hands them out."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Collection, Sequence

from utsuwa.host.network import dhcp
from utsuwa.networks import subnets
from utsuwa.networks.base import Owner, Told
from utsuwa.networks.drivers.bridge import lease_file
from utsuwa.networks.drivers.bridge.dnsmasq import Folder
from utsuwa.networks.drivers.bridge.hosts import Change, HostFiles
from utsuwa.networks.drivers.bridge.servers import Servers
from utsuwa.networks.drivers.bridge.settings import BridgeSettings, Family
from utsuwa.networks.leases import Lease, LeaseView
from utsuwa.networks.ports import Port

log = logging.getLogger(__name__)

_RELEASE_POLL = 0.02
_RELEASE_POLLS = 50
"""Looks at whether dnsmasq has ended a lease, a poll apart: for a second in all."""


class BridgeAddresses:
    """The `AddressService` of bridges."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._hosts: dict[str, HostFiles] = {}
        """By network: those whose files are known to be as they should."""

    def forget(self, network: str) -> None:
        """The network goes, or its settings change: its files are looked at anew."""
        self._hosts.pop(network, None)

    def is_told(self, name: str) -> bool:
        return name in self._hosts

    async def tell(
        self, network: BridgeSettings, ports: Collection[Port], owners: Collection[Owner] | None
    ) -> Told:
        folder = self._servers.folder(network.name).hosts
        if not await asyncio.to_thread(folder.is_dir):
            return Told(False)
        known = self._hosts.pop(network.name, None)
        files = known or HostFiles(folder)
        if owners is None:
            change = await asyncio.to_thread(files.replace, ports, network.dns_mode)
        else:
            change = await asyncio.to_thread(files.change, ports, owners, network.dns_mode)
        self._hosts[network.name] = files
        static = any(port.static for port in ports)
        await self._pass_on(network, change, whole=known is None, static=static)
        return Told(change.added or change.removed, change.gone)

    async def _pass_on(self, network: BridgeSettings, change: Change, *, whole: bool, static: bool) -> None:
        """dnsmasq sees new files by itself, but refuses a static address of a host that it still knows.

        A daemon that was killed may not have had it read what it had changed.
        """
        retaken = change.added and static and self._servers.will_reload(network.name)
        if change.replaced or retaken or whole:
            await self._servers.reload(network.name)
        elif change.removed:
            self._servers.reload_soon(network.name)

    async def leases(self, network: BridgeSettings, about: Collection[str] | None = None) -> list[Lease]:
        return await asyncio.to_thread(_leases, self._servers.folder(network.name), about)

    async def give_back(self, network: BridgeSettings, given: Collection[Lease]) -> None:
        if given:
            await asyncio.to_thread(_release, network, self._servers.folder(network.name), given)

    async def reclaim(self, network: BridgeSettings, given: Collection[Lease]) -> None:
        await self.give_back(network, given)
        rest = {lease.address for lease in given}
        for _ in range(_RELEASE_POLLS):
            rest &= {lease.address for lease in await self.leases(network, rest)}
            if not rest:
                return
            await asyncio.sleep(_RELEASE_POLL)
        shown = ", ".join(sorted(rest))
        log.warning("dnsmasq of network %r keeps these leases until they end: %s", network.name, shown)

    async def has_room(self, network: BridgeSettings, mac: str, static: Sequence[Port]) -> bool:
        family = network.ipv4
        if family is None or not family.gives_addresses:
            return True
        return await asyncio.to_thread(
            _has_room, self._servers.folder(network.name), family, mac, [port.ipv4 for port in static]
        )

    def views(
        self, network: BridgeSettings, ports: Sequence[Port], given: Sequence[Lease]
    ) -> list[LeaseView]:
        """The bridge's own addresses, those that its ports are configured with, and those that were given."""
        found = [LeaseView(f"{network.name}.gw", "", str(own.ip), "gateway") for own in network.addresses]
        found += [
            LeaseView(port.instance, port.mac, str(address), "static")
            for port in ports
            for address in port.static
        ]
        found += _self_made(network, ports)
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


def _text(folder: Folder) -> str:
    try:
        return folder.leases.read_text()
    except FileNotFoundError:
        return ""


def _leases(folder: Folder, about: Collection[str] | None) -> list[Lease]:
    text = _text(folder)
    if about is not None:
        text = lease_file.lines_about(text, about)
    return list(lease_file.parse(text, time.time()))


def _has_room(folder: Folder, family: Family, mac: str, static: Sequence[str]) -> bool:
    text = _text(folder)
    if lease_file.surely_has_room(family, text.count("\n") + len(static)):
        return True
    given = [lease for lease in lease_file.parse(text, time.time()) if _inside(lease.address, family)]
    taken = [lease.address for lease in given] + [address for address in static if address != "none"]
    return any(lease.mac == mac for lease in given) or lease_file.has_room(family, taken)


def _inside(address: str, family: Family) -> bool:
    return ipaddress.ip_address(address) in family.subnet


def _release(bridge: BridgeSettings, folder: Folder, given: Collection[Lease]) -> None:
    server = lease_file.server_duid(_text(folder))
    for lease in given:
        try:
            if lease.version == 6:
                packet = dhcp.release6_packet(
                    server, lease.address, lease.client_id, lease.iaid, temporary=lease.temporary
                )
                dhcp.release6(bridge.name, packet)
            elif bridge.ipv4 is not None:
                own = str(bridge.ipv4.address.ip)
                dhcp.release(bridge.name, own, lease.address, lease.mac, lease.client_id)
        except OSError as error:
            log.info("the lease of %s cannot be given back: %s", lease.address, error)
