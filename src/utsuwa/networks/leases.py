"""Addresses that a network has handed out, and which of them stand in somebody's way."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from utsuwa.networks.ports import Port
from utsuwa.networks.subnets import Address


@dataclass(frozen=True)
class Lease:
    """One address in use; `hostname` is empty where its holder has none, `mac` where it is not known."""

    address: str
    mac: str
    hostname: str
    client_id: bytes = b""
    """How the client named itself where it did: with IPv6 always, by its DUID."""
    iaid: int = 0
    """The number of the client's identity association; IPv6 alone has one."""
    temporary: bool = False
    """Whether that association is for temporary addresses."""

    @property
    def version(self) -> int:
        return 6 if ":" in self.address else 4


@dataclass(frozen=True)
class LeaseView:
    """An address in use as the API shows it; `kind` is static, dynamic or gateway."""

    hostname: str
    mac: str
    address: str
    kind: str


class Holders:
    """Which device of an instance has a lease."""

    def __init__(self, ports: Iterable[Port]) -> None:
        self._by_mac = {port.mac: port for port in ports if port.mac}
        self._by_name = {port.instance.lower(): port for port in self._by_mac.values()}

    def of(self, lease: Lease) -> Port | None:
        """By its MAC; a DHCPv6 client need not tell it, and is found by the name that dnsmasq knows it by."""
        if lease.mac:
            return self._by_mac.get(lease.mac)
        return self._by_name.get(lease.hostname.lower())


def unwanted(leases: Iterable[Lease], ports: Collection[Port], gone: Collection[str]) -> list[Lease]:
    """The leases that stand in somebody's way, or are nobody's: `gone` are MACs that no device has any more.

    One whose holder runs is in use, and stays; so does one of which it is not known whose it is.
    """
    holders = Holders(ports)
    owners = {address: port for port in ports if port.mac for address in port.static}
    return [lease for lease in leases if lease.mac in gone or _is_stale(lease, holders.of(lease), owners)]


def _is_stale(lease: Lease, holder: Port | None, owners: Mapping[Address, Port]) -> bool:
    """Whether its address is configured for another device, or is not the one configured for its own."""
    address = ipaddress.ip_address(lease.address)
    owner = owners.get(address)
    if holder is None:
        return owner is not None and bool(lease.mac)
    if holder.running:
        return False
    if owner is not None:
        return owner != holder
    return any(own.version == address.version for own in holder.static)
