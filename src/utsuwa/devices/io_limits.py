"""The keys of disks that limit requests, `limits.read`, `limits.write` and `limits.max`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from utsuwa.core.config_keys import ConfigKey
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.units import parse_bytes
from utsuwa.host.cgroups.io_limits import IoLimit

_REQUESTS = re.compile(r"([0-9]{1,9}) ?iops\Z")


def _parse(value: str) -> tuple[int | None, int | None]:
    """Return bytes or requests per second; the other is None."""
    match = _REQUESTS.match(value)
    found = int(match[1]) if match else parse_bytes(value)
    if not found:
        raise InvalidConfig("must be greater than 0")
    return (None, found) if match else (found, None)


def _check(value: str) -> None:
    _parse(value)


KEYS = (
    ConfigKey("limits.read", help="Bytes (`10MB`) or requests (`100iops`) read per second", validate=_check),
    ConfigKey("limits.write", help="The same for writing", validate=_check),
    ConfigKey(
        "limits.max", help="The same limit for both; `limits.read` and `.write` are ignored", validate=_check
    ),
)
NAMES = frozenset(key.name for key in KEYS)


def limit_of(config: Mapping[str, str]) -> IoLimit | None:
    """Return the limit in a device's config, or None."""
    both = config.get("limits.max", "")
    values = (both or config.get("limits.read", ""), both or config.get("limits.write", ""))
    if not any(values):
        return None
    (read, write) = (_parse(value) if value else (None, None) for value in values)
    return IoLimit(*read, *write)
