"""What dnsmasq has written down of the addresses that it gave."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from utsuwa.networks.settings import Family

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z")


@dataclass(frozen=True)
class Lease:
    """One address in use; `hostname` is empty where its holder has none, `mac` where it is not known."""

    address: str
    mac: str
    hostname: str
    client_id: bytes = b""
    """How the client named itself where it did; an IPv6 lease has none."""


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
        yield Lease(
            address,
            mac if _MAC.match(mac) else "",
            "" if hostname == "*" else hostname,
            _client_id(client) if version == 4 else b"",
        )


def _client_id(text: str) -> bytes:
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


def has_room(family: Family, taken: Iterable[str]) -> bool:
    """Whether the ranges hold an address that is neither taken nor the bridge's own."""
    used = {ipaddress.ip_address(address) for address in taken} | {family.address.ip}
    free = 0
    for low, high in family.ranges:
        inside = sum(1 for a in used if a.version == low.version and int(low) <= int(a) <= int(high))
        free += int(high) - int(low) + 1 - inside
    return free > 0
