"""The interface of database engines, implemented by `sqlite` and `postgres`."""

from __future__ import annotations

from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from utsuwa.core.errors import UtsuwaError
from utsuwa.db.locks import Locks


class Engine(Protocol):
    """Connecting, isolation, what failures mean, and upgrades. Every method blocks.

    `readers` and `writers` say how many connections of either kind the daemon keeps open, `shared` whether
    other daemons may work on the same database.
    """

    @property
    def name(self) -> str:
        """What messages call the database; holds no secret."""

    readers: int
    writers: int
    shared: bool

    def prepare(self) -> bool:
        """Create the tables or upgrade them; return whether there was anything to do.

        Raises HostError where the database belongs to something else or to a newer version, OutOfSpace,
        or Unavailable where it cannot be reached.
        """

    def is_prepared(self) -> bool:
        """Whether `prepare` has nothing to do, or cannot be asked; what it refuses, it refuses itself."""

    def connect(self, *, read_only: bool) -> sa.Connection:
        """A new connection, used by the thread that opens it."""

    def begin(self, connection: sa.Connection, *, read_only: bool) -> None:
        """Begin a transaction: a read sees one moment, a write does not overlap with another unseen."""

    def locks(self) -> Locks:
        """Locks among the daemons that share the database, not opened yet."""

    def check_room(self) -> None:
        """Raise OutOfSpace where there may be no space to take a change back later."""

    def is_conflict(self, error: DBAPIError) -> bool:
        """Whether another transaction was in the way, and the same one may be run again."""

    def is_lost(self, error: DBAPIError) -> bool:
        """Whether the connection has broken, or could not be made."""

    def translated(self, error: DBAPIError) -> UtsuwaError | None:
        """The typed error for a failure below the database; None for all others."""

    def dump(self, *, schema_only: bool) -> str:
        """The database as SQL text. Raises InvalidRequest where the engine has its own program for it."""
