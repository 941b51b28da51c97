"""One managed bridge on the host: brought up, changed in place, taken down."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

from utsuwa.core.errors import HostError, UtsuwaError
from utsuwa.host.network import bridges, ip_switches
from utsuwa.networks import subnets
from utsuwa.networks.base import DriverHost, NetworkDriver, Uplink
from utsuwa.networks.drivers.bridge import rules
from utsuwa.networks.drivers.bridge.addresses import BridgeAddresses
from utsuwa.networks.drivers.bridge.keys import check_bridge_config
from utsuwa.networks.drivers.bridge.servers import Servers
from utsuwa.networks.drivers.bridge.settings import BridgeSettings, Family, settings
from utsuwa.networks.firewall import Firewall
from utsuwa.networks.ports import Port
from utsuwa.networks.subnets import Subnet

log = logging.getLogger(__name__)


class BridgeDriver(NetworkDriver[BridgeSettings]):
    """What is done on the host for networks of the type `bridge`."""

    def __init__(self, owner: str, servers: Servers, firewall: Firewall) -> None:
        self._owner = owner
        self._servers = servers
        self._firewall = firewall
        self._addresses = BridgeAddresses(servers)
        self.addresses = self._addresses
        self._missing: dict[str, dict[str, str]] = {}
        """By network: the external interfaces that are not its ports, with the reason."""

    @classmethod
    def on(cls, host: DriverHost) -> BridgeDriver:
        return cls(host.owner, Servers(host.folder), host.firewall)

    def settings(self, name: str, config: Mapping[str, str]) -> BridgeSettings:
        return settings(name, config, self._owner)

    def with_defaults(self, config: Mapping[str, str]) -> dict[str, str]:
        """Subnets are chosen, and hidden behind the host's address, unless told otherwise."""
        filled = super().with_defaults(config)
        for family in ("ipv4", "ipv6"):
            filled.setdefault(f"{family}.address", "auto")
            if filled[f"{family}.address"] == "auto":
                filled.setdefault(f"{family}.nat", "true")
        return filled

    async def filled(
        self, name: str, config: Mapping[str, str], taken: Callable[[], Awaitable[Collection[Subnet]]]
    ) -> dict[str, str]:
        check_bridge_config(config)
        filled = dict(config)
        wanted = [key for key in ("ipv4.address", "ipv6.address") if filled.get(key) == "auto"]
        if not wanted:
            return filled
        used = [*await taken(), *await asyncio.to_thread(bridges.routed_subnets)]
        chance = random.SystemRandom()
        for key in wanted:
            if key == "ipv4.address":
                filled[key] = str(subnets.free_ipv4(used, chance))
            elif lack := await asyncio.to_thread(ip_switches.ipv6_lack, name):
                log.warning(
                    "network %r gets no IPv6 subnet, for %s: turn IPv6 on, then set ipv6.address=auto on it",
                    name,
                    lack,
                )
                filled[key] = "none"
            else:
                filled[key] = str(subnets.free_ipv6(used, chance))
        return filled

    async def exists(self, name: str) -> bool:
        return await asyncio.to_thread(bridges.exists, name)

    async def check(self, network: BridgeSettings, added: Collection[str]) -> None:
        """What external interfaces are, and what dnsmasq says of its configuration."""
        if added:
            await asyncio.to_thread(bridges.check_ports, network.name, added)
        await self._servers.test(network)

    async def up(self, bridge: BridgeSettings) -> None:
        """Bring the host to these settings; what is as it should be stays, so that nobody is cut off.

        The folder comes first and goes last: a kill leaves nothing that it does not tell of.
        A host without IPv6 gets IPv4 alone, and external interfaces that are missing are passed over, each
        with a warning. Raises InvalidConfig, HostError.
        """
        bridge = await asyncio.to_thread(_without_lacking_ipv6, bridge)
        await self._servers.prepare(bridge.name)
        await asyncio.to_thread(
            bridges.configure,
            bridge.name,
            mac=bridge.mac,
            mtu=bridge.mtu,
            addresses=bridge.addresses,
            routes=[subnet for family in bridge.families for subnet in family.routes],
        )
        await self.join(bridge)
        await asyncio.to_thread(_allow_forwarding, bridge)
        await self._firewall.apply(rules.contribution(bridge))
        await self._servers.ensure(bridge)

    async def join(self, bridge: BridgeSettings) -> None:
        """Have the external interfaces be ports, as many as can; what is told once is not told again."""
        before = self._missing.pop(bridge.name, {})
        if not bridge.external:
            return
        missing = await asyncio.to_thread(bridges.join, bridge.name, bridge.external)
        for port, why in missing.items():
            if before.get(port) != why:
                log.warning(
                    "network %r does without its external interface for now: %s; it joins as soon as it can",
                    bridge.name,
                    why,
                )
        for port in before.keys() - missing.keys():
            log.info("the external interface %r has joined the network %r", port, bridge.name)
        if missing:
            self._missing[bridge.name] = missing

    async def change(self, old: BridgeSettings, new: BridgeSettings) -> None:
        self._addresses.forget(new.name)
        await asyncio.to_thread(bridges.release, old.name, set(old.external) - set(new.external))
        await self.up(new)

    async def down(self, network: str, external: Collection[str] = (), *, keep_files: bool = False) -> None:
        """Take the bridge, its rules and its dnsmasq away; safe to repeat.

        What cannot be taken away does not keep the rest: the first failure is raised at the end.
        """
        self._missing.pop(network, None)
        self._addresses.forget(network)
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            partial(self._servers.stop, network),
            partial(self._firewall.remove, network),
            partial(asyncio.to_thread, bridges.release, network, external),
            partial(asyncio.to_thread, bridges.delete, network),
        )
        failures: list[UtsuwaError] = []
        for step in steps:
            try:
                await step()
            except UtsuwaError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        if not keep_files:
            await self._servers.remove(network)

    async def remove_files(self, name: str) -> None:
        await self._servers.remove(name)

    def leave(self) -> None:
        self._servers.leave()

    def uplink(self, network: BridgeSettings) -> Uplink:
        return Uplink(network.name, network.mtu)

    def check_port(self, port: Port, network: BridgeSettings) -> None:
        for version, family in ((4, network.ipv4), (6, network.ipv6)):
            text = port.ipv4 if version == 4 else port.ipv6
            if text not in ("", "none"):
                _check_static(port, network, family, f"ipv{version}.address", text)


