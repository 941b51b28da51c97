"""The driver for managed bridges."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

from utsuwa.core.errors import HostError, UtsuwaError
from utsuwa.core.warning_types import EXTERNAL_INTERFACE_MISSING, FIREWALL_DROPS, NO_FORWARDING, NO_IPV6
from utsuwa.host.network import addressing, bridges, ip_switches
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
from utsuwa.networks.troubles import Judge

log = logging.getLogger(__name__)


class BridgeDriver(NetworkDriver[BridgeSettings]):
    """Networks of the type `bridge` on the host."""

    def __init__(self, owner: str, servers: Servers, firewall: Firewall, judge: Judge) -> None:
        self._owner = owner
        self._servers = servers
        self._firewall = firewall
        self._judge = judge
        self._addresses = BridgeAddresses(servers)
        self.addresses = self._addresses
        self._missing: dict[str, dict[str, str]] = {}
        """External interfaces that are not attached, with the reason, by network."""

    @classmethod
    def on(cls, host: DriverHost) -> BridgeDriver:
        return cls(host.owner, Servers(host.directory, host.judge), host.firewall, host.judge)

    def settings(self, name: str, config: Mapping[str, str]) -> BridgeSettings:
        return settings(name, config, self._owner)

    def with_defaults(self, config: Mapping[str, str]) -> dict[str, str]:
        """Return the config with chosen subnets and NAT for them, unless configured otherwise."""
        filled = super().with_defaults(config)
        for family in ("ipv4", "ipv6"):
            filled.setdefault(f"{family}.address", "auto")
            if filled[f"{family}.address"] == "auto":
                filled.setdefault(f"{family}.nat", "true")
        return filled

    async def with_auto_values(
        self, name: str, config: Mapping[str, str], taken: Callable[[], Awaitable[Collection[Subnet]]]
    ) -> dict[str, str]:
        check_bridge_config(config)
        filled = dict(config)
        wanted = [key for key in ("ipv4.address", "ipv6.address") if filled.get(key) == "auto"]
        if not wanted:
            return filled
        used = [*await taken(), *await asyncio.to_thread(addressing.routed)]
        chance = random.SystemRandom()
        for key in wanted:
            if key == "ipv4.address":
                filled[key] = str(subnets.free_ipv4(used, chance))
            elif lack := await asyncio.to_thread(ip_switches.ipv6_lack, name):
                log.warning(
                    "network %r gets no IPv6 subnet because %s: enable IPv6, then set ipv6.address=auto",
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
        """Check the external interfaces, and the configuration with dnsmasq itself."""
        if added:
            await asyncio.to_thread(bridges.check_ports, network.name, added)
        await self._servers.test(network)

    async def up(self, bridge: BridgeSettings) -> None:
        """Apply the settings to the host; what already matches is kept, so that connections are not lost.

        The directory is created first and removed last, so that it marks anything left by a killed daemon.
        IPv6 is skipped on hosts without it, and so are missing external interfaces, each with a warning.
        Raises InvalidConfig, HostError.
        """
        bridge = await self._without_lacking_ipv6(bridge)
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
        self._judge(NO_FORWARDING, bridge.name, await asyncio.to_thread(_allow_forwarding, bridge))
        closed = await self._firewall.apply(rules.contribution(bridge))
        self._judge(FIREWALL_DROPS, bridge.name, _closed(bridge, closed))
        await self._servers.ensure(bridge)

    async def _without_lacking_ipv6(self, bridge: BridgeSettings) -> BridgeSettings:
        """Return the settings without IPv6 if the host lacks it, as dnsmasq requires addresses to exist."""
        lack = "" if bridge.ipv6 is None else await asyncio.to_thread(ip_switches.ipv6_lack, bridge.name)
        self._judge(
            NO_IPV6,
            bridge.name,
            f"network {bridge.name!r} has no IPv6 because {lack}: enable IPv6 and restart the daemon, "
            "or set ipv6.address=none on the network"
            if lack
            else "",
        )
        return replace(bridge, ipv6=None) if lack else bridge

    async def join(self, bridge: BridgeSettings) -> None:
        """Attach the available external interfaces; each problem is logged once."""
        before = self._missing.pop(bridge.name, {})
        missing: dict[str, str] = {}
        if bridge.external:
            missing = await asyncio.to_thread(bridges.join, bridge.name, bridge.external)
        if not missing or missing != before:
            self._judge(EXTERNAL_INTERFACE_MISSING, bridge.name, _missing(bridge, missing))
        for port in before.keys() & set(bridge.external) - missing.keys():
            log.info("the external interface %r was attached to the network %r", port, bridge.name)
        if missing:
            self._missing[bridge.name] = missing

    async def change(self, old: BridgeSettings, new: BridgeSettings) -> None:
        self._addresses.forget(new.name)
        await asyncio.to_thread(bridges.release, old.name, set(old.external) - set(new.external))
        await self.up(new)

    async def down(self, network: str, external: Collection[str] = (), *, keep_files: bool = False) -> None:
        """Remove the bridge, its rules and its dnsmasq; idempotent.

        Failures do not prevent the other steps: the first one is raised at the end.
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
    if not family.assigns_addresses:
        needed = f"{protocol}.dhcp" if not family.dhcp else f"{protocol}.dhcp.stateful"
        raise port.invalid(key, f"cannot be set: the network {bridge.name!r} lacks {needed}=true")
    address = ipaddress.ip_address(text)
    if address not in family.subnet:
        raise port.invalid(key, f"{text} is outside of the network's subnet {family.subnet}")
    if address in (family.address.ip, family.subnet.network_address) or (
        address.version == 4 and address == family.subnet.broadcast_address
    ):
        raise port.invalid(key, f"{text} is the bridge's own address, or the network or broadcast address")


def _missing(bridge: BridgeSettings, missing: Mapping[str, str]) -> str:
    if not missing:
        return ""
    return (
        f"network {bridge.name!r} lacks an external interface: {'; '.join(missing.values())}; "
        "it will be attached when possible"
    )


def _closed(bridge: BridgeSettings, chains: Collection[str]) -> str:
    if not chains:
        return ""
    return (
        f"the firewall chain {' and '.join(map(repr, chains))} drops forwarded packets: make it accept "
        f"traffic of the bridge {bridge.name!r}, otherwise its instances have no external connectivity"
    )


def _allow_forwarding(bridge: BridgeSettings) -> str:
    """Enable IP forwarding, and return what is wrong. If /proc/sys is read-only, a network without routing is
    better than none.
    """
    for family in bridge.families:
        if family.routing:
            try:
                ip_switches.allow_forwarding(family.subnet.version)
            except HostError as error:
                return (
                    f"instances on the network {bridge.name!r} have no external connectivity by "
                    f"IPv{family.subnet.version}: {error}"
                )
    return ""
