"""Named locks, made on demand and forgotten when nobody holds or awaits them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol


class ClusterLocks(Protocol):
    """Locks on what all members have in common: `async with locks.hold("networks"): ...`.

    Who holds one excludes everybody on every member. It is held over what is judged beside all others and
    then stored, such as addresses; what one member's host alone has is under a `NamedLocks` of its daemon.
    Raises Unavailable where the lock cannot be had.
    """

    def hold(self, *name: str) -> AbstractAsyncContextManager[None]: ...


class NamedLocks:
    """`async with locks.hold("instance", project, name): ...`; waiters are served in order."""

    def __init__(self) -> None:
        self._locks: dict[tuple[Hashable, ...], tuple[asyncio.Lock, int]] = {}

    def held(self, *name: Hashable) -> bool:
        entry = self._locks.get(name)
        return entry is not None and entry[0].locked()

    @asynccontextmanager
    async def hold(self, *name: Hashable) -> AsyncIterator[None]:
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)
