"""Locks among the daemons that share a PostgreSQL database: advisory locks of one connection's session.

The server gives them back by itself when the connection ends, so a daemon that is killed holds none.
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
"""How long a lock that another daemon holds is waited for."""


class AdvisoryLocks:
    """One connection, in a thread of its own, holds all locks of this daemon.

    A lock is asked for again and again: waiting for it in the server would keep the connection from giving
    others back. Within the daemon waiters are served in order. Where the connection breaks its locks are
    lost; what they guard is then left to the constraints of the tables until their holders have ended.
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
        """Connect, or connect anew where the connection has broken. Raises Unavailable."""
        await self._run(partial(self._once, _ask))

    async def close(self) -> None:
        """Give all locks back."""
        await self._run(self._drop)
        self._thread.shutdown(wait=False)

    @asynccontextmanager
    async def hold(self, *name: str) -> AsyncIterator[None]:
        """Raises Unavailable where another daemon does not give it back, or the database is away."""
        key = key_of(name)
        async with self._inside.hold(key):
            held: list[sa.Connection] = []
            try:
                if not await self._acquire(key, held, _WAIT_SECONDS):
                    what = " ".join(name)
                    raise Unavailable(f"Another member holds the lock {what!r} for too long: try again")
                yield
            finally:
                # Also where the caller was cancelled just when the lock came.
                for connection in held:
                    await self._run(partial(self._release, connection, key))

    async def keep(self, *name: str, seconds: float) -> bool:
        """Hold a lock until the end, also by connections that come after this one.

        Returns whether it could be had within some `seconds`. Raises Unavailable.
        """
        key = key_of(name)
        if not await self._acquire(key, [], seconds):
            return False
        self._kept.add(key)
        return True

    async def _acquire(self, key: int, held: list[sa.Connection], seconds: float) -> bool:
        """Whether the lock was had in time; `held` then has the connection that it belongs to."""
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
                return self._once(work)  # it may have been lost long ago
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
    """For a database that is one daemon's alone."""

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to give back."""

    async def keep(self, *name: str, seconds: float) -> bool:
        """Whoever has the state folder has the database."""
        return True


Locks = AdvisoryLocks | LocalLocks
"""Both are `ClusterLocks`."""


def key_of(name: tuple[str, ...]) -> int:
    """A lock's number, of 64 bits with a sign, as the server wants it."""
    text = "\0".join(("utsuwa", *name)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)
