"""One managed bridge on the host: brought up, changed in place, taken down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from functools import partial

from utsuwa.core.errors import HostError, UtsuwaError
from utsuwa.host.network import bridges, ip_switches
from utsuwa.networks.leases import Lease, unwanted
from utsuwa.networks.ports import Port
from utsuwa.networks.process import Servers
from utsuwa.networks.rules import Rules
from utsuwa.networks.settings import BridgeSettings

log = logging.getLogger(__name__)


class BridgeDriver:
    """What is done on the host for networks of the type `bridge`; knows no database and no events."""

    def __init__(self, servers: Servers, rules: Rules) -> None:
        self._servers = servers
        self._rules = rules
        self._missing: dict[str, dict[str, str]] = {}
        """By network: the external interfaces that are not its ports, with the reason."""

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
        await self._rules.apply(bridge)
        await self._servers.ensure(bridge)

    async def check_ports(self, network: str, external: Collection[str]) -> None:
        """Refuse external interfaces that cannot be ports of the bridge now (InvalidConfig)."""
        if external:
            await asyncio.to_thread(bridges.check_ports, network, external)

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
        """Bring a bridge that is up from one state to another."""
        await asyncio.to_thread(bridges.release, old.name, set(old.external) - set(new.external))
        await self.up(new)

    async def test(self, bridge: BridgeSettings) -> None:
        """Raise InvalidConfig for what only dnsmasq itself can judge."""
        await self._servers.test(bridge)

    async def down(self, network: str, external: Collection[str] = (), *, keep_files: bool = False) -> None:
        """Take the bridge, its rules and its dnsmasq away; safe to repeat.

        What cannot be taken away does not keep the rest: the first failure is raised at the end.
        """
        self._missing.pop(network, None)
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            partial(self._servers.stop, network),
            partial(self._rules.remove, network),
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

    async def tell_hosts(self, bridge: BridgeSettings, ports: Collection[Port]) -> None:
        """Have dnsmasq know its ports' names and static addresses, and end the leases in their way."""
        mine = [port for port in ports if port.bridge == bridge.name]
        hosts = [port.host() for port in mine if port.mac]
        # One that is to get another MAC with its next start has the old one as long as it runs.
        keep = {port.host().file for port in mine if port.running and not port.mac}
        gone = await self._servers.tell_hosts(bridge, hosts, keep)
        if gone or (gone is not None and any(port.static for port in mine)):
            stale = unwanted(await self.leases(bridge.name), mine, gone)
            await self._servers.give_back(bridge, stale)

    async def leases(self, network: str) -> list[Lease]:
        """The leases that a network's DHCP has given."""
        return await asyncio.to_thread(self._servers.leases, network)

    async def reclaim(self, bridge: BridgeSettings, given: Collection[Lease]) -> None:
        """End leases before their time; returns when their addresses are free."""
        await self._servers.reclaim(bridge, given)


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
