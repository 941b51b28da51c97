"""Which addresses a request may be redirected to."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from utsuwa.core.errors import InvalidRequest

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult  # of aiohttp 3.10 and newer


class PrivateAddress(OSError):
    """A name of the public network was to be looked up, but belongs to a private address."""


def is_public(address: str) -> bool:
    """Whether an address is reachable from anywhere: not loopback, link-local, private or reserved."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_global)


class JudgingResolver(AbstractResolver):
    """Looks names up, and refuses private addresses for redirects of servers with public ones.

    Otherwise any server could have the daemon send requests to what only its host can reach.
    """

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()
        self._public_only = False
        self._private = False
        """Whether the server of the request has a private address itself."""
        self._first = False
        self._seen: dict[str, bool] = {}
        """Whether names have private addresses: a connection that is used again looks up nothing."""

    def begin(self, url: URL, *, redirected: bool, proxied: bool) -> None:
        """Prepare for a request. Raises InvalidRequest for a redirect to a private address.

        A proxy may have a private address; what names mean is up to it.
        """
        host = url.host or ""
        literal = _literal(host)
        private = not is_public(literal) if literal is not None else self._seen.get(host, False)
        if not redirected:
            self._private = private
        elif private and not self._private and (literal is not None or not proxied):
            raise InvalidRequest(f"The server redirects to {host}, which is not a public address")
        self._public_only = redirected and not self._private and not proxied
        self._first = not redirected and not proxied

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        private = [entry for entry in found if not is_public(entry["host"])]
        self._seen[host] = len(private) == len(found)
        if self._first:
            self._private = self._seen[host]
        if self._public_only and private:
            raise PrivateAddress(f"the server redirects to {host}, which has a private address")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _literal(host: str) -> str | None:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return host
