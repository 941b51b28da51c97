"""The pools of this daemon with their drivers: which can be used, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utsuwa.core.errors import NotFound, Unavailable
from utsuwa.storage.base import Driver, DriverType, ImageDriver
from utsuwa.storage.images_by_files import ImagesByFiles

DELETED = "it is being deleted"
"""Why a pool that could be mounted is not available."""


class KnownPool:
    """One pool with its driver."""

    def __init__(self, name: str, kind: DriverType, folder: Path, config: Mapping[str, str]) -> None:
        self.name = name
        self.kind = kind
        self.config = config
        """The config that the driver applies now."""
        self.driver: Driver = kind.make(folder, config)
        self.shares_images = isinstance(self.driver, ImageDriver)
        """Whether instances share the files of their image, so that an image in use stays on the pool."""
        self.images: ImageDriver = (
            self.driver if isinstance(self.driver, ImageDriver) else ImagesByFiles(self.driver)
        )
        self.available = False
        self.reason = DELETED
        """Why it is not available."""

    def unavailable(self) -> Unavailable:
        return Unavailable(f"Storage pool {self.name!r} is not available: {self.reason}")


class KnownPools:
    """Maintained by the pool manager, read by all parts of the storage."""

    def __init__(self) -> None:
        self._pools: dict[str, KnownPool] = {}

    def add(self, pool: KnownPool) -> None:
        self._pools[pool.name] = pool

    def remove(self, pool: KnownPool) -> None:
        del self._pools[pool.name]

    def available(self, name: str) -> KnownPool:
        """Return a pool that can be used. Raises NotFound, Unavailable."""
        pool = self.get(name)
        if not pool.available:
            raise pool.unavailable()
        return pool

    def get(self, name: str) -> KnownPool:
        """Return a pool, whether it is available or not. Raises NotFound, also if its row cannot be read."""
        if name not in self._pools:
            raise NotFound(f"Storage pool {name!r} not found")
        return self._pools[name]

    def all(self) -> list[KnownPool]:
        """By name."""
        return [self._pools[name] for name in sorted(self._pools)]

    def all_available(self) -> list[KnownPool]:
        """The pools that can be used, by name."""
        return [pool for pool in self.all() if pool.available]
