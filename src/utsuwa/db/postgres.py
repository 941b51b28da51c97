"""PostgreSQL, for members that share a database: repeatable reads, and retries after conflicts."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError

from utsuwa.core.errors import HostError, InvalidRequest, OutOfSpace, Unavailable, UtsuwaError
from utsuwa.db import upgrade
from utsuwa.db.locks import AdvisoryLocks

_CONNECT_SECONDS = 5
_UPGRADE_LOCK = 0x75747375
"""The advisory lock that serializes upgrades, so that a second daemon waits and then has nothing to do."""

_SERVER_KEEPALIVES = """
    SELECT set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
    set_config('tcp_keepalives_count', '4', false)
"""
"""Lets the server release the locks of an unreachable host within half a minute."""

_SERIALIZATION, _DEADLOCK = "40001", "40P01"
_UNIQUE = "23505"
"""Entity modules turn expected violations into AlreadyExists. Any others are caused by concurrent
transactions that replaced the same rows; when retried, the later one sees the rows of the earlier one.
"""
_DISK_FULL, _READ_ONLY = "53100", "25006"
_NOT_NOW = ("57P01", "57P02", "57P03", "53300")
"""The server is shutting down or starting, has crashed, or has too many connections."""


class Postgres:
    """The engine of daemons that share a database."""

    readers = 3
    writers = 2
    shared = True

    def __init__(self, url: str) -> None:
        """`url` is like `postgresql://user:password@host/database?key=value`; HostError for others."""
        self._url = parse_url(url)
        self._engine = sa.create_engine(
            self._url,
            # Each connection is opened by the thread that uses it.
            poolclass=sa.NullPool,
            # Keep values from callers (certificates, user data) out of messages and logs.
            hide_parameters=True,
            isolation_level="REPEATABLE READ",
            connect_args={
                "connect_timeout": _CONNECT_SECONDS,
                "application_name": "utsuwad",
                # Detect an unreachable server within half a minute.
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
        """Run all steps in one transaction, so that a killed daemon leaves the database unchanged."""
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
        """Only set attributes: the driver begins with the first statement, which may bypass SQLAlchemy."""
        connection.begin()

    def settle(self) -> None:
        """Do nothing: the server ends no commit before that."""

    def locks(self) -> AdvisoryLocks:
        return AdvisoryLocks(self._connect_for_locks, self.translated)

    def _connect_for_locks(self) -> sa.Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(_SERVER_KEEPALIVES)
        return connection

    def check_room(self) -> None:
        """Do nothing: the disk belongs to the database server."""

    def is_conflict(self, error: DBAPIError) -> bool:
        return _state(error) in (_SERIALIZATION, _DEADLOCK, _UNIQUE)

    def is_lost(self, error: DBAPIError) -> bool:
        if error.connection_invalidated or _state(error) in _NOT_NOW:
            return True
        # Errors without an SQLSTATE do not come from the server.
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
            return Unavailable(f"{self.name} is read-only: {_first_line(error)}")
        if isinstance(error, DataError):
            return InvalidRequest(f"The database cannot store this: {_first_line(error)}")
        return None

    def dump(self, *, schema_only: bool) -> str:
        raise InvalidRequest(
            "The daemon's database is PostgreSQL: use pg_dump" + (" --schema-only" if schema_only else "")
        )


def parse_url(text: str) -> sa.URL:
    """Parse a URL. Raises HostError, without quoting the text because it may contain a password."""
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise HostError("The database's URL is malformed: use postgresql://USER@HOST/DATABASE") from None
    if url.drivername not in ("postgresql", "postgres") or not url.database:
        raise HostError("The database's URL must be of the form postgresql://USER@HOST/DATABASE")
    return url.set(drivername="postgresql+psycopg")


def _stored_revision(connection: sa.Connection) -> str | None:
    """Return the schema revision of the tables; None if there are none."""
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
