"""Which proxy a request goes through: by the server config, or else by the environment, as in Go and curl."""

from __future__ import annotations

import ipaddress
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Proxies:
    """The values of `https_proxy` and so on; empty for none."""

    def __init__(self, http: str = "", https: str = "", ignored: str = "") -> None:
        self._by_scheme = {"http": http, "https": https}
        self._ignored = ignored

    @classmethod
    def of(
        cls, value: Callable[[str], str] = lambda _: "", environment: Mapping[str, str] | None = None
    ) -> Proxies:
        """Return those of the server config; what is not set there is taken from `HTTP_PROXY` and so on."""
        env = os.environ if environment is None else environment

        def setting(key: str, name: str) -> str:
            return value(key) or env.get(name) or env.get(name.lower()) or ""

        return cls(
            setting("core.proxy_http", "HTTP_PROXY"),
            setting("core.proxy_https", "HTTPS_PROXY"),
            setting("core.proxy_ignore_hosts", "NO_PROXY"),
        )

    def find(self, scheme: str, host: str) -> str:
        """Return the URL of the proxy for requests to a host, unchecked; empty to connect directly."""
        text = self._by_scheme.get(scheme, "")
        if not text or not self._applies(host.lower()):
            return ""
        return text if "://" in text else f"http://{text}"

    def _applies(self, host: str) -> bool:
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return False
        return not any(_covers(entry.strip().lower(), host, address) for entry in self._ignored.split(","))


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
