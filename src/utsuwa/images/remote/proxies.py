"""Which proxy a request goes through: by the server config, or else by the daemon's environment."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from yarl import URL

from utsuwa.core.errors import InvalidConfig


@dataclass(frozen=True)
class Proxies:
    """`core.proxy_http`, `core.proxy_https` and `core.proxy_ignore_hosts`; empty for none."""

    http: str = ""
    https: str = ""
    ignored: str = ""

    @classmethod
    def of(cls, value: Callable[[str], str], environment: Mapping[str, str] | None = None) -> Proxies:
        """Return those of the server config; what is not set there is taken from `HTTP_PROXY` and so on."""
        env = os.environ if environment is None else environment

        def setting(key: str, name: str) -> str:
            return value(key) or env.get(name) or env.get(name.lower()) or ""

        return cls(
            setting("core.proxy_http", "HTTP_PROXY"),
            setting("core.proxy_https", "HTTPS_PROXY"),
            setting("core.proxy_ignore_hosts", "NO_PROXY"),
        )

    def for_url(self, url: URL) -> URL | None:
        """Return the proxy for a URL, None to connect directly. Raises InvalidConfig."""
        text = self.https if url.scheme == "https" else self.http
        if not text or not self._applies(url.host or ""):
            return None
        try:
            proxy = URL(text if "://" in text else f"http://{text}")
        except ValueError:
            proxy = URL()
        if proxy.scheme not in ("http", "https") or not proxy.host:
            raise InvalidConfig(
                f"The proxy of core.proxy_{url.scheme} is not a URL such as http://proxy.example:3128"
            )
        return proxy

    def _applies(self, host: str) -> bool:
        host = host.lower()
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return False
        return not any(_covers(entry.strip().lower(), host, address) for entry in self.ignored.split(","))


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _covers(entry: str, host: str, address: _Address | None) -> bool:
    """Whether an entry stands for a host: a name with its subdomains, an address, a subnet, or `*`."""
    if not entry:
        return False
    if entry == "*":
        return True
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name = entry.rpartition(":")[0] or entry if entry.rpartition(":")[2].isdigit() else entry
    return host == name.lstrip(".") or host.endswith("." + name.lstrip("."))
