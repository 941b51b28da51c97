"""Names and addresses on a bridge, provided by its dnsmasq."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Collection, Sequence

from utsuwa.core.refs import InstanceRef
from utsuwa.host.network import dhcp
from utsuwa.networks import subnets
from utsuwa.networks.base import PortUpdate
from utsuwa.networks.drivers.bridge import lease_file
from utsuwa.networks.drivers.bridge.dnsmasq import DnsmasqFiles
from utsuwa.networks.drivers.bridge.hosts import Change, HostFiles
from utsuwa.networks.drivers.bridge.servers import Servers
from utsuwa.networks.drivers.bridge.settings import BridgeSettings, Family
from utsuwa.networks.leases import Lease, LeaseView
from utsuwa.networks.ports import Port

log = logging.getLogger(__name__)

_RELEASE_POLL = 0.02
_RELEASE_POLLS = 50
"""Number of polls for the end of a lease: for a second in total."""


class BridgeAddresses:
    """The `AddressService` of bridges."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._hosts: dict[str, HostFiles] = {}
        """The networks whose files are known to be current, by name."""

    def forget(self, network: str) -> None:
        """Make the next update check all files, because the network is removed or changes."""
        self._hosts.pop(network, None)

    def is_current(self, name: str) -> bool:
        return name in self._hosts

    async def update(
        self, network: BridgeSettings, ports: Collection[Port], instances: Collection[InstanceRef] | None
    ) -> PortUpdate:
        known = self._hosts.get(network.name)
        if known is not None and instances is not None and not ports and not known.has_any(instances):
            return PortUpdate(False)
        self._hosts.pop(network.name, None)
        hosts = known or HostFiles(self._servers.files(network.name).hosts)
        if instances is None:
            change = await asyncio.to_thread(hosts.replace, ports, network.dns_mode)
        else:
            change = await asyncio.to_thread(hosts.change, ports, instances, network.dns_mode)
        if change is None:
            return PortUpdate(False)
        self._hosts[network.name] = hosts
        static = any(port.static for port in ports)
        await self._reload(network, change, complete=known is None, static=static)
        return PortUpdate(change.added or change.removed, change.gone)

    async def _reload(self, network: BridgeSettings, change: Change, *, complete: bool, static: bool) -> None:
        """Reload dnsmasq if needed.

        It detects new files itself, but rejects a static address of a removed host until it has reloaded.
        After a complete update it always reloads, as an earlier daemon may have been killed before doing so.
        """
        retaken = change.added and static and self._servers.will_reload(network.name)
        if change.replaced or retaken or complete:
            await self._servers.reload(network.name)
        elif change.removed:
            self._servers.reload_soon(network.name)

    async def leases(self, network: BridgeSettings, matching: Collection[str] | None = None) -> list[Lease]:
        return await asyncio.to_thread(_leases, self._servers.files(network.name), matching)

    async def release(self, network: BridgeSettings, leases: Collection[Lease]) -> None:
        if leases:
            await asyncio.to_thread(_release, network, self._servers.files(network.name), leases)

    async def reclaim(self, network: BridgeSettings, leases: Collection[Lease]) -> None:
        await self.release(network, leases)
        rest = {lease.address for lease in leases}
        for _ in range(_RELEASE_POLLS):
            rest &= {lease.address for lease in await self.leases(network, rest)}
            if not rest:
                return
            await asyncio.sleep(_RELEASE_POLL)
        shown = ", ".join(sorted(rest))
        log.warning("dnsmasq of network %r keeps these leases until they expire: %s", network.name, shown)

    async def has_free_address(self, network: BridgeSettings, mac: str, static: Sequence[Port]) -> bool:
        family = network.ipv4
        if family is None or not family.assigns_addresses:
            return True
        return await asyncio.to_thread(
            _has_free_address, self._servers.files(network.name), family, mac, [port.ipv4 for port in static]
        )

    def views(
        self, network: BridgeSettings, ports: Sequence[Port], leases: Sequence[Lease]
    ) -> list[LeaseView]:
        """Return the bridge's addresses, the static addresses of its ports, and the leases."""
        found = [LeaseView(f"{network.name}.gw", "", str(own.ip), "gateway") for own in network.addresses]
        found += [
            LeaseView(port.instance.name, port.mac, str(address), "static")
            for port in ports
            for address in port.static
        ]
        found += _slaac_views(network, ports)
        shown = {view.address for view in found}
        found += [
            LeaseView(lease.hostname, lease.mac, lease.address, "dynamic")
            for lease in leases
            if lease.address not in shown
        ]
        return found


def _slaac_views(bridge: BridgeSettings, ports: Sequence[Port]) -> list[LeaseView]:
    """Return the SLAAC addresses of ports, computed from their MAC addresses, as they have no leases."""
    family = bridge.ipv6
    if family is None or family.stateful or family.subnet.prefixlen != 64:
        return []
    return [
        LeaseView(port.instance.name, port.mac, str(subnets.eui64(family.subnet, port.mac)), "dynamic")
        for port in ports
        if port.mac
    ]


def _text(files: DnsmasqFiles) -> str:
    try:
        return files.leases.read_text()
    except FileNotFoundError:
        return ""


def _leases(files: DnsmasqFiles, matching: Collection[str] | None) -> list[Lease]:
    text = _text(files)
    if matching is not None:
        text = lease_file.matching_lines(text, matching)
    return list(lease_file.parse(text, time.time()))


def _has_free_address(files: DnsmasqFiles, family: Family, mac: str, static: Sequence[str]) -> bool:
    text = _text(files)
    if lease_file.surely_has_free_address(family, text.count("\n") + len(static)):
        return True
    leases = [lease for lease in lease_file.parse(text, time.time()) if _inside(lease.address, family)]
    taken = [lease.address for lease in leases] + [address for address in static if address != "none"]
    return any(lease.mac == mac for lease in leases) or lease_file.has_free_address(family, taken)


def _inside(address: str, family: Family) -> bool:
    return ipaddress.ip_address(address) in family.subnet


def _release(bridge: BridgeSettings, files: DnsmasqFiles, leases: Collection[Lease]) -> None:
    server = lease_file.server_duid(_text(files))
    for lease in leases:
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
            log.info("cannot release the lease of %s: %s", lease.address, error)
