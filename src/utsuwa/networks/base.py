"""The contract of network drivers, and the record by which a type of network is registered.

A driver acts on the host for all networks of its type; it does not use the database, events or other drivers.
It parses a network's config into its own settings. Methods run in the event loop, one network at a time;
failures raise HostError, InvalidConfig or OutOfSpace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from utsuwa.core.config_keys import KeyTable
from utsuwa.core.refs import InstanceRef
from utsuwa.networks.firewall import Firewall
from utsuwa.networks.leases import Lease, LeaseView
from utsuwa.networks.ports import Port
from utsuwa.networks.subnets import Subnet
from utsuwa.networks.troubles import Judge


class Settings(Protocol):
    """A network's parsed config: immutable, and compared by value."""

    @property
    def name(self) -> str: ...

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """The network's subnets, at most one per family; those of other networks must not overlap."""

    @property
    def external(self) -> tuple[str, ...]:
        """Interfaces of the host that are attached to the network whenever they exist."""


S = TypeVar("S", bound=Settings)
S_contra = TypeVar("S_contra", bound=Settings, contravariant=True)


@dataclass(frozen=True)
class Uplink:
    """The host interface to which an instance's interface is connected."""

    interface: str
    """The host interface of which it becomes a port."""
    mtu: int


@dataclass(frozen=True)
class DriverHost:
    """The context of a driver: a directory for each network below `directory`, and the daemon's firewall.

    `owner` is unique to the daemon on its host; `judge` is called with what a network lacks.
    """

    directory: Path
    owner: str
    firewall: Firewall
    judge: Judge


@dataclass(frozen=True)
class PortUpdate:
    """The result of updating ports; `gone` are MAC addresses that no port has any more."""

    changed: bool
    gone: frozenset[str] = field(default_factory=frozenset)


class AddressService(Protocol[S_contra]):
    """The address service (DHCP and DNS) of a network."""

    def is_current(self, name: str) -> bool:
        """Return whether all ports have been set since the network came up, so that changes suffice."""

    async def update(
        self, network: S_contra, ports: Collection[Port], instances: Collection[InstanceRef] | None
    ) -> PortUpdate:
        """Update names and static addresses of the network's ports.

        `ports` are all ports of the `instances` on it, or all ports of the network if None.
        """

    async def leases(self, network: S_contra, matching: Collection[str] | None = None) -> list[Lease]:
        """Return the active leases: all, or those whose entries contain one of the strings of `matching`."""

    async def release(self, network: S_contra, leases: Collection[Lease]) -> None:
        """Release leases early, so that others can use their addresses."""

    async def reclaim(self, network: S_contra, leases: Collection[Lease]) -> None:
        """As `release`, and wait until their addresses are free."""

    async def has_free_address(self, network: S_contra, mac: str, static: Sequence[Port]) -> bool:
        """Return whether a device with this MAC can get an address; `static` are ports with a static one."""

    def views(self, network: S_contra, ports: Sequence[Port], leases: Sequence[Lease]) -> list[LeaseView]:
        """Return the addresses in use, for the API."""


class NetworkDriver(ABC, Generic[S]):
    """All networks of one type on the host. A driver overrides the methods that it needs."""

    addresses: AddressService[S] | None = None
    """None if the networks do not assign addresses."""

    @abstractmethod
    def settings(self, name: str, config: Mapping[str, str]) -> S:
        """Parse a config without `auto`. Raises InvalidConfig, NotSupportedYet."""

    def with_defaults(self, config: Mapping[str, str]) -> dict[str, str]:
        """Return the config of a new network, with defaults for unset keys."""
        return dict(config)

    async def with_auto_values(
        self, name: str, config: Mapping[str, str], taken: Callable[[], Awaitable[Collection[Subnet]]]
    ) -> dict[str, str]:
        """Return the config with each `auto` replaced; `taken` returns the subnets in use by others."""
        return dict(config)

    @abstractmethod
    async def exists(self, name: str) -> bool:
        """Return whether a host interface conflicts with a network of this name."""

    async def check(self, network: S, added: Collection[str]) -> None:
        """Raise InvalidConfig for problems on the host; `added` are new external interfaces."""

    @abstractmethod
    async def up(self, network: S) -> None:
        """Apply the settings to the host, without interrupting connections."""

    async def change(self, old: S, new: S) -> None:
        """Change a network that is up from old to new settings."""
        await self.up(new)

    async def join(self, network: S) -> None:
        """Attach available external interfaces; called when one appears or becomes free."""

    @abstractmethod
    async def down(self, name: str, external: Collection[str] = (), *, keep_files: bool = False) -> None:
        """Remove the network from the host; idempotent, also for networks of another type.

        Failures do not prevent the other steps: the first one is raised at the end.
        """

    async def remove_files(self, name: str) -> None:
        """Remove the files that `down` kept."""

    def leave(self) -> None:
        """Called when the daemon stops; the networks keep working."""

    @abstractmethod
    def uplink(self, network: S) -> Uplink:
        """Return the uplink for interfaces of instances."""

    def check_port(self, port: Port, network: S) -> None:
        """Check a device's static addresses against the network. Raises InvalidConfig."""


@dataclass(frozen=True)
class NetworkType:
    """The record of a type of network."""

    name: str
    """The name in the API; `db.codes.NETWORK_TYPES` has its code."""
    keys: KeyTable
    driver: Callable[[DriverHost], NetworkDriver[Any]]
    new_names: str
    """Prefix of default names, followed by a number."""
