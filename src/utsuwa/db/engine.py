"""The interface of database engines, implemented by `sqlite` and `postgres`."""

from __future__ import annotations

from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from utsuwa.core.errors import UtsuwaError
from utsuwa.db.locks import Locks


class Engine(Protocol):
    """Connections, isolation, interpretation of errors, and upgrades. Every method blocks.

    `readers` and `writers` are the numbers of connections that the daemon keeps open, `shared` is whether
    other daemons may use the same database.
    """

    @property
    def name(self) -> str:
        """The database's name in messages, without secrets."""

    readers: int
    writers: int
    shared: bool

    def prepare(self) -> bool:
        """Create or upgrade the tables; return whether anything was changed.

        Raises HostError if the database belongs to another program or to a newer version, OutOfSpace,
        or Unavailable if it cannot be reached.
        """

    def is_prepared(self) -> bool:
        """Return whether `prepare` has nothing to do, or cannot be checked; errors are left to `prepare`."""

    def connect(self, *, read_only: bool) -> sa.Connection:
        """Open a connection, to be used by the calling thread only."""

    def begin(self, connection: sa.Connection, *, read_only: bool) -> None:
        """Begin a transaction: a read sees a consistent snapshot, and conflicting writes are detected."""

    def settle(self) -> None:
        """Wait until everything that was committed is on disk. Raises OSError."""

    def locks(self) -> Locks:
        """Return the locks of the daemons that share the database, not opened yet."""

    def check_room(self) -> None:
        """Raise OutOfSpace if there may be too little space to undo a change later."""

    def is_conflict(self, error: DBAPIError) -> bool:
        """Return whether the error is a conflict with another transaction, which may be retried."""

    def is_lost(self, error: DBAPIError) -> bool:
        """Return whether the connection was lost or could not be opened."""

    def translated(self, error: DBAPIError) -> UtsuwaError | None:
        """Return the typed error for a failure of the database's host or server; None for all others."""

    def dump(self, *, schema_only: bool) -> str:
        """Return the database as SQL text. Raises InvalidRequest if the engine has its own program for it."""
