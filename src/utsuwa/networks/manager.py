"""Networks: the lock, the rows, undo and events. The host is `networks.bridge`'s work."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from utsuwa.core.config_keys import without_volatile
from utsuwa.core.errors import (
    AlreadyExists,
    InUse,
    InvalidConfig,
    InvalidName,
    InvalidRequest,
    NotFound,
    NotSupportedYet,
    UtsuwaError,
)
from utsuwa.core.locks import NamedLocks
from utsuwa.core.names import check_new_interface_name
from utsuwa.core.network_keys import check_bridge_config
from utsuwa.core.paths import StatePaths
from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import finish
from utsuwa.core.urls import object_url
from utsuwa.db import networks as rows
from utsuwa.db import projects as project_rows
from utsuwa.db.codes import HALF_MADE, UNKNOWN, unreadable
from utsuwa.db.database import Database
from utsuwa.db.networks import NetworkRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.network import bridges, ip_switches
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.networks import leases, subnets
from utsuwa.networks.bridge import BridgeDriver
from utsuwa.networks.ports import Port, all_ports, check_port, check_routes, check_unmanaged
from utsuwa.networks.ports_watch import PortsWatch
from utsuwa.networks.process import Servers
from utsuwa.networks.records import Interface, LeaseView, Network, lease_views, uses
from utsuwa.networks.rules import Rules
from utsuwa.networks.settings import BridgeSettings, Family, settings
from utsuwa.operations.events import EventHub
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.networks import NetworkPut, NetworksPost

log = logging.getLogger(__name__)

_LATER_TYPES = ("macvlan", "sriov", "ovn", "physical")


def editable(row: NetworkRow) -> NetworkPut:
    return NetworkPut(config=row.config, description=row.description)


class NetworkManager:
    """All networks of the daemon. One change at a time: subnets are chosen beside all others."""

    def __init__(
        self, database: Database, paths: StatePaths, events: EventHub, links: LinkEvents, owner: str
    ) -> None:
        self._database = database
        self._paths = paths
        self._events = events
        self._owner = owner
        self._locks = NamedLocks()
        self._servers = Servers(paths.networks)
        self._driver = BridgeDriver(self._servers, Rules(owner))
        self._up: dict[str, BridgeSettings] = {}
        """The settings of every bridge that is up, by its name."""
        self._ports_watch = PortsWatch(links, self._join_ports)

    # Start and end of the daemon

    async def start(self) -> None:
        """Bring every network up again, and take away what a kill left half-made.

        A network that the host refuses is shown as unavailable and does not keep the daemon from starting.
        """
        found = await self._database.read("all networks", rows.get_all, None)
        for row in found:
            try:
                await self._bring_up(row)
            except UtsuwaError as error:
                log.error("network %r cannot be used: %s", row.name, error)
        await self._sweep({row.name for row in found if row.state not in HALF_MADE})
        self._watch_ports()
        await self.refresh()

    async def _bring_up(self, row: NetworkRow) -> None:
        if row.state == UNKNOWN:
            return
        if row.state in HALF_MADE:
            log.info("removing the half-made network %r", row.name)
            await self._driver.down(row.name)
            await self._remove_row(row)
            return
        bridge = self._settings(row)
        await self._driver.up(bridge)
        self._up[row.name] = bridge

    async def _sweep(self, known: set[str]) -> None:
        """Networks that have a folder and no row: a kill cut their making, renaming or end off."""
        for path in await asyncio.to_thread(lambda: list(self._paths.networks.iterdir())):
            if path.name in known:
                continue
            try:
                if not path.name.startswith("."):
                    await self._driver.down(path.name)
                await self._servers.remove(path.name)
            except UtsuwaError as error:
                log.error("what is left of the network %r cannot be removed: %s", path.name, error)

    def stop(self) -> None:
        """The daemon ends; bridges and dnsmasq serve on."""
        self._ports_watch.watch(())
        self._servers.leave()

    async def shut_down(self) -> None:
        """Take all bridges down, for the end of the host: no container runs any more."""
        for name, bridge in sorted(self._up.items()):
            try:
                await self._driver.down(name, bridge.external, keep_files=True)
            except UtsuwaError as error:
                log.warning("network %r is not wholly down: %s", name, error)
        self._up.clear()

    # Reading

    async def all(self, project: str) -> list[Network | Interface]:
        """The managed networks of a project and the host's other interfaces, by name; NotFound (project)."""
        links = await asyncio.to_thread(bridges.links)

        def fetch(tx: Transaction) -> tuple[list[NetworkRow], set[str], dict[str, list[str]]]:
            project_rows.get(tx, project)
            found = rows.get_all(tx, project)
            return found, {row.name for row in rows.get_all(tx, None)}, uses(tx)

        found, everywhere, use = await self._database.read("networks", fetch)
        shown: list[Network | Interface] = [self._shown(row, use) for row in found if row.state == "ready"]
        shown += [
            Interface(link, use.get(link.name, ()))
            for link in links
            if link.name not in everywhere and link.kind != "veth"
        ]
        return sorted(shown, key=lambda one: one.row.name if isinstance(one, Network) else one.link.name)

    async def get(self, project: str, name: str) -> Network | Interface:
        """Raises NotFound."""

        def fetch(tx: Transaction) -> tuple[list[NetworkRow], dict[str, list[str]]]:
            project_rows.get(tx, project)
            return [row for row in rows.get_all(tx, project) if row.name == name], uses(tx)

        found, use = await self._database.read("network", fetch)
        if found and found[0].state == UNKNOWN:
            raise unreadable(f"Network {name!r}")
        if found and found[0].state == "ready":
            return self._shown(found[0], use)
        link = None if found else await asyncio.to_thread(bridges.find, name)
        if link is None:
            raise NotFound(f"Network {name!r} not found")
        return Interface(link, use.get(name, ()))

    def _shown(self, row: NetworkRow, use: Mapping[str, Sequence[str]]) -> Network:
        return Network(row, use.get(row.name, ()), row.name in self._up)

    async def leases_of(self, project: str, name: str) -> list[LeaseView]:
        """The addresses in use on a managed network. Raises NotFound."""
        row = await self._database.read("network", rows.get, project, name)
        ports = [port for port in await self._ports() if port.bridge == name]
        return lease_views(self._settings(row), ports, await self._driver.leases(name))

    # Changing

    async def create(self, project: str, request: NetworksPost) -> str:
        """Make a network and give its URL.

        Raises InvalidName, InvalidRequest or NotSupportedYet (type), InvalidConfig, AlreadyExists, HostError;
        nothing is left then.
        """
        return await finish(self._create(project, request))

    async def _create(self, project: str, request: NetworksPost) -> str:
        _check_type(request.type)
        async with self._locks.hold("networks"), Rollback() as undo:
            name = check_network_name(request.name or await self._free_name())
            config = await self._filled(name, _with_defaults(without_volatile(request.config)))
            row = NetworkRow(0, project, name, request.description, config)
            bridge = self._settings(row)
            await self._check_subnets(bridge)
            await self._driver.check_ports(name, bridge.external)
            if await asyncio.to_thread(bridges.exists, name) and name not in self._up:
                raise AlreadyExists(f"The host has a network interface {name!r} already: use another name")
            row = replace(row, id=await self._database.write("reserve network", _reserve, row))
            undo.push(self._remove_row, row)
            await self._driver.test(bridge)
            undo.push(self._driver.down, name, bridge.external)
            await self._driver.up(bridge)
            await self._database.write("network is ready", rows.set_ready, row.id)
            self._up[name] = bridge
            self._watch_ports()
            undo.keep()
        await self.refresh()
        return self._tell("created", row)

    async def edit(self, project: str, name: str, change: Change[NetworkPut], if_match: IfMatch) -> None:
        """Change description and config; instances stay connected.

        Raises NotFound, InvalidConfig, PreconditionFailed, HostError, the network being as before.
        """
        await finish(self._update(project, name, change, if_match))

    async def _update(self, project: str, name: str, change: Change[NetworkPut], if_match: IfMatch) -> None:
        async with self._locks.hold("networks"), Rollback() as undo:
            old = await self._row(project, name)
            wanted = edited(editable(old), change, if_match)
            config = {key: value for key, value in without_volatile(wanted.config).items() if value}
            new = replace(old, description=wanted.description, config=await self._filled(name, config))
            bridge, before = self._settings(new), self._up.get(name)
            if set(bridge.subnets) - set(self._settings(old).subnets):
                await self._check_subnets(bridge)
            for port in await self._ports():
                if port.bridge == name:
                    _check_still_fits(port, bridge)
            if bridge != before:
                added = set(bridge.external) - set(self._settings(old).external)
                await self._driver.check_ports(name, sorted(added))
                await self._driver.test(bridge)
                await self._switch(before, bridge, undo)
            await self._database.write("update network", rows.update, new)
            self._up[name] = bridge
            self._watch_ports()
            undo.keep()
        await self.refresh()
        self._tell("updated", new)

    async def _switch(self, old: BridgeSettings | None, new: BridgeSettings, undo: Rollback) -> None:
        if old is None:
            await self._driver.up(new)
            return
        undo.push(self._driver.change, new, old)
        await self._driver.change(old, new)

    async def rename(self, project: str, name: str, new: str) -> str:
        """The new URL. Raises InUse, AlreadyExists, InvalidName, NotFound."""
        return await finish(self._rename(project, name, new))

    async def _rename(self, project: str, name: str, new: str) -> str:
        check_network_name(new)
        async with self._locks.hold("networks"), Rollback() as undo:
            row = await self._unused(project, name)
            if await asyncio.to_thread(bridges.exists, new):
                raise AlreadyExists(f"The host has a network interface {new!r} already: use another name")
            renamed = replace(row, name=new)
            old_bridge, bridge = self._settings(row), self._settings(renamed)
            undo.push(self._driver.up, old_bridge)
            await self._driver.down(name, old_bridge.external)
            self._up.pop(name, None)
            undo.push(self._up.__setitem__, name, old_bridge)
            undo.push(self._driver.down, new, bridge.external)
            await self._driver.up(bridge)
            await self._database.write("rename network", rows.rename, row.id, new)
            self._up[new] = bridge
            self._watch_ports()
            undo.keep()
        return self._tell("renamed", renamed, {"old_name": name})

    async def delete(self, project: str, name: str) -> None:
        """Raises InUse, NotFound. The files go last: where the row stays the network is as before."""
        await finish(self._delete(project, name))

    async def _delete(self, project: str, name: str) -> None:
        async with self._locks.hold("networks"), Rollback() as undo:
            row = await self._unused(project, name)
            bridge = self._settings(row)
            if name in self._up:
                undo.push(self._driver.up, bridge)
            await self._driver.down(name, bridge.external, keep_files=True)
            await self._remove_row(row)
            self._up.pop(name, None)
            self._watch_ports()
            undo.keep()
            try:
                await self._servers.remove(name)
            except UtsuwaError as error:  # the next start tries again
                log.error("what is left of the network %r cannot be removed: %s", name, error)
        self._tell("deleted", row)

    # For instances

    async def check(self, instances: Collection[tuple[str, str]], ports: Sequence[Port]) -> None:
        """Judge all ports that some instances are to have, beside the networks and everybody else's ports.

        Raises InvalidConfig: a network that does not exist, an address outside of it or taken, a taken MAC
        or route, a second device of an instance on one network.
        """
        if not ports:
            return
        networks = await self._database.read("all networks", rows.get_all, None)
        known = {(row.project, row.name): row for row in networks if row.state == "ready"}
        others = [port for port in await self._ports() if port.owner not in instances]
        for port in ports:
            check_routes(port, [*others, *ports])
            row = known.get((port.project, port.bridge))
            if row is not None:
                check_port(port, self._settings(row), [*others, *ports])
            elif port.managed:
                raise InvalidConfig(
                    f"Invalid device {port.device!r}: the network {port.bridge!r} does not exist"
                )
            else:
                check_unmanaged(port)

    async def refresh(self) -> None:
        """Have every dnsmasq know the instances' names and static addresses as they are now.

        Where that fails the log says so: what the instances themselves are is settled by then.
        """
        if not self._up:
            return
        async with self._locks.hold("hosts"):
            ports = await self._ports()
            for bridge in list(self._up.values()):
                try:
                    await self._driver.tell_hosts(bridge, ports)
                except (UtsuwaError, OSError) as error:
                    log.error("network %r does not know all names of its instances: %s", bridge.name, error)

    async def bridge_for(self, device: str, bridge: str, managed: bool) -> BridgeSettings | None:
        """What a device that is about to start is joined to; None for a bridge that is not the daemon's.

        A network that is not up, because the host refused it or somebody removed its bridge, is tried again.
        Raises InvalidConfig where there is no such bridge, HostError where it cannot be made.
        """
        if bridge in self._up and await asyncio.to_thread(bridges.exists, bridge):
            return self._up[bridge]
        async with self._locks.hold("networks"):
            networks = await self._database.read("all networks", rows.get_all, None)
            found = [row for row in networks if row.name == bridge]
            if found and found[0].state == "ready":
                log.info("network %r is not there: bringing it up again", bridge)
                await self._bring_up(found[0])
                self._watch_ports()
        if bridge in self._up:
            await self.refresh()  # nobody has told its dnsmasq of changes meanwhile
            return self._up[bridge]
        if managed:
            raise InvalidConfig(f"Device {device!r}: the network {bridge!r} does not exist")
        link = await asyncio.to_thread(bridges.find, bridge)
        if link is None or link.kind != "bridge":
            raise InvalidConfig(
                f"Device {device!r}: the host has no bridge {bridge!r}: make it, or change 'parent'"
            )
        return None

    async def settle_addresses(
        self, device: str, bridge: BridgeSettings, mac: str, config: Mapping[str, str]
    ) -> None:
        """Make sure that DHCP can give a device that joins the network its static addresses, or any at all.

        Raises InvalidConfig where a running instance still has one of them, or where none is left at all.
        """
        given = await self._driver.leases(bridge.name)
        wanted = {
            ipaddress.ip_address(config[key])
            for key in ("ipv4.address", "ipv6.address")
            if config.get(key, "") not in ("", "none")
        }
        held = [
            lease for lease in given if lease.mac != mac and ipaddress.ip_address(lease.address) in wanted
        ]
        if held:
            await self._reclaim(device, bridge, mac, held)
        if not config.get("ipv4.address"):
            await self._check_room(device, bridge, mac, given)

    async def _reclaim(
        self, device: str, bridge: BridgeSettings, mac: str, held: Sequence[leases.Lease]
    ) -> None:
        """Have static addresses free again that DHCP gave to others earlier."""
        holders = leases.Holders(port for port in await self._ports() if port.bridge == bridge.name)
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
            await self._driver.reclaim(bridge, free)

    async def _check_room(
        self, device: str, bridge: BridgeSettings, mac: str, given: Sequence[leases.Lease]
    ) -> None:
        family = bridge.ipv4
        if family is None or not family.gives_addresses:
            return
        if any(lease.mac == mac and _inside(lease.address, family) for lease in given):
            return
        ports = [port for port in await self._ports() if port.bridge == bridge.name and port.ipv4]
        taken = [lease.address for lease in given if _inside(lease.address, family)]
        taken += [port.ipv4 for port in ports if port.ipv4 != "none"]
        if not leases.has_room(family, taken):
            raise InvalidConfig(
                f"Device {device!r}: the network {bridge.name!r} has no free address left: "
                "widen ipv4.dhcp.ranges, or give the device an ipv4.address"
            )

    # Steps

    def _watch_ports(self) -> None:
        self._ports_watch.watch(port for bridge in self._up.values() for port in bridge.external)

    async def _join_ports(self) -> None:
        """External interfaces have appeared or come free."""
        async with self._locks.hold("networks"):
            for bridge in list(self._up.values()):
                try:
                    await self._driver.join(bridge)
                except UtsuwaError as error:
                    log.warning("network %r lacks external interfaces: %s", bridge.name, error)

    def _settings(self, row: NetworkRow) -> BridgeSettings:
        return settings(row.name, row.config, self._owner)

    async def _ports(self) -> list[Port]:
        return await self._database.read("all ports", all_ports)

    async def _row(self, project: str, name: str) -> NetworkRow:
        def fetch(tx: Transaction) -> NetworkRow:
            project_rows.get(tx, project)
            return rows.get(tx, project, name)

        row = await self._database.read("network", fetch)
        if row.state != "ready":
            raise NotFound(f"Network {name!r} not found")
        return row

    async def _unused(self, project: str, name: str) -> NetworkRow:
        row = await self._row(project, name)
        if (await self._database.read("network use", uses)).get(name):
            raise InUse(f"The network {name!r} is currently in use: remove what uses it first")
        return row

    async def _remove_row(self, row: NetworkRow) -> None:
        await self._database.write("delete network", rows.delete, row.id)

    async def _free_name(self) -> str:
        known = {row.name for row in await self._database.read("all networks", rows.get_all, None)}
        known |= {link.name for link in await asyncio.to_thread(bridges.links)}
        return next(name for n in range(len(known) + 1) if (name := f"utsuwabr{n}") not in known)

    async def _filled(self, name: str, config: Mapping[str, str]) -> dict[str, str]:
        """The config with a free subnet in place of each `auto`."""
        check_bridge_config(config)
        filled = dict(config)
        wanted = [key for key in ("ipv4.address", "ipv6.address") if filled.get(key) == "auto"]
        if not wanted:
            return filled
        taken = [subnet for used in (await self._taken(name)).values() for subnet in used]
        taken += await asyncio.to_thread(bridges.routed_subnets)
        chance = random.SystemRandom()
        for key in wanted:
            if key == "ipv4.address":
                filled[key] = str(subnets.free_ipv4(taken, chance))
            elif lack := await asyncio.to_thread(ip_switches.ipv6_lack, name):
                log.warning(
                    "network %r gets no IPv6 subnet, for %s: turn IPv6 on, then set ipv6.address=auto on it",
                    name,
                    lack,
                )
                filled[key] = "none"
            else:
                filled[key] = str(subnets.free_ipv6(taken, chance))
        return filled

    async def _taken(self, name: str) -> dict[str, list[subnets.Subnet]]:
        """The subnets of other networks and of the host's other interfaces, by what has them."""
        found = {
            f"the interface {link!r}": used
            for link, used in (await asyncio.to_thread(bridges.taken_subnets)).items()
            if link != name
        }
        networks = await self._database.read("all networks", rows.get_all, None)
        for row in networks:
            if row.name == name or row.state == UNKNOWN:
                continue
            found[f"the network {row.name!r}"] = list(self._settings(row).subnets)
            found.pop(f"the interface {row.name!r}", None)
        return found

    async def _check_subnets(self, bridge: BridgeSettings) -> None:
        taken = await self._taken(bridge.name)
        for family in bridge.families:
            subnets.refuse_overlap(f"ipv{family.subnet.version}.address", family.subnet, taken)

    def _tell(
        self,
        action: str,
        row: NetworkRow,
        context: Mapping[str, Any] | None = None,
    ) -> str:
        url = object_url("networks", row.name, project=row.project)
        self._events.publish_lifecycle(f"network-{action}", url, row.project, context)
        return url


