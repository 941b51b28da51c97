"""Parser for dnsmasq's lease file."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator

from utsuwa.networks.drivers.bridge.settings import Family
from utsuwa.networks.leases import Lease

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z")


def parse(text: str, now: float) -> Iterator[Lease]:
    """Parse lines of expiry, MAC (or IAID), address, name and client id (or DUID).

    Leases that expired before `now` (seconds since 1970) are skipped, as dnsmasq removes them only later, and
    so are malformed lines.
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
    """Return dnsmasq's DUID for DHCPv6; empty if it has not created one yet."""
    found = (line.removeprefix("duid ") for line in text.splitlines() if line.startswith("duid "))
    return _identifier(next(found, ""))


def _identifier(text: str) -> bytes:
    try:
        return bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return b""


def _mac_of_duid(duid: str) -> str:
    """Return the MAC address in a DUID of type 1 or 3; empty for others."""
    octets = duid.lower().split(":")
    if len(octets) >= 10 and octets[:2] in (["00", "01"], ["00", "03"]):
        return ":".join(octets[-6:])
    return ""


def matching_lines(text: str, words: Collection[str]) -> str:
    """Return the lines that contain one of `words`, ignoring case; much faster than parsing all lines."""
    wanted = [word.lower() for word in words if word]
    return "\n".join(line for line in text.splitlines() if any(word in line.lower() for word in wanted))


def has_free_address(family: Family, taken: Iterable[str]) -> bool:
    """Return whether the ranges contain an address that is neither taken nor the bridge's own."""
    used = {ipaddress.ip_address(address) for address in taken} | {family.address.ip}
    free = 0
    for low, high in family.ranges:
        inside = sum(1 for a in used if a.version == low.version and int(low) <= int(a) <= int(high))
        free += int(high) - int(low) + 1 - inside
    return free > 0


def surely_has_free_address(family: Family, taken: int) -> bool:
    """Return whether the ranges are larger than `taken` addresses and the bridge's own could fill."""
    return sum(int(high) - int(low) + 1 for low, high in family.ranges) > taken + 1
