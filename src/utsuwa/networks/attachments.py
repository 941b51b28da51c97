"""Attachment of instances to networks: validation of their nics, and the uplinks of these."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from utsuwa.core.errors import InvalidConfig, UtsuwaError
from utsuwa.db import networks as rows
from utsuwa.db.codes import PENDING
from utsuwa.db.database import Database
from utsuwa.db.networks import NetworkRow
from utsuwa.db.projects import effective
from utsuwa.db.transaction import Transaction
from utsuwa.host.network import bridges
from utsuwa.networks import port_rows
from utsuwa.networks.base import AddressService, Owner, Uplink
from utsuwa.networks.leases import Holders, Lease, unwanted
from utsuwa.networks.live import Live, LiveNetworks, check_here
from utsuwa.networks.ports import Others, Port, refuse_addresses

log = logging.getLogger(__name__)


Known = dict[tuple[str, str], NetworkRow]
"""Networks by the project that may use them, and their name."""


def _known_to(tx: Transaction, projects: Collection[str]) -> Known:
    networks = [row for row in rows.get_all(tx, None) if row.state in ("ready", PENDING)]
    holders = {project: effective(tx, project, "networks") for project in projects}
    return {
        (project, row.name): row
        for project, holder in holders.items()
        for row in networks
        if row.project == holder
    }


class Attachments:
    """The ports of instances on the networks of this daemon, and on other bridges of the host."""

    def __init__(self, database: Database, live: LiveNetworks) -> None:
        self._database = database
        self._live = live

    # Before a change is stored

    async def check(self, instances: Collection[Owner], ports: Sequence[Port]) -> None:
        """Validate the new ports of instances against the networks and all other ports.

        Raises OtherMember, or InvalidConfig: a network that does not exist, an address outside it or in use,
        a MAC address or route in use, a second device of an instance on one network.
        """
        if not ports:
            return

        def fetch(tx: Transaction) -> tuple[Known, list[Port]]:
            return _known_to(tx, {port.project for port in ports}), port_rows.rivals(tx, ports)

        known, rivals = await self._database.read("rivals of ports", fetch)
        others = Others([*(port for port in rivals if port.owner not in instances), *ports])
        for port in ports:
            others.refuse_taken_routes(port)
            row = known.get((port.project, port.bridge))
            if row is not None:
                network = self._live.read(check_here(row))
                network.driver.check_port(port, network.settings)
                others.refuse_taken_addresses(port)
            elif port.managed:
                raise InvalidConfig(
                    f"Invalid device {port.device!r}: the network {port.bridge!r} does not exist"
                )
            else:
                refuse_addresses(port)

    # After a change

    async def refresh(self, *owners: Owner) -> None:
        """Update names and static addresses of these instances in their networks from the database; of all
        instances if none is given.

        Failures are only logged, as the change of the instances themselves is already complete.
        """
        told = [network for network in self._live if network.addresses is not None]
        if not told:
            return
        async with self._live.locks.hold("hosts"):
            whole = not owners or not all(
                network.addresses is None or network.addresses.is_told(network.name) for network in told
            )
            if whole:
                ports = await self._database.read("ports", port_rows.here)
            else:
                ports = await self._database.read("ports", port_rows.of_instances, owners)
            for network in told:
                mine = [port for port in ports if port.bridge == network.name]
                try:
                    await self._tell(network, mine, None if whole else owners)
                except (UtsuwaError, OSError) as error:
                    log.error("network %r does not know all names of its instances: %s", network.name, error)

    async def _tell(self, network: Live, ports: Sequence[Port], owners: Collection[Owner] | None) -> None:
        """Update a network, and release leases that conflict with it."""
        service = network.addresses
        assert service is not None
        told = await service.tell(network.settings, ports, owners)
        static = [address for port in ports for address in port.static]
        if not told.gone and not (told.changed and static):
            return
        about = None
        if owners is not None:
            about = {*told.gone, *map(str, static), *(p.mac for p in ports), *(p.instance for p in ports)}
        given = await service.leases(network.settings, about)
        holders = await self._ports_on(network) if owners is not None and static else ports
        await service.give_back(network.settings, unwanted(given, holders, told.gone))

    # When a device starts

    async def uplink(self, device: str, bridge: str, managed: bool) -> Uplink | None:
        """Return the uplink of a device that is about to start; None for an unmanaged bridge.

        A network that is not up, because that failed or its bridge was removed, is brought up again.
        Raises InvalidConfig if the bridge does not exist, HostError if it cannot be created.
        """
        network = await self._network(bridge)
        if network is not None:
            return network.driver.uplink(network.settings)
        if managed:
            raise InvalidConfig(f"Device {device!r}: the network {bridge!r} does not exist")
        link = await asyncio.to_thread(bridges.find, bridge)
        if link is None or link.kind != "bridge":
            raise InvalidConfig(
                f"Device {device!r}: the host has no bridge {bridge!r}: make it, or change 'parent'"
            )
        return None

    async def _network(self, name: str) -> Live | None:
        network = self._live.get(name)
        if network is not None and await network.driver.exists(name):
            return network
        async with self._live.locks.hold("networks"):
            found = [row for row in await self._live.rows() if row.name == name and row.state == "ready"]
            if not found:
                return self._live.get(name)
            log.info("network %r is not there: bringing it up again", name)
            network = await self._live.bring_up(found[0])
        await self.refresh()  # it has missed changes meanwhile
        return network

    async def settle_addresses(self, device: str, bridge: str, mac: str, config: Mapping[str, str]) -> None:
        """Ensure that a network can assign a device its static addresses, or any address at all.

        Raises InvalidConfig if a running instance still has one of them, or if no address is left.
        """
        network = self._live.get(bridge)
        service = network.addresses if network is not None else None
        if network is None or service is None:
            return
        wanted = {
            ipaddress.ip_address(config[key])
            for key in ("ipv4.address", "ipv6.address")
            if config.get(key, "") not in ("", "none")
        }
        if wanted:
            given = await service.leases(network.settings, {str(address) for address in wanted})
            held = [
                lease for lease in given if lease.mac != mac and ipaddress.ip_address(lease.address) in wanted
            ]
            if held:
                await self._reclaim(device, network, service, mac, held)
        if not config.get("ipv4.address"):
            await self._check_room(device, network, service, mac)

    async def _reclaim(
        self, device: str, network: Live, service: AddressService[Any], mac: str, held: Sequence[Lease]
    ) -> None:
        """Reclaim static addresses that were leased to others earlier."""
        holders = Holders(await self._ports_on(network))
        free = []
        for lease in held:
            holder = holders.of(lease)
            if holder is None:
                free += [lease] if lease.mac else []
            elif holder.running and holder.mac != mac:
                raise InvalidConfig(
                    f"Device {device!r}: {lease.address} is in use by the running instance "
                    f"{holder.instance!r} (device {holder.device!r}): restart that one first, or choose "
                    "another address"
                )
            elif holder.mac != mac:
                free.append(lease)
        if free:
            await service.reclaim(network.settings, free)

    async def _check_room(self, device: str, network: Live, service: AddressService[Any], mac: str) -> None:
        static = await self._database.read("static ports", port_rows.with_static_address, "ipv4.address")
        here = [port for port in static if port.bridge == network.name and port.ipv4]
        if not await service.has_room(network.settings, mac, here):
            raise InvalidConfig(
                f"Device {device!r}: the network {network.name!r} has no free address left: "
                "widen ipv4.dhcp.ranges, or give the device an ipv4.address"
            )

    async def _ports_on(self, network: Live) -> list[Port]:
        ports = await self._database.read("ports", port_rows.here)
        return [port for port in ports if port.bridge == network.name]
