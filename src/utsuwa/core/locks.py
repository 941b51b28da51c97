"""Named locks, created on demand and discarded when no task holds or awaits them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol


class ClusterLocks(Protocol):
    """Locks on what all members share: `async with locks.hold("networks"): ...`.

    A lock excludes all other tasks on every member. Hold it while checking a value against all others and
    storing it, such as an address; resources of one member's host are protected by a `NamedLocks` of its
    daemon. Raises Unavailable if the lock cannot be acquired.
    """

    def hold(self, *name: str) -> AbstractAsyncContextManager[None]: ...


class NamedLocks:
    """`async with locks.hold("instance", project, name): ...`; waiters acquire it in order."""

    def __init__(self) -> None:
        self._locks: dict[tuple[Hashable, ...], tuple[asyncio.Lock, int]] = {}
        self._recall: dict[tuple[Hashable, ...], Callable[[], None]] = {}

    def held(self, *name: Hashable) -> bool:
        entry = self._locks.get(name)
        return entry is not None and entry[0].locked()

    @asynccontextmanager
    async def hold(self, *name: Hashable) -> AsyncIterator[None]:
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        if (recall := self._recall.get(name)) is not None:
            recall()
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)

    @asynccontextmanager
    async def lend(self, *name: Hashable, recall: Callable[[], None]) -> AsyncIterator[None]:
        """Hold a lock only until another task wants it: `recall` is called then, and should end the block."""
        async with self.hold(*name):
            self._recall[name] = recall
            if self._locks[name][1] > 1:
                recall()
            try:
                yield
            finally:
                del self._recall[name]
