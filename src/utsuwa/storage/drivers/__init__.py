"""The drivers: a new one joins the list."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from utsuwa.core.errors import InvalidRequest
from utsuwa.storage.base import DriverType
from utsuwa.storage.drivers import dir, overlay

__all__ = ["DEFAULT_DRIVER", "DRIVERS", "driver_type"]

DRIVERS: Mapping[str, DriverType] = MappingProxyType({kind.name: kind for kind in (overlay.TYPE, dir.TYPE)})
"""All drivers by name; the first is for who does not care."""

DEFAULT_DRIVER = next(iter(DRIVERS))


def driver_type(name: str) -> DriverType:
    """Raises InvalidRequest for a driver that is not there."""
    found = DRIVERS.get(name)
    if found is None:
        raise InvalidRequest(f"Unknown storage driver {name[:40]!r}: use one of {', '.join(sorted(DRIVERS))}")
    return found
