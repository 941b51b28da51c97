"""Bring the database file to this version's schema, before anything else opens it.

Alembic is imported only where there is something to do: it would be a good part of a start.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from utsuwa.core.errors import HostError, OutOfSpace

REVISIONS = ("0001",)
"""Every step in order, the newest last; a test holds it against `migrations/versions`."""

_MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(path: Path) -> bool:
    """Create or upgrade the file at `path`; gives whether anything was done. Blocks: run it in a thread.

    All steps are one transaction: a daemon killed meanwhile leaves the file as it was. Raises
    HostError where the file is not a database, or comes from a newer version.
    """
    _create_file(path)
    try:
        stored = stored_revision(path)
        if stored == REVISIONS[-1]:
            return False
        if stored is not None and stored not in REVISIONS:
            raise HostError(
                f"The database {path} was written by a newer version of Utsuwa (schema {stored}, this one "
                f"knows {REVISIONS[-1]}): start that version again, or restore a copy made before the upgrade"
            )
        _run_steps(path)
    except (sqlite3.Error, sa.exc.DBAPIError) as error:
        reason = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if getattr(reason, "sqlite_errorname", "") == "SQLITE_FULL":
            raise OutOfSpace(
                f"No space left to prepare the database {path}: free some and start again"
            ) from error
        raise HostError(f"Cannot prepare the database {path}: {reason}") from error
    return True


def is_needed(path: Path) -> bool:
    """Whether `upgrade` has something to do; blocking. What it refuses, it is to refuse itself."""
    if not path.exists():
        return True
    try:
        stored = stored_revision(path)
    except sqlite3.Error:
        return False
    return stored is None or stored in REVISIONS[:-1]


def stored_revision(path: Path) -> str | None:
    """The step that the file is at; None for a file without tables."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
        ).fetchone()
        if not found[0]:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])


def _create_file(path: Path) -> None:
    """Make folder and file with their final modes; SQLite gives its journals the mode of the file."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise HostError(f"Cannot open the database {path}: {error.strerror}") from error


def _run_steps(path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), poolclass=sa.NullPool)
    sa.event.listen(engine, "connect", _own_transactions)
    sa.event.listen(engine, "begin", _begin)
    with engine.connect() as connection:
        # Held while the steps run, so that a second daemon waits and then finds the work done.
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def _own_transactions(connection: sqlite3.Connection, _: object) -> None:
    """The driver's own idea of transactions would leave table changes outside of them."""
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    # Off while tables are rebuilt; references are checked at the end of every step that rebuilds one.
    connection.execute("PRAGMA foreign_keys = OFF")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
