"""The drivers by name, and how one is made for a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from utsuwa.core.errors import InvalidRequest
from utsuwa.storage.base import Driver
from utsuwa.storage.drivers.dir import DirDriver
from utsuwa.storage.drivers.overlay import OverlayDriver

__all__ = ["DEFAULT_DRIVER", "DRIVERS", "load_driver"]

DEFAULT_DRIVER = "overlay"


def _dir(folder: Path, config: Mapping[str, str]) -> Driver:
    return DirDriver(folder, _source(folder, config))


def _overlay(folder: Path, config: Mapping[str, str]) -> Driver:
    return OverlayDriver(folder, _source(folder, config), config)


def _source(folder: Path, config: Mapping[str, str]) -> Path:
    return Path(config.get("source") or folder)


DRIVERS: Mapping[str, Callable[[Path, Mapping[str, str]], Driver]] = MappingProxyType(
    {"dir": _dir, "overlay": _overlay}
)


def load_driver(name: str, folder: Path, config: Mapping[str, str]) -> Driver:
    """The driver `name` for the pool at `folder`. Raises InvalidRequest for one that is not there."""
    make = DRIVERS.get(name)
    if make is None:
        raise InvalidRequest(f"Unknown storage driver {name[:40]!r}: use one of {', '.join(sorted(DRIVERS))}")
    return make(folder, config)
