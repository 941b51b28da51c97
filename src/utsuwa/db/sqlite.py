"""SQLite in the state directory: WAL mode, a single writer, and commits that are synced together.

SQLite itself only syncs where its file could be damaged otherwise (`synchronous = NORMAL`). `settle` syncs
the commits, so the writer does not wait for the disk, and transactions that end at the same time share one.

The write-ahead log gets the size to which it grows before it is used from its beginning again when the daemon
starts: to sync a file that has not grown takes a third of the time, as its inode stays as it is.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from utsuwa.core.errors import HostError, OutOfSpace, UtsuwaError
from utsuwa.db import upgrade
from utsuwa.db.locks import LocalLocks

log = logging.getLogger(__name__)

_BUSY_TIMEOUT_MS = 10_000
_ROOM = 1 << 20
_LOG_SIZE = 4 << 20
"""Bytes of the write-ahead log at which SQLite by default moves its content to the database."""
_AMPLE = 16 * _LOG_SIZE


class Sqlite:
    """The engine of a daemon that does not share its database."""

    readers = 3
    writers = 1
    shared = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _create_engine(path)
        sa.event.listen(self._engine, "connect", _configure)

    @property
    def name(self) -> str:
        return f"The database {self.path}"

    # ---- tables

    def prepare(self) -> bool:
        """Run all steps in one transaction, so that a killed daemon leaves the file unchanged.

        Before an upgrade, the file is backed up next to it, and the copy is checked.
        """
        _create_file(self.path)
        try:
            stored = self.stored_revision()
            if not upgrade.is_behind(stored, self.name):
                return False
            if stored is not None:
                _back_up(self.path, self.path.with_name(f"{self.path.name}.{stored}"))
            self._run_steps()
        except (sqlite3.Error, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            if getattr(reason, "sqlite_errorname", "") == "SQLITE_FULL":
                raise OutOfSpace(
                    f"No space left to prepare the database {self.path}: free some and start again"
                ) from error
            raise HostError(f"Cannot prepare the database {self.path}: {reason}") from error
        return True

    def is_prepared(self) -> bool:
        if not self.path.exists():
            return False
        try:
            stored = self.stored_revision()
        except sqlite3.Error:
            return True
        return stored not in (None, *upgrade.REVISIONS[:-1])

    def stored_revision(self) -> str | None:
        """Return the schema revision of the file; None for a file without tables."""
        with closing(sqlite3.connect(self.path)) as connection:
            found = connection.execute(
                "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
            ).fetchone()
            if not found[0]:
                return None
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return None if row is None else str(row[0])

    def _run_steps(self) -> None:
        engine = _create_engine(self.path)
        sa.event.listen(engine, "connect", _own_transactions)
        sa.event.listen(engine, "begin", _begin_immediate)
        with engine.connect() as connection:
            # The write lock makes a second daemon wait, which then has nothing to do.
            upgrade.run_steps(connection)
            connection.commit()

    # ---- transactions

    def connect(self, *, read_only: bool) -> sa.Connection:
        connection = self._engine.connect()
        if read_only:
            connection.exec_driver_sql("PRAGMA query_only = ON")
            connection.rollback()
        else:
            self._lengthen_log(connection)
        return connection

    def _lengthen_log(self, connection: sa.Connection) -> None:
        """Append zeros to the write-ahead log, which SQLite takes for the end of its content.

        Nobody else writes to it meanwhile, as this connection holds the write lock. On a disk that is nearly
        full, it stays as it is: others need the space more.
        """
        if _free(self.path) < _AMPLE:
            return
        self.begin(connection, read_only=False)
        try:
            descriptor = os.open(f"{self.path}-wal", os.O_WRONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                _append_zeros(descriptor, size, _LOG_SIZE - size)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.info("the write-ahead log grows as needed: %s", error.strerror)
        finally:
            connection.rollback()

    def begin(self, connection: sa.Connection, *, read_only: bool) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    def settle(self) -> None:
        """Sync the write-ahead log; a checkpoint syncs what it takes out of it."""
        descriptor = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def locks(self) -> LocalLocks:
        return LocalLocks()

    def check_room(self) -> None:
        if _free(self.path) < _ROOM:
            raise self._out_of_space()

    def is_conflict(self, error: DBAPIError) -> bool:
        """Return False: writers are serialized, and readers are not blocked."""
        return False

    def is_lost(self, error: DBAPIError) -> bool:
        return False

    def translated(self, error: DBAPIError) -> UtsuwaError | None:
        if is_full(error, self.path):
            return self._out_of_space()
        if getattr(error.orig, "sqlite_errorname", "").startswith(("SQLITE_IOERR", "SQLITE_CORRUPT")):
            return HostError(f"The database {self.path} cannot be used: {error.orig}")
        return None

    def _out_of_space(self) -> OutOfSpace:
        return OutOfSpace(f"No space left for the database {self.path}: free some space and try again")

    def dump(self, *, schema_only: bool) -> str:
        connection = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)
        try:
            if not schema_only:
                return "".join(f"{line}\n" for line in connection.iterdump())
            rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
            return "".join(f"{sql};\n" for (sql,) in rows)
        finally:
            connection.close()


def _create_engine(path: Path) -> sa.Engine:
    return sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        # Each connection is opened by the thread that uses it.
        poolclass=sa.NullPool,
        # Keep values from callers (certificates, user data) out of messages and logs.
        hide_parameters=True,
    )


def _configure(connection: Any, _: object) -> None:
    # Transactions are begun explicitly: the driver would begin them lazily and not as IMMEDIATE.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.close()


def _own_transactions(connection: sqlite3.Connection, _: object) -> None:
    """Disable the driver's implicit transactions, which do not cover changes of tables."""
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    # Off while tables are rebuilt; every step that rebuilds one checks the references at its end.
    connection.execute("PRAGMA foreign_keys = OFF")


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _create_file(path: Path) -> None:
    """Create directory and file with their final modes; SQLite creates its journals with the file's mode."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise HostError(f"Cannot open the database {path}: {error.strerror}") from error


def _free(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def _append_zeros(descriptor: int, size: int, count: int) -> None:
    """Append zeros to a file of a size, all or none. Raises OSError."""
    place, end = size, size + count
    try:
        while place < end:
            place += os.pwrite(descriptor, bytes(min(end - place, 1 << 20)), place)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _back_up(path: Path, copy: Path) -> None:
    """Back up the database. Raises sqlite3.DatabaseError if the copy is damaged."""
    part = copy.with_name(f"{copy.name}.part")
    part.unlink(missing_ok=True)
    _create_file(part)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(part)) as target:
        source.backup(target)
        (verdict,) = target.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"the copy made before the upgrade is damaged: {verdict}")
    part.replace(copy)


def is_full(error: DBAPIError, path: Path) -> bool:
    """Return whether the disk or a quota is full; some writes of SQLite report only an I/O error."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return True
    if code != sqlite3.SQLITE_IOERR:
        return False
    try:
        return os.statvfs(path).f_bavail == 0
    except OSError as failed:
        return failed.errno == errno.ENOSPC
