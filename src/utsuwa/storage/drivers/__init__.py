"""The drivers by name, and how one is made for a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.pool_keys import DEFAULT_OVERLAY_OPTIONS
from utsuwa.storage.base import Driver
from utsuwa.storage.drivers.dir import DirDriver
from utsuwa.storage.drivers.overlay import OverlayDriver

__all__ = ["DEFAULT_DRIVER", "DRIVERS", "load_driver"]

DEFAULT_DRIVER = "overlay"


def _dir(folder: Path, config: Mapping[str, str]) -> Driver:
    return DirDriver(folder, _source(folder, config))


def _overlay(folder: Path, config: Mapping[str, str]) -> Driver:
    options = config.get("overlay.mount_options") or DEFAULT_OVERLAY_OPTIONS
    unpack = parse_bool(config.get("overlay.unpack_images", ""))
    return OverlayDriver(folder, _source(folder, config), options, unpack_images=unpack)


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