def _check_static(port: Port, bridge: BridgeSettings, family: Family | None, key: str, text: str) -> None:
    protocol = key[:4]
    if family is None:
        raise port.invalid(key, f"cannot be set: the network {bridge.name!r} has no {protocol}.address")
    if not family.gives_addresses:
        needed = f"{protocol}.dhcp" if not family.dhcp else f"{protocol}.dhcp.stateful"
        raise port.invalid(key, f"cannot be set: the network {bridge.name!r} lacks {needed}=true")
    address = ipaddress.ip_address(text)
    if address not in family.subnet:
        raise port.invalid(key, f"{text} is outside of the network's subnet {family.subnet}")
    if address in (family.address.ip, family.subnet.network_address) or (
        address.version == 4 and address == family.subnet.broadcast_address
    ):
        raise port.invalid(key, f"{text} is the bridge's own or stands for the whole subnet")


def _without_lacking_ipv6(bridge: BridgeSettings) -> BridgeSettings:
    """The settings as far as the host can have them. dnsmasq, too, refuses an address that is not there."""
    if bridge.ipv6 is None:
        return bridge
    lack = ip_switches.ipv6_lack(bridge.name)
    if not lack:
        return bridge
    log.warning(
        "network %r has no IPv6 for now, for %s: turn IPv6 on and restart the daemon, "
        "or set ipv6.address=none on the network",
        bridge.name,
        lack,
    )
    return replace(bridge, ipv6=None)


def _allow_forwarding(bridge: BridgeSettings) -> None:
    """Where /proc/sys is read-only, a network without a way out is better than none."""
    for family in bridge.families:
        if family.routing:
            try:
                ip_switches.allow_forwarding(family.subnet.version)
            except HostError as error:
                log.warning(
                    "instances on the network %r reach nothing outside of the host by IPv%s: %s",
                    bridge.name,
                    family.subnet.version,
                    error,
                )
