"""One managed bridge on the host: brought up, changed in place, taken down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from utsuwa.core.errors import UtsuwaError
from utsuwa.host import bridges
from utsuwa.networks.ports import Port
from utsuwa.networks.process import Servers
from utsuwa.networks.rules import Rules
from utsuwa.networks.settings import BridgeSettings


class BridgeDriver:
    """What is done on the host for networks of the type `bridge`; knows no database and no events."""

    def __init__(self, servers: Servers, rules: Rules) -> None:
        self._servers = servers
        self._rules = rules

    async def up(self, bridge: BridgeSettings) -> None:
        """Bring the host to these settings; what is as it should be stays, so that nobody is cut off.

        The folder comes first and goes last: a kill leaves nothing that it does not tell of.
        Raises InvalidConfig, HostError.
        """
        await self._servers.prepare(bridge.name)
        await asyncio.to_thread(
            bridges.configure,
            bridge.name,
            mac=bridge.mac,
            mtu=bridge.mtu,
            addresses=bridge.addresses,
            routes=[subnet for family in bridge.families for subnet in family.routes],
            external=bridge.external,
        )
        for family in bridge.families:
            if family.routing:
                await asyncio.to_thread(bridges.allow_forwarding, family.subnet.version)
        await self._rules.apply(bridge)
        await self._servers.ensure(bridge)

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
        """Have dnsmasq know the names and static addresses of the network's ports."""
        mine = [port.host() for port in ports if port.bridge == bridge.name and port.mac]
        await self._servers.tell_hosts(bridge, mine)
