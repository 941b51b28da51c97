"""dnsmasq's file of leases."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator

from utsuwa.networks.drivers.bridge.settings import Family
from utsuwa.networks.leases import Lease

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z")


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


def lines_about(text: str, words: Collection[str]) -> str:
    """The lines in which one of some addresses or names may stand: to parse them takes much longer."""
    wanted = [word.lower() for word in words if word]
    return "\n".join(line for line in text.splitlines() if any(word in line.lower() for word in wanted))


def has_room(family: Family, taken: Iterable[str]) -> bool:
    """Whether the ranges hold an address that is neither taken nor the bridge's own."""
    used = {ipaddress.ip_address(address) for address in taken} | {family.address.ip}
    free = 0
    for low, high in family.ranges:
        inside = sum(1 for a in used if a.version == low.version and int(low) <= int(a) <= int(high))
        free += int(high) - int(low) + 1 - inside
    return free > 0


def surely_has_room(family: Family, taken: int) -> bool:
    """Whether the ranges are larger than so many addresses could fill, beside the bridge's own."""
    return sum(int(high) - int(low) + 1 for low, high in family.ranges) > taken + 1
