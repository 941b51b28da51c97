"""The connections: one writer, a few readers, all opened at start and kept.

SQLite in WAL mode, every commit on disk before it is answered. What the entity modules do with a
connection is SQLAlchemy Core that PostgreSQL runs as well; only this module knows SQLite.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from utsuwa.core.errors import HostError, OutOfSpace
from utsuwa.db import upgrade

log = logging.getLogger(__name__)

T = TypeVar("T")

READERS = 3
_SLOW_SECONDS = 0.5
_BUSY_TIMEOUT_MS = 10_000


class Database:
    """The state of one daemon.

    `read()` gives a consistent snapshot, `write()` a transaction that is on disk when the block has
    ended, and nowhere when it raised. Writers are served one at a time, in order. Reads are never
    held up by a writer.
    """

    def __init__(self, path: Path, writer: AsyncEngine, readers: AsyncEngine) -> None:
        self.path = path
        self._writer = writer
        self._readers = readers
        self._lock = asyncio.Lock()
        self._writing: asyncio.Task[Any] | None = None

    @classmethod
    async def open(cls, path: Path) -> Database:
        """Create or upgrade the file and open every connection. Raises HostError or OutOfSpace."""
        await asyncio.to_thread(upgrade.upgrade, path)
        database = cls(path, _engine(path, 1, "BEGIN IMMEDIATE"), _engine(path, READERS, "BEGIN"))
        try:
            with _translated(path):
                await database._warm()
        except BaseException:
            await database.close()
            raise
        return database

    async def _warm(self) -> None:
        """Open all connections now: the daemon's descriptors do not grow with its first requests."""
        async with AsyncExitStack() as held:
            for engine in [self._writer, *[self._readers] * READERS]:
                connection = await held.enter_async_context(engine.connect())
                await connection.execute(sa.text("SELECT 1"))
                await connection.rollback()

    async def close(self) -> None:
        """Close every connection; a running write is awaited first."""
        async with self._lock:
            await self._readers.dispose()
            await self._writer.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        with _translated(self.path):
            async with _Uninterrupted(self._readers) as connection:
                yield connection

    @asynccontextmanager
    async def write(self, name: str) -> AsyncIterator[AsyncConnection]:
        """One transaction; `name` says in the log what it is for.

        Raises OutOfSpace where the disk is full. A block must not open another one: that is a
        programming error, told at once and not by a deadlock.
        """
        task = asyncio.current_task()
        if self._writing is task:
            raise RuntimeError(f"transaction {name!r} inside another one of the same task")
        async with self._lock:
            self._writing = task
            started = time.monotonic()
            try:
                with _translated(self.path):
                    async with _Uninterrupted(self._writer) as connection:
                        yield connection
                        await _whole(connection.commit())
            finally:
                self._writing = None
                seconds = time.monotonic() - started
                if seconds > _SLOW_SECONDS:
                    log.warning("transaction %s took %.2f s", name, seconds)


def _engine(path: Path, size: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=str(path)),
        pool_size=size,
        max_overflow=0,
        pool_timeout=60,
        # Callers' values (certificates, user data) do not get into messages and logs.
        hide_parameters=True,
    )

    def configure(connection: Any, _: object) -> None:
        # Transactions are ours: the driver's own would begin them late and not immediately.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        if begin == "BEGIN":
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    def start(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    sa.event.listen(engine.sync_engine, "connect", configure)
    sa.event.listen(engine.sync_engine, "begin", start)
    return engine


class _Uninterrupted(AsyncConnection):
    """A connection that a cancelled task leaves between two statements, never in the middle of one.

    SQLAlchemy gives up a connection whose statement was cancelled, and that one's open transaction can
    hold the lock of the database for long: the undo steps of the cancelled task would be the first to fail.
    """

    __slots__ = ()

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return await _whole(super().execute(*args, **kwargs))


async def _whole(step: Coroutine[Any, Any, T]) -> T:
    """Let a step run to its end though the task is cancelled: it has happened, or it has not."""
    running = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen: the cancelled task is told of its cancellation
        raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Failures of the disk below SQLite as typed errors; constraints are the entity modules' matter."""
    try:
        yield
    except DBAPIError as error:
        if is_full(error, path):
            raise OutOfSpace(
                f"No space left for the database {path}: free some space and try again"
            ) from error
        if getattr(error.orig, "sqlite_errorname", "").startswith(("SQLITE_IOERR", "SQLITE_CORRUPT")):
            raise HostError(f"The database {path} cannot be used: {error.orig}") from error
        raise


def is_full(error: DBAPIError, path: Path) -> bool:
    """Whether the disk (or a quota) is full; some of SQLite's writes report only an I/O error."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return True
    if code != sqlite3.SQLITE_IOERR:
        return False
    try:
        return os.statvfs(path).f_bavail == 0
    except OSError as failed:
        return failed.errno == errno.ENOSPC
