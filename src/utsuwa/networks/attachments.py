"""Attachment of instances to networks: validation of their nics, and the uplinks of these."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from utsuwa.core.errors import InvalidConfig, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.core.threads import in_thread
from utsuwa.db import networks as rows
from utsuwa.db.codes import PENDING
from utsuwa.db.database import Database
from utsuwa.db.networks import NetworkRow
from utsuwa.db.projects import effective
from utsuwa.db.transaction import Transaction
from utsuwa.host.network import bridges
from utsuwa.networks import port_rows
from utsuwa.networks.base import AddressService, Uplink
from utsuwa.networks.leases import Holders, Lease, unwanted
from utsuwa.networks.live import Live, LiveNetworks, check_here
from utsuwa.networks.ports import Others, Port, describe_port, refuse_addresses
from utsuwa.networks.priorities import Priorities

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

    def __init__(self, database: Database, live: LiveNetworks, priorities: Priorities) -> None:
        self._database = database
        self._live = live
        self._priorities = priorities

    # Before a change is stored

    async def check(self, instances: Collection[InstanceRef], ports: Sequence[Port]) -> None:
        """Validate the new ports of instances against the networks and all other ports.

        Raises OtherMember, or InvalidConfig: a network that does not exist, an address outside it or in use,
        a MAC address or route in use, a second device of an instance on one network.
        """
        if not ports:
            return

        def fetch(tx: Transaction) -> tuple[Known, list[Port]]:
            return _known_to(tx, {port.instance.project for port in ports}), port_rows.rivals(tx, ports)

        known, rivals = await self._database.read("rivals of ports", fetch)
        others = Others([*(port for port in rivals if port.instance not in instances), *ports])
        for port in ports:
            others.refuse_taken_routes(port)
            row = known.get((port.instance.project, port.bridge))
            if row is not None:
                network = self._live.read(check_here(row))
                network.driver.check_port(port, network.settings)
                others.refuse_taken_addresses(port)
            elif port.managed:
                raise InvalidConfig(
                    f"Invalid device {port.device!r}: the network {port.bridge!r} does not exist: create it, "
                    "or choose one of `utsuwa network list`"
                )
            else:
                refuse_addresses(port)

    # After a change

    async def refresh(self, *instances: InstanceRef) -> None:
        """Update names and static addresses of these instances in their networks from the database; of all
        instances if none is given.

        Failures are only logged, as the change of the instances themselves is already complete.
        """
        await self._refresh(instances, None)

    async def follow(self, instances: Collection[InstanceRef], ports: Sequence[Port]) -> None:
        """As `refresh`, with `ports` that were just stored as all those of these instances.

        The caller holds the locks of the instances, or they are not visible to others.
        """
        await self._refresh(instances, ports)

    async def _refresh(self, instances: Collection[InstanceRef], stored: Sequence[Port] | None) -> None:
        networks = [network for network in self._live if network.addresses is not None]
        if not networks:
            return
        async with self._live.locks.hold("hosts"):
            complete = not instances or not all(
                network.addresses is None or network.addresses.is_current(network.name)
                for network in networks
            )
            ports: Sequence[Port]
            if complete:
                ports = await self._database.read("ports", port_rows.here)
            elif stored is not None:
                ports = stored
            else:
                ports = await self._database.read("ports", port_rows.of_instances, instances)
            for network in networks:
                attached = [port for port in ports if port.bridge == network.name]
                try:
                    await self._update(network, attached, None if complete else instances)
                except (UtsuwaError, OSError) as error:
                    log.error(
                        "network %r: cannot update names and addresses of instances: %s", network.name, error
                    )

    async def _update(
        self, network: Live, ports: Sequence[Port], instances: Collection[InstanceRef] | None
    ) -> None:
        """Update a network, and release leases that conflict with it."""
        service = network.addresses
        assert service is not None
        update = await service.update(network.settings, ports, instances)
        static = [address for port in ports for address in port.static]
        if not update.gone and not (update.changed and static):
            return
        matching = None
        if instances is not None:
            names = {name for port in ports for name in (port.mac, port.instance.name)}
            matching = {*update.gone, *map(str, static), *names}
        leases = await service.leases(network.settings, matching)
        holders = await self._ports_on(network) if instances is not None and static else ports
        await service.release(network.settings, unwanted(leases, holders, update.gone))

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
        link = await in_thread(bridges.find, bridge)
        if link is None or link.kind != "bridge":
            raise InvalidConfig(
                f"Device {device!r}: the host has no bridge {bridge!r}: create it, or change 'parent'"
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
            network = await self._bring_up_again(found[0])
        await self.refresh()  # apply changes made in the meantime
        return network

    async def bring_up_again(self, row_id: int) -> None:
        """Bring up a network that could not be brought up earlier; does nothing if it is up or gone.

        Raises UtsuwaError.
        """
        async with self._live.locks.hold("networks"):
            found = [row for row in await self._live.rows() if row.id == row_id and row.state == "ready"]
            if not found or found[0].name in self._live:
                return
            await self._bring_up_again(found[0])
        await self.refresh()

    async def _bring_up_again(self, row: NetworkRow) -> Live:
        log.info("network %r is not there: bringing it up again", row.name)
        return await self._live.bring_up(row)

    async def settle_addresses(
        self, instance: InstanceRef, device: str, bridge: str, mac: str, config: Mapping[str, str]
    ) -> None:
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
            leases = await service.leases(network.settings, {str(address) for address in wanted})
            held = [
                lease
                for lease in leases
                if lease.mac != mac and ipaddress.ip_address(lease.address) in wanted
            ]
            if held:
                await self._reclaim(instance, device, network, mac, held)
        if not config.get("ipv4.address"):
            await self._check_room(device, network, service, mac)

    async def set_priority(self, interface: str, bridge: str, mac: str, priority: int) -> None:
        await self._priorities.set(interface, bridge, mac, priority)

    async def _reclaim(
        self, instance: InstanceRef, device: str, network: Live, mac: str, held: Sequence[Lease]
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
                    f"Device {device!r}: {lease.address} is in use by "
                    f"{describe_port(holder, instance.project)}, which is running: restart that instance "
                    "first, or choose another address"
                )
            elif holder.mac != mac:
                free.append(lease)
        if free and network.addresses is not None:
            await network.addresses.reclaim(network.settings, free)

    async def _check_room(self, device: str, network: Live, service: AddressService[Any], mac: str) -> None:
        static = await self._database.read("static ports", port_rows.with_static_address, "ipv4.address")
        here = [port for port in static if port.bridge == network.name and port.ipv4]
        if not await service.has_free_address(network.settings, mac, here):
            raise InvalidConfig(
                f"Device {device!r}: the network {network.name!r} has no free address left: "
                "extend ipv4.dhcp.ranges, or set the device's ipv4.address"
            )

    async def _ports_on(self, network: Live) -> list[Port]:
        ports = await self._database.read("ports", port_rows.here)
        return [port for port in ports if port.bridge == network.name]
