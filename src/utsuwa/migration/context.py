"""The services for migrations, and what those of instances and volumes have in common."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.proxies import Proxies
from utsuwa.instances.context import Context
from utsuwa.migration.channel import ControlChannel, Stream
from utsuwa.migration.connecting import Remote, connected, connected_live
from utsuwa.operations.operations import Operation
from utsuwa.storage.manager import StorageManager

PULL, PUSH = "pull", "push"


@dataclass(frozen=True)
class MigrationContext:
    """`folder` is a directory for what is received beside trees; it is empty when the daemon starts."""

    instances: Context
    folder: Path

    @property
    def storage(self) -> StorageManager:
        return self.instances.storage

    async def allowed(self, project: str, remote: Remote | None) -> None:
        """Raise Forbidden if a project may not have this server connect to the remote, as for images."""
        if remote is None:
            return
        await self.instances.remote_images.check_allowed(project, str(remote.url.origin()))

    @contextlib.asynccontextmanager
    async def connected(
        self, operation: Operation, remote: Remote | None
    ) -> AsyncIterator[tuple[ControlChannel, Stream]]:
        """As `connecting.connected`, through the proxies of the server config."""
        async with connected(operation, remote, self.proxies) as found:
            yield found

    @contextlib.asynccontextmanager
    async def connected_live(
        self, operation: Operation, remote: Remote | None
    ) -> AsyncIterator[tuple[ControlChannel, Stream, Stream]]:
        """As `connecting.connected_live`, through the proxies of the server config."""
        async with connected_live(operation, remote, self.proxies) as found:
            yield found

    @property
    def proxies(self) -> Proxies:
        return Proxies.of(self.instances.settings.value)

    async def pool_config(self, pool: str) -> Mapping[str, str]:
        """Raises NotFound."""
        return (await self.storage.pools.get(pool)).config

    async def compresses(self, pool: str) -> bool:
        """As the function, for a pool. Raises NotFound."""
        return compresses(await self.pool_config(pool))


def compresses(config: Mapping[str, str]) -> bool:
    """Return whether rsync compresses what goes to or from a pool with this config."""
    return parse_bool(config.get("rsync.compression", "true"))


def remote_of_source(
    mode: str, operation: str, secrets: Mapping[str, str] | None, certificate: str, *, live: bool = False
) -> Remote | None:
    """Return the server from which is pulled; None if it pushes. Raises InvalidRequest."""
    if mode == PUSH:
        return None
    if mode != PULL:
        raise InvalidRequest(f"Unknown mode {mode[:20]!r} of a migration: use pull or push")
    return Remote.of(operation, secrets, certificate, live=live)
