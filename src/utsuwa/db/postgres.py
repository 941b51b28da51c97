"""PostgreSQL, for hosts that share one database: repeatable reads, and retries after conflicts."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError

from utsuwa.core.errors import HostError, InvalidRequest, OutOfSpace, Unavailable, UtsuwaError
from utsuwa.db import upgrade
from utsuwa.db.locks import AdvisoryLocks

_CONNECT_SECONDS = 5
_UPGRADE_LOCK = 0x75747375
"""Held while the steps run, so that a second daemon waits and then finds the work done."""

_SERVER_KEEPALIVES = """
    SELECT set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
    set_config('tcp_keepalives_count', '4', false)
"""
"""The server gives back the locks of a host that is gone without a word within half a minute."""

_SERIALIZATION, _DEADLOCK = "40001", "40P01"
_UNIQUE = "23505"
"""What entity modules expect of it they turn into AlreadyExists. Any other comes of two transactions that
replaced the same rows at once; run again, the later one sees what the earlier one has stored.
"""
_DISK_FULL, _READ_ONLY = "53100", "25006"
_NOT_NOW = ("57P01", "57P02", "57P03", "53300")
"""The server shuts down, has crashed, starts, or has too many connections."""


class Postgres:
    """The engine of daemons that share one database."""

    readers = 3
    writers = 2
    shared = True

    def __init__(self, url: str) -> None:
        """`url` is like `postgresql://user:password@host/database?key=value`; HostError for others."""
        self._url = parse_url(url)
        self._engine = sa.create_engine(
            self._url,
            # Each connection is made by the thread that keeps it.
            poolclass=sa.NullPool,
            # Callers' values (certificates, user data) do not get into messages and logs.
            hide_parameters=True,
            isolation_level="REPEATABLE READ",
            connect_args={
                "connect_timeout": _CONNECT_SECONDS,
                "application_name": "utsuwad",
                # A server that is gone without a word is noticed within half a minute.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 4,
            },
        )

    @property
    def name(self) -> str:
        where = self._url.host or self._url.query.get("host") or "localhost"
        return f"The database {self._url.database!r} of PostgreSQL on {where}"

    # ---- tables

    def prepare(self) -> bool:
        """All steps are one transaction: a daemon killed meanwhile leaves the database as it was."""
        try:
            with self._engine.connect() as plain:
                # Each statement sees what another daemon has stored while this one waited for the lock.
                connection = plain.execution_options(isolation_level="READ COMMITTED")
                self._check(connection)
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
                if not upgrade.is_behind(_stored_revision(connection), self.name):
                    return False
                upgrade.run_steps(connection)
                connection.commit()
        except DBAPIError as error:
            if self.is_lost(error):
                raise self._away(error) from error
            raise HostError(f"Cannot prepare {_lower(self.name)}: {_first_line(error)}") from error
        return True

    def is_prepared(self) -> bool:
        try:
            with self._engine.connect() as connection:
                stored = _stored_revision(connection)
        except DBAPIError:
            return True
        return stored not in (None, *upgrade.REVISIONS[:-1])

    def _check(self, connection: sa.Connection) -> None:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise HostError(f"{self.name} has the encoding {encoding}: create it with ENCODING 'UTF8'")

    # ---- transactions

    def connect(self, *, read_only: bool) -> sa.Connection:
        connection = self._engine.connect()
        return connection.execution_options(postgresql_readonly=True) if read_only else connection

    def begin(self, connection: sa.Connection, *, read_only: bool) -> None:
        """Only noted: the driver begins with the first statement, which may go past SQLAlchemy."""
        connection.begin()

    def locks(self) -> AdvisoryLocks:
        return AdvisoryLocks(self._connect_for_locks, self.translated)

    def _connect_for_locks(self) -> sa.Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(_SERVER_KEEPALIVES)
        return connection

    def check_room(self) -> None:
        """Nothing: the disk is another machine's."""

    def is_conflict(self, error: DBAPIError) -> bool:
        return _state(error) in (_SERIALIZATION, _DEADLOCK, _UNIQUE)

    def is_lost(self, error: DBAPIError) -> bool:
        if error.connection_invalidated or _state(error) in _NOT_NOW:
            return True
        # Without a state it was not the server that answered.
        return isinstance(error, OperationalError | InterfaceError) and not _state(error)

    def _away(self, error: DBAPIError) -> Unavailable:
        return Unavailable(f"{self.name} cannot be reached: {_first_line(error)}")

    def translated(self, error: DBAPIError) -> UtsuwaError | None:
        if self.is_lost(error):
            return self._away(error)
        state = _state(error)
        if state == _DISK_FULL:
            return OutOfSpace(f"No space left for {_lower(self.name)}: free some there and try again")
        if state == _READ_ONLY:
            return Unavailable(f"{self.name} takes no changes: {_first_line(error)}")
        if isinstance(error, DataError):
            return InvalidRequest(f"The database cannot store this: {_first_line(error)}")
        return None

    def dump(self, *, schema_only: bool) -> str:
        raise InvalidRequest(
            "The daemon's database is PostgreSQL: use pg_dump" + (" --schema-only" if schema_only else "")
        )


def parse_url(text: str) -> sa.URL:
    """Raises HostError, which does not repeat the text: it may hold a password."""
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise HostError("The database's URL is malformed: use postgresql://USER@HOST/DATABASE") from None
    if url.drivername not in ("postgresql", "postgres") or not url.database:
        raise HostError("The database's URL must be of the form postgresql://USER@HOST/DATABASE")
    return url.set(drivername="postgresql+psycopg")


def _stored_revision(connection: sa.Connection) -> str | None:
    """The step that the tables are at; None where there are none."""
    if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar_one() is None:
        return None
    found: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar_one_or_none()
    return found


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).strip().splitlines() or ["no reason given"])[0]


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]