def check_network_name(name: str) -> str:
    """A network has the name of its interface, and of a folder. Raises InvalidName."""
    check_new_interface_name(name)
    if not name[0].isalnum():
        raise InvalidName(f"Invalid network name {name!r}: begin with a letter or digit")
    return name


def _check_type(kind: str) -> None:
    if kind in _LATER_TYPES:
        raise NotSupportedYet(f"Networks of the type {kind!r} are not supported yet: use 'bridge'")
    if kind not in ("", "bridge"):
        raise InvalidRequest(f"Unknown network type {kind[:40]!r}: use 'bridge'")


def _with_defaults(config: Mapping[str, str]) -> dict[str, str]:
    """The config of a new network: subnets are chosen, and hidden behind the host's address, unless told."""
    filled = {key: value for key, value in config.items() if value}
    for family in ("ipv4", "ipv6"):
        filled.setdefault(f"{family}.address", "auto")
        if filled[f"{family}.address"] == "auto":
            filled.setdefault(f"{family}.nat", "true")
    return filled


def _check_still_fits(port: Port, bridge: BridgeSettings) -> None:
    """A change of a network leaves the static addresses of its instances valid."""
    try:
        check_port(port, bridge, ())
    except InvalidConfig as error:
        raise InvalidConfig(
            f"The network cannot change so, for instance {port.instance!r} stands against it: {error.message}"
        ) from error


def _inside(address: str, family: Family) -> bool:
    return ipaddress.ip_address(address) in family.subnet


def _reserve(tx: Transaction, new: NetworkRow) -> int:
    """In place of one that could not be undone wholly, for want of space: nobody else is making one now."""
    for row in rows.get_all(tx, None):
        if row.name == new.name and row.state == "creating":
            rows.delete(tx, row.id)
    return rows.insert(tx, new)
