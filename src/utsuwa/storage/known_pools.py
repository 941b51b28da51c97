"""The pools of this daemon with their drivers, and the reasons why some are unavailable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utsuwa.core.errors import HostError, NotFound, Unavailable
from utsuwa.db.warnings import Subject
from utsuwa.host.mounts import mounts
from utsuwa.storage.base import CopyDriver, Driver, DriverType, ImageDriver
from utsuwa.storage.drivers.file_copies import FileCopies
from utsuwa.storage.images_by_files import ImagesByFiles

DELETED = "it is being deleted"
"""Why a pool that could be mounted is not available."""


class KnownPool:
    """One pool with its driver."""

    def __init__(
        self, name: str, kind: DriverType, folder: Path, config: Mapping[str, str], row_id: int
    ) -> None:
        self.name = name
        self._folder = folder
        self.subject = Subject("storage-pool", row_id)
        self.kind = kind
        self.config = config
        """The config that the driver currently applies."""
        self.driver: Driver = kind.make(folder, config)
        self.shares_images = isinstance(self.driver, ImageDriver)
        """Whether instances share the files of their image, so that an image in use must be kept."""
        self.images: ImageDriver = (
            self.driver if isinstance(self.driver, ImageDriver) else ImagesByFiles(self.driver)
        )
        self.copies: CopyDriver = (
            self.driver if isinstance(self.driver, CopyDriver) else FileCopies(self.driver, self.driver)
        )
        self.available = False
        self.reason = DELETED
        """The reason why it is not available."""

    def check_mounts(self) -> None:
        """Raise HostError if the driver needs idmapped mounts and a new pool has none. Blocking."""
        if self.kind.needs_idmapped_mounts and not mounts.can_idmap(self._folder):
            raise HostError(
                f"The file system of the storage pool {self.name!r} has no idmapped mounts, which the driver "
                f"{self.kind.name!r} needs: use another file system or driver"
            )

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
        """Return all pools, sorted by name."""
        return [self._pools[name] for name in sorted(self._pools)]

    def all_available(self) -> list[KnownPool]:
        """Return the available pools, sorted by name."""
        return [pool for pool in self.all() if pool.available]
