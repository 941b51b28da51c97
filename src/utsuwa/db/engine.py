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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from utsuwa.core.errors import HostError, OutOfSpace
from utsuwa.db import upgrade
from utsuwa.db.connection import Connection, Session, in_thread

log = logging.getLogger(__name__)

T = TypeVar("T")

READERS = 3
_SLOW_SECONDS = 0.5
_BUSY_TIMEOUT_MS = 10_000
_READER_SECONDS = 60
_ROOM = 1 << 20
"""How long a read waits for one of the connections."""


class Database:
    """The state of one daemon.

    `read()` gives a consistent snapshot, `write()` a transaction that is on disk when the block has
    ended, and nowhere when it raised; `change()` is the same for statements alone, and quicker.
    Writers are served one at a time, in order. Reads are never held up by a writer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        engine = _engine(path)
        self._writer = Session(engine.connect, "BEGIN IMMEDIATE")
        readers = [Session(partial(_connect_reader, engine), "BEGIN") for _ in range(READERS)]
        self._sessions: tuple[Session, ...] = (*readers, self._writer)
        # The one that was used last is used next: what it has read is still in its cache.
        self._idle: asyncio.LifoQueue[Session] = asyncio.LifoQueue()
        for reader in readers:
            self._idle.put_nowait(reader)
        self._lock = asyncio.Lock()
        self._writing: asyncio.Task[Any] | None = None

    @classmethod
    async def open(cls, path: Path) -> Database:
        """Create or upgrade the file and open every connection. Raises HostError or OutOfSpace."""
        await asyncio.to_thread(upgrade.upgrade, path)
        database = cls(path)
        try:
            with _translated(path):
                await database._warm()
        except BaseException:
            await database.close()
            raise
        return database

    async def _warm(self) -> None:
        """Open all connections now: the daemon's descriptors do not grow with its first requests."""
        for session in self._sessions:
            try:
                await session.step(lambda connection: connection.execute(sa.text("SELECT 1")).all())
            finally:
                session.roll_back()

    async def close(self) -> None:
        """Close every connection; a running write is awaited first."""
        async with self._lock:
            sessions, self._sessions = self._sessions, ()
            for session in sessions:
                await asyncio.wrap_future(session.close())

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        reader = await self._idle_reader()
        connection = Connection(reader)
        try:
            with _translated(self.path):
                yield connection
        finally:
            connection.end()
            reader.roll_back()
            self._idle.put_nowait(reader)

    async def _idle_reader(self) -> Session:
        try:
            return self._idle.get_nowait()
        except asyncio.QueueEmpty:
            async with asyncio.timeout(_READER_SECONDS):
                return await self._idle.get()

    @asynccontextmanager
    async def write(self, name: str) -> AsyncIterator[Connection]:
        """One transaction; `name` says in the log what it is for.

        Raises OutOfSpace where the disk is full. A block must not open another one: that is a
        programming error, told at once and not by a deadlock.
        """
        async with self._turn(name):
            connection = Connection(self._writer)
            try:
                with _translated(self.path):
                    yield connection
                    await _whole(self._writer.commit())
            finally:
                connection.end()
                self._writer.roll_back()

    async def change(self, name: str, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        """As `write`, in a single step: `work` makes statements, and awaits nothing else."""
        async with self._turn(name):
            with _translated(self.path):
                return await _whole(self._writer.transact(partial(in_thread, work)))

    def check_room(self) -> None:
        """For what may have to be taken back later, which needs space as well. Raises OutOfSpace."""
        disk = os.statvfs(self.path)
        if disk.f_bavail * disk.f_frsize < _ROOM:
            raise _out_of_space(self.path)

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Be the one who writes."""
        task = asyncio.current_task()
        if self._writing is task:
            raise RuntimeError(f"transaction {name!r} inside another one of the same task")
        async with self._lock:
            self._writing = task
            started = time.monotonic()
            try:
                yield
            finally:
                self._writing = None
                seconds = time.monotonic() - started
                if seconds > _SLOW_SECONDS:
                    log.warning("transaction %s took %.2f s", name, seconds)


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        # Each connection is made by the thread that keeps it.
        poolclass=sa.NullPool,
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
        cursor.close()

    sa.event.listen(engine, "connect", configure)
    return engine


def _connect_reader(engine: sa.Engine) -> sa.Connection:
    connection = engine.connect()
    connection.exec_driver_sql("PRAGMA query_only = ON")
    connection.rollback()
    return connection


async def _whole(running: asyncio.Future[T]) -> T:
    """Wait for the end though the task is cancelled: it has happened, or it has not."""
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
            raise _out_of_space(path) from error
        if getattr(error.orig, "sqlite_errorname", "").startswith(("SQLITE_IOERR", "SQLITE_CORRUPT")):
            raise HostError(f"The database {path} cannot be used: {error.orig}") from error
        raise


def _out_of_space(path: Path) -> OutOfSpace:
    return OutOfSpace(f"No space left for the database {path}: free some space and try again")


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
