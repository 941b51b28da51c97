"""The networks that are up on this host, with their drivers and settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from utsuwa.core.errors import OtherMember, UtsuwaError
from utsuwa.core.locks import NamedLocks
from utsuwa.core.warning_types import NETWORK_UNAVAILABLE
from utsuwa.db import networks as rows
from utsuwa.db.codes import PENDING, UNKNOWN
from utsuwa.db.database import Database
from utsuwa.db.networks import NetworkRow
from utsuwa.host.network import addressing
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.networks.base import AddressService, DriverHost, NetworkDriver, Settings
from utsuwa.networks.drivers import NETWORK_TYPES
from utsuwa.networks.ports_watch import PortsWatch
from utsuwa.networks.subnets import Subnet
from utsuwa.networks.troubles import Troubles

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Live:
    """A network with its driver and settings."""

    driver: NetworkDriver[Any]
    settings: Settings

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def addresses(self) -> AddressService[Any] | None:
        return self.driver.addresses

    @property
    def external(self) -> tuple[str, ...]:
        return self.settings.external

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        return self.settings.subnets


def check_here(row: NetworkRow) -> NetworkRow:
    """Return a network, or raise OtherMember if only other members have it."""
    if row.state == PENDING:
        raise OtherMember(
            f"The network {row.name!r} is on {' and '.join(row.locations)} only: "
            "create it on this member, too"
        )
    return row


class LiveNetworks:
    """The networks that are up, by name; only changed under the lock `networks`."""

    def __init__(self, database: Database, host: DriverHost, links: LinkEvents, troubles: Troubles) -> None:
        self.locks = NamedLocks()
        self.troubles = troubles
        self._database = database
        self._drivers = {kind.name: kind.driver(host) for kind in NETWORK_TYPES}
        self._up: dict[str, Live] = {}
        self._watch = PortsWatch(links, self._join)

    def __contains__(self, name: str) -> bool:
        return name in self._up

    def __iter__(self) -> Iterator[Live]:
        return iter(list(self._up.values()))

    def get(self, name: str) -> Live | None:
        return self._up.get(name)

    def driver(self, kind: str) -> NetworkDriver[Any]:
        return self._drivers[kind]

    def read(self, row: NetworkRow) -> Live:
        """Return the network of a row, up or not. Raises InvalidConfig, NotSupportedYet."""
        driver = self._drivers[row.type]
        return Live(driver, driver.settings(row.name, row.config))

    async def bring_up(self, row: NetworkRow) -> Live:
        """Bring a network up. Raises InvalidConfig, HostError."""
        self.troubles.know(row)
        try:
            network = self.read(row)
            await network.driver.up(network.settings)
        except UtsuwaError as error:
            self.troubles.judge(
                NETWORK_UNAVAILABLE, row.name, f"network {row.name!r} cannot be used: {error.message}"
            )
            raise
        self.mark_up(network)
        return network

    def mark_up(self, network: Live) -> None:
        """Record that it is up, or has changed settings."""
        self._up[network.name] = network
        self.troubles.judge(NETWORK_UNAVAILABLE, network.name, "")
        self._watch_external()

    def mark_down(self, name: str) -> None:
        self._up.pop(name, None)
        self._watch_external()

    async def rows(self) -> list[NetworkRow]:
        """Return all readable networks, including incomplete ones."""
        found = await self._database.read("all networks", rows.get_all, None)
        return [row for row in found if row.state != UNKNOWN]

    async def follow_rows(self) -> None:
        """Apply settings stored by other members to the networks that are up here."""
        async with self.locks.hold("networks"):
            for row in await self.rows():
                up = self._up.get(row.name)
                if up is None or row.state != "ready":
                    continue
                try:
                    new = self.read(row)
                    if new.settings != up.settings:
                        log.info("network %r was changed on another member", row.name)
                        await new.driver.change(up.settings, new.settings)
                        self.mark_up(new)
                except UtsuwaError as error:
                    log.error("network %r cannot be changed as on other members: %s", row.name, error)

    async def take_down(self, name: str) -> None:
        """Remove everything of a network of which only the name is known. Raises UtsuwaError."""
        for driver in self._drivers.values():
            await driver.down(name)

    async def remove_files(self, name: str) -> None:
        for driver in self._drivers.values():
            await driver.remove_files(name)

    def leave(self) -> None:
        """Called when the daemon stops; the networks keep working."""
        self._watch.watch(())
        for driver in self._drivers.values():
            driver.leave()

    async def shut_down(self) -> None:
        """Take all networks down when the host shuts down and no container is running any more."""
        for name, network in sorted(self._up.items()):
            try:
                await network.driver.down(name, network.external, keep_files=True)
            except UtsuwaError as error:
                log.warning("network %r could not be taken down completely: %s", name, error)
        self._up.clear()

    def _watch_external(self) -> None:
        self._watch.watch(interface for network in self._up.values() for interface in network.external)

    async def _join(self) -> None:
        """Handle external interfaces that have appeared or become free."""
        async with self.locks.hold("networks"):
            for network in self:
                try:
                    await network.driver.join(network.settings)
                except UtsuwaError as error:
                    log.warning("network %r lacks external interfaces: %s", network.name, error)


async def taken_subnets(live: LiveNetworks, name: str) -> dict[str, Collection[Subnet]]:
    """Return the subnets of networks other than `name` and of other host interfaces, by owner."""
    by_interface = await asyncio.to_thread(addressing.taken)
    found: dict[str, Collection[Subnet]] = {
        f"the interface {link!r}": used for link, used in by_interface.items() if link != name
    }
    for row in await live.rows():
        if row.name != name:
            found[f"the network {row.name!r}"] = live.read(row).subnets
            found.pop(f"the interface {row.name!r}", None)
    return found
