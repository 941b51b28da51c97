"""Locks of the daemons that share a PostgreSQL database: session-level advisory locks of one connection.

The server releases them when the connection ends, so a killed daemon does not hold any.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from utsuwa.core.errors import Unavailable, UtsuwaError
from utsuwa.core.locks import NamedLocks
from utsuwa.core.tasks import finish

log = logging.getLogger(__name__)

T = TypeVar("T")

_TRY = sa.text("SELECT pg_try_advisory_lock(:key)")
_RELEASE = sa.text("SELECT pg_advisory_unlock(:key)")
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.2
_WAIT_SECONDS = 60.0
"""Seconds to wait for a lock that another daemon holds."""


class AdvisoryLocks:
    """All locks of this daemon, held by one connection in a dedicated thread.

    Locks are acquired by polling: waiting in the server would block the connection, which could not release
    others. Within the daemon, waiters are served in order. If the connection is lost, so are its locks; until
    their holders have ended, only the constraints of the tables protect what they guard.
    """

    def __init__(
        self, connect: Callable[[], sa.Connection], translated: Callable[[DBAPIError], UtsuwaError | None]
    ) -> None:
        self._connect = connect
        self._translated = translated
        self._connection: sa.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="locks")
        self._inside = NamedLocks()
        self._kept: set[int] = set()

    async def open(self) -> None:
        """Connect, or reconnect if the connection was lost. Raises Unavailable."""
        await self._run(partial(self._once, _ask))

    async def close(self) -> None:
        """Release all locks."""
        await self._run(self._drop)
        self._thread.shutdown(wait=False)

    @asynccontextmanager
    async def hold(self, *name: str) -> AsyncIterator[None]:
        """Hold a lock. Raises Unavailable if another daemon does not release it, or without a connection."""
        key = key_of(name)
        async with self._inside.hold(key):
            held: list[sa.Connection] = []
            try:
                if not await self._acquire(key, held, _WAIT_SECONDS):
                    what = " ".join(name)
                    raise Unavailable(f"Another member holds the lock {what!r} for too long: try again")
                yield
            finally:
                # Also if the caller was cancelled at the moment of acquisition.
                for connection in held:
                    await self._run(partial(self._release, connection, key))

    async def keep(self, *name: str, seconds: float) -> bool:
        """Hold a lock until `close`, reacquiring it after reconnections.

        Returns whether it was acquired within `seconds`. Raises Unavailable.
        """
        key = key_of(name)
        if not await self._acquire(key, [], seconds):
            return False
        self._kept.add(key)
        return True

    async def _acquire(self, key: int, held: list[sa.Connection], seconds: float) -> bool:
        """Return whether the lock was acquired in time; `held` then contains the connection that owns it."""
        deadline = time.monotonic() + seconds
        pause = _FIRST_PAUSE
        while not await self._run(partial(self._once, partial(_try, key, held))):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    async def _run(self, work: Callable[[], T]) -> T:
        return await finish(asyncio.wrap_future(self._thread.submit(work)))

    # ---- in the thread

    def _once(self, work: Callable[[sa.Connection], T]) -> T:
        fresh = self._connection is None
        try:
            return work(self._connected())
        except DBAPIError as error:
            self._drop()
            if not fresh:
                return self._once(work)  # the connection may have been lost while it was idle
            raise self._translated(error) or error from error

    def _connected(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._connect()
            for key in self._kept:
                if not _try(key, [], self._connection):
                    log.error("a lock of this member is held by another daemon: end that one")
        return self._connection

    def _release(self, connection: sa.Connection, key: int) -> None:
        if connection is not self._connection:
            log.warning("a lock was lost before its end: the connection to the database broke")
            return
        try:
            connection.execute(_RELEASE, {"key": key})
        except DBAPIError as error:
            log.warning("the locks of this member are lost: %s", error.orig)
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except SQLAlchemyError as error:
                log.debug("closing the connection for locks: %s", error)


def _ask(connection: sa.Connection) -> None:
    connection.exec_driver_sql("SELECT 1")


def _try(key: int, held: list[sa.Connection], connection: sa.Connection) -> bool:
    if not connection.execute(_TRY, {"key": key}).scalar_one():
        return False
    held.append(connection)
    return True


class LocalLocks(NamedLocks):
    """Locks for a database that only one daemon uses."""

    async def open(self) -> None:
        """Do nothing: there is no connection."""

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    async def keep(self, *name: str, seconds: float) -> bool:
        """Return True: the lock of the state directory protects the database as well."""
        return True


Locks = AdvisoryLocks | LocalLocks
"""Both are `ClusterLocks`."""


def key_of(name: tuple[str, ...]) -> int:
    """Return a lock's key: a signed 64-bit integer, as required by the server."""
    text = "\0".join(("utsuwa", *name)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)
