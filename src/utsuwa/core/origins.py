"""Web origins, as sent by browsers: `https://panel.example:8443`."""

from __future__ import annotations

import re
from typing import NamedTuple

ANY = "*"
"""Matches every origin."""

_HOST = r"(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]\\,]+)(?::([0-9]{1,5}))?\Z"
_HOST_AND_PORT = re.compile(_HOST)
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://" + _HOST)
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class Origin(NamedTuple):
    """`scheme` and `host` are in lower case; `port` defaults to that of the scheme, or 0 if it has none."""

    scheme: str
    host: str
    port: int


def parse_origin(text: str) -> Origin | None:
    """Parse an origin; return None if it has no host, such as the `null` of sandboxed pages."""
    found = _ORIGIN.match(text)
    if found is None:
        return None
    scheme = found[1].lower()
    return Origin(scheme, found[2].lower(), int(found[3] or _PORTS.get(scheme, 0)))


def parse_host(text: str, scheme: str) -> tuple[str, int] | None:
    """Return host and port of a `Host` header, the port defaulting to that of `scheme`; None if malformed."""
    found = _HOST_AND_PORT.match(text)
    if found is None:
        return None
    return found[1].lower(), int(found[2] or _PORTS.get(scheme, 0))
