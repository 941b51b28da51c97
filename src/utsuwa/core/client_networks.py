"""Whom limits per client count as one: by the client's address."""

from __future__ import annotations

import ipaddress


def network_of(host: str) -> str:
    """Return the address itself, or the /64 from which an IPv6 host can choose its addresses."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
