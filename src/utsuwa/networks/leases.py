"""What dnsmasq has written down of the addresses that it gave."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from utsuwa.networks.ports import Port
from utsuwa.networks.settings import Family
from utsuwa.networks.subnets import Address

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z")


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


def parse(text: str, now: float) -> Iterator[Lease]:
    """The leases of a file: lines of expiry, MAC (or IAID), address, name and client id (or DUID).

    Leases that ended before `now` (seconds since 1970) are left out, and lines that are not of this form
    passed over: the file is dnsmasq's own, and it forgets leases only when it has something else to do.
    """
    for line in text.splitlines():
        parts = line.split(" ")
        if len(parts) < 5:
            continue
        expiry, hardware, address, hostname, client = parts[:5]
        try:
            version = ipaddress.ip_address(address).version
            ended = 0 < int(expiry) < now
        except ValueError:
            continue
        if ended:
            continue
        mac = hardware.lower() if version == 4 else _mac_of_duid(client)
        number = hardware.removeprefix("T") if version == 6 else ""
        yield Lease(
            address,
            mac if _MAC.match(mac) else "",
            "" if hostname == "*" else hostname,
            _identifier(client),
            int(number) & 0xFFFFFFFF if number.isdecimal() else 0,
            version == 6 and hardware.startswith("T"),
        )


def server_duid(text: str) -> bytes:
    """How dnsmasq names itself to DHCPv6 clients; empty where it has not had to yet."""
    found = (line.removeprefix("duid ") for line in text.splitlines() if line.startswith("duid "))
    return _identifier(next(found, ""))


def _identifier(text: str) -> bytes:
    try:
        return bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return b""


def _mac_of_duid(duid: str) -> str:
    """The MAC address at the end of a DUID made from one (types 1 and 3)."""
    octets = duid.lower().split(":")
    if len(octets) >= 10 and octets[:2] in (["00", "01"], ["00", "03"]):
        return ":".join(octets[-6:])
    return ""


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


def has_room(family: Family, taken: Iterable[str]) -> bool:
    """Whether the ranges hold an address that is neither taken nor the bridge's own."""
    used = {ipaddress.ip_address(address) for address in taken} | {family.address.ip}
    free = 0
    for low, high in family.ranges:
        inside = sum(1 for a in used if a.version == low.version and int(low) <= int(a) <= int(high))
        free += int(high) - int(low) + 1 - inside
    return free > 0
