"""Addresses of visitors, and how many connections one of them may have."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from utsuwa.core.client_networks import network_of
from utsuwa.core.errors import InvalidRequest

_CONNECTIONS = 2000
_CONNECTIONS_OF_ONE = 64
_SHARES = {56: 2, 48: 4}
"""How many times what a /64 may have is allowed to all visitors of one prefix of this length: providers give
their customers whole ones."""
_MAPPED = 96
"""Bits before an address of IPv4 in IPv6."""
_WITH_PORT = re.compile(r"(?:\[([^]]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+)\Z")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Addresses:
    """Who is connected, and which of them are proxies that tell a visitor's address."""

    def __init__(self, proxies: tuple[str, ...]) -> None:
        """Raises ValueError if a proxy is neither an address nor a network."""
        self._proxies = tuple(map(parse_proxy, proxies))
        self._networks: dict[Any, str] = {}
        self._counts: Counter[str] = Counter()

    def network_of(self, raw: web.BaseRequest) -> str:
        """Return what counts as one visitor: an IPv4 address, or the /64 of IPv6.

        Raises InvalidRequest if a proxy does not tell an address.
        """
        host = _plain(_host(raw.transport))
        told = ",".join(raw.headers.getall("X-Forwarded-For", ()))
        for part in reversed(told.split(",")):
            if not self._is_proxy(host) or not part.strip():
                break
            host = _told(part.strip())
        return network_of(str(host))

    def begun(self, handler: Any, transport: asyncio.Transport) -> None:
        """Note a connection, and abort it if there are too many."""
        host = _plain(_host(transport))
        network = "" if self._is_proxy(host) else network_of(str(host))
        self._networks[handler] = network
        self._counts[network] += 1
        if len(self._networks) > _CONNECTIONS or (network and self._counts[network] > _CONNECTIONS_OF_ONE):
            transport.abort()

    def ended(self, handler: Any) -> None:
        network = self._networks.pop(handler, None)
        if network is not None:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]

    def _is_proxy(self, address: Address) -> bool:
        return any(address in network for network in self._proxies)


def parse_proxy(text: str) -> Network:
    """Parse an address, or a network of them. Raises ValueError."""
    if "/" not in text:
        return ipaddress.ip_network(_plain(text))
    network = ipaddress.ip_network(text)
    first = _plain(str(network.network_address))
    if network.version != first.version and network.prefixlen >= _MAPPED:
        return ipaddress.ip_network((first, network.prefixlen - _MAPPED))
    return network


def shares(network: str) -> Mapping[str, int]:
    """Return the networks in which a visitor counts, and how many times the limit of one is theirs."""
    found = ipaddress.ip_network(network)
    if isinstance(found, ipaddress.IPv4Network):
        return {network: 1}
    return {network: 1} | {str(found.supernet(new_prefix=length)): most for length, most in _SHARES.items()}


def _host(transport: asyncio.BaseTransport | None) -> str:
    peer = transport.get_extra_info("peername") if transport is not None else None
    return str(peer[0]) if peer else "0.0.0.0"  # noqa: S104 - of a connection that has ended


def _told(text: str) -> Address:
    """Parse what a proxy tells, which may be with a port: `192.0.2.1:80`, `[2001:db8::1]:80`."""
    found = _WITH_PORT.match(text)
    try:
        return _plain(found[1] or found[2] if found else text)
    except ValueError:
        raise InvalidRequest(
            "The proxy before the site does not tell an address in X-Forwarded-For, but"
            f" {text[:64]!r}: correct its configuration"
        ) from None


def _plain(text: str) -> Address:
    """Parse an address; one of IPv4 in IPv6 is of IPv4. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
