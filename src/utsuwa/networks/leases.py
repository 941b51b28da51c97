"""Leases of a network, and those that conflict with static addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from utsuwa.networks.ports import Port
from utsuwa.networks.subnets import Address


@dataclass(frozen=True)
class Lease:
    """One address in use; `hostname` is empty if its holder has none, `mac` if it is not known."""

    address: str
    mac: str
    hostname: str
    client_id: bytes = b""
    """The client identifier, if any; with IPv6 always the DUID."""
    iaid: int = 0
    """The client's identity association id; IPv6 only."""
    temporary: bool = False
    """Whether that association is for temporary addresses."""

    @property
    def version(self) -> int:
        return 6 if ":" in self.address else 4


@dataclass(frozen=True)
class LeaseView:
    """An address in use, for the API; `kind` is static, dynamic or gateway."""

    hostname: str
    mac: str
    address: str
    kind: str


class Holders:
    """Finds the device of an instance that holds a lease."""

    def __init__(self, ports: Iterable[Port]) -> None:
        self._by_mac = {port.mac: port for port in ports if port.mac}
        self._by_name = {port.instance.name.lower(): port for port in self._by_mac.values()}

    def of(self, lease: Lease) -> Port | None:
        """Return the port, by its MAC address; DHCPv6 clients, which need not send it, are found by name."""
        if lease.mac:
            return self._by_mac.get(lease.mac)
        return self._by_name.get(lease.hostname.lower())


def unwanted(leases: Iterable[Lease], ports: Collection[Port], gone: Collection[str]) -> list[Lease]:
    """Return leases that conflict or have no holder: `gone` are MACs that no device has any more.

    Leases of running holders are in use and kept; so are those with an unknown holder.
    """
    holders = Holders(ports)
    owners = {address: port for port in ports if port.mac for address in port.static}
    return [lease for lease in leases if lease.mac in gone or _is_stale(lease, holders.of(lease), owners)]


def _is_stale(lease: Lease, holder: Port | None, owners: Mapping[Address, Port]) -> bool:
    """Return whether its address is another device's static one, or not its own device's static one."""
    address = ipaddress.ip_address(lease.address)
    owner = owners.get(address)
    if holder is None:
        return owner is not None and bool(lease.mac)
    if holder.running:
        return False
    if owner is not None:
        return owner != holder
    return any(own.version == address.version for own in holder.static)
