"""The pools that this daemon has, with their drivers: which can be used, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core.errors import NotFound, Unavailable
from utsuwa.storage.base import Driver


class KnownPools:
    """Filled and emptied by the pools' manager; all parts of the storage look here."""

    def __init__(self) -> None:
        self.drivers: dict[str, Driver] = {}
        self.configs: dict[str, Mapping[str, str]] = {}
        """What the drivers were made with, or have been told since."""
        self.mounted: set[str] = set()
        self.reasons: dict[str, str] = {}
        """Why pools could not be mounted when that was tried last."""

    def add(self, pool: str, driver: Driver, config: Mapping[str, str]) -> None:
        self.drivers[pool] = driver
        self.configs[pool] = config

    def remove(self, pool: str) -> None:
        del self.drivers[pool], self.configs[pool]

    def driver(self, pool: str) -> Driver:
        """The driver of a pool that can be used. Raises NotFound, Unavailable."""
        driver = self.driver_of_any(pool)
        if pool not in self.mounted:
            raise self.unavailable(pool)
        return driver

    def driver_of_any(self, pool: str) -> Driver:
        """Whether the pool is available or not. Raises NotFound, also where its row cannot be read."""
        if pool not in self.drivers:
            raise NotFound(f"Storage pool {pool!r} not found")
        return self.drivers[pool]

    def unavailable(self, pool: str) -> Unavailable:
        reason = self.reasons.get(pool, "it is being deleted")
        return Unavailable(f"Storage pool {pool!r} is not available: {reason}")

    def usable(self) -> list[tuple[str, Driver]]:
        """The pools that can be used, by name."""
        return [(pool, self.drivers[pool]) for pool in sorted(self.mounted)]
