"""The contract of network drivers, and the record by which a type of network is registered.

A driver acts on the host for all networks of its type, and knows no database, no events and no other driver.
What it reads from a network's config is a value of its own, its settings. Methods run in the event loop, one
network at a time; failures are HostError, InvalidConfig or OutOfSpace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from utsuwa.core.config_keys import KeyTable
from utsuwa.networks.firewall import Firewall
from utsuwa.networks.leases import Lease, LeaseView
from utsuwa.networks.ports import Port
from utsuwa.networks.subnets import Subnet


class Settings(Protocol):
    """What a driver has read from a network's config: frozen, and compared as a whole."""

    @property
    def name(self) -> str: ...

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """The network's own, at most one of each family; no other network's may overlap them."""

    @property
    def external(self) -> tuple[str, ...]:
        """Interfaces of the host that belong to the network whenever they are there."""


S = TypeVar("S", bound=Settings)
S_contra = TypeVar("S_contra", bound=Settings, contravariant=True)


@dataclass(frozen=True)
class Uplink:
    """What a network interface of an instance is connected to."""

    interface: str
    """The interface of the host that it becomes a port of."""
    mtu: int


@dataclass(frozen=True)
class DriverHost:
    """What a driver is given: a folder for each network below `folder`, and the daemon's firewall.

    `owner` is unique to the daemon on its host.
    """

    folder: Path
    owner: str
    firewall: Firewall


Owner = tuple[str, str]
"""The project and the name of an instance that has ports."""


@dataclass(frozen=True)
class Told:
    """What telling of ports has changed: the MAC addresses that no port has any more."""

    changed: bool
    gone: frozenset[str] = field(default_factory=frozenset)


class AddressService(Protocol[S_contra]):
    """What a network has that hands out addresses and names (DHCP and DNS)."""

    def is_told(self, name: str) -> bool:
        """Whether all ports of a network were told since it came up, so that changes are enough."""

    async def tell(
        self, network: S_contra, ports: Collection[Port], owners: Collection[Owner] | None
    ) -> Told:
        """Make names and static addresses of the network's ports known.

        `ports` are all that the `owners` have on it, or with None all that there are.
        """

    async def leases(self, network: S_contra, about: Collection[str] | None = None) -> list[Lease]:
        """The leases in force: all, or those in whose entries one of the texts of `about` occurs."""

    async def give_back(self, network: S_contra, given: Collection[Lease]) -> None:
        """Ask for leases to end before their time, for others to use their addresses."""

    async def reclaim(self, network: S_contra, given: Collection[Lease]) -> None:
        """As `give_back`, and wait until their addresses are free."""

    async def has_room(self, network: S_contra, mac: str, static: Sequence[Port]) -> bool:
        """Whether a device with this MAC address can get an address; `static` are the ports that have one."""

    def views(self, network: S_contra, ports: Sequence[Port], given: Sequence[Lease]) -> list[LeaseView]:
        """The addresses in use, as the API shows them."""


class NetworkDriver(ABC, Generic[S]):
    """All networks of one type on the host. A driver overrides what it has work for."""

    addresses: AddressService[S] | None = None
    """None where the networks hand out no addresses."""

    @abstractmethod
    def settings(self, name: str, config: Mapping[str, str]) -> S:
        """Read a config in which nothing is left to be chosen. Raises InvalidConfig, NotSupportedYet."""

    def with_defaults(self, config: Mapping[str, str]) -> dict[str, str]:
        """The config of a new network: what is set, and what is chosen for it unless it says otherwise."""
        return {key: value for key, value in config.items() if value}

    async def filled(
        self, name: str, config: Mapping[str, str], taken: Callable[[], Awaitable[Collection[Subnet]]]
    ) -> dict[str, str]:
        """The config with a value in place of each `auto`; `taken` gives the subnets that others have."""
        return dict(config)

    @abstractmethod
    async def exists(self, name: str) -> bool:
        """Whether the host has an interface that stands in the way of a network of this name."""

    async def check(self, network: S, added: Collection[str]) -> None:
        """Raise InvalidConfig for what only the host can judge; `added` are new external interfaces."""

    @abstractmethod
    async def up(self, network: S) -> None:
        """Bring the host to these settings; what is as it should be stays, so that nobody is cut off."""

    async def change(self, old: S, new: S) -> None:
        """Bring a network that is up from one state to another."""
        await self.up(new)

    async def join(self, network: S) -> None:
        """Take the external interfaces that are there now; called when one appears or comes free."""

    @abstractmethod
    async def down(self, name: str, external: Collection[str] = (), *, keep_files: bool = False) -> None:
        """Take the network off the host; safe to repeat, and for networks that are of another type.

        What cannot be taken away does not keep the rest: the first failure is raised at the end.
        """

    async def remove_files(self, name: str) -> None:
        """Remove what `down` was told to keep."""

    def leave(self) -> None:
        """The daemon ends; the networks serve on."""

    @abstractmethod
    def uplink(self, network: S) -> Uplink:
        """What interfaces of instances are connected to."""

    def check_port(self, port: Port, network: S) -> None:
        """Judge the static addresses of a device of an instance by the network alone (InvalidConfig)."""


@dataclass(frozen=True)
class NetworkType:
    """A type of network, by which it is known everywhere."""

    name: str
    """As the API has it; `db.codes.NETWORK_TYPES` has its number."""
    keys: KeyTable
    driver: Callable[[DriverHost], NetworkDriver[Any]]
    new_names: str
    """What the names begin with that networks get whose maker gave none; a number follows."""
