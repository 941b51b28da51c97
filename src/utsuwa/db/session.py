"""A connection with a dedicated thread, in which transactions run one after the other."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from utsuwa.core.errors import Unavailable
from utsuwa.core.tasks import Held
from utsuwa.core.threads import Workers
from utsuwa.db.durability import Durability
from utsuwa.db.engine import Engine
from utsuwa.db.schema import FIRST_MEMBER
from utsuwa.db.transaction import Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Transaction], T]

_CONFLICTS = 20
"""How often a transaction is retried after conflicts, with increasing delays."""
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.2


class Session:
    """Connects with its first transaction, and reconnects after the connection was lost."""

    def __init__(self, engine: Engine, durability: Durability | None = None) -> None:
        """A session without `durability` is for reading."""
        self._engine = engine
        self._durability = durability
        self._read_only = durability is None
        self._thread = Workers(1, "database")
        self._connection: sa.Connection | None = None
        self.member = FIRST_MEMBER
        """The id of the member on whose behalf transactions run."""
        self.on_disk: Future[None] | None = None
        """Done when the last transaction that was committed is on disk; None if nothing syncs it."""

    def run(self, work: Work[T], *, sync: bool = True) -> Held[T]:
        """Run a transaction: committed when the future has its result, rolled back if `work` raised.

        That of a reader is always rolled back. Without `sync`, it comes to the disk with the next one that is
        synced. Raises Unavailable if the database cannot be reached, and the engine's typed errors.
        """
        return self._thread.run(partial(self._run, work, sync))

    def close(self) -> Held[None]:
        """Reject further transactions, and close the connection after the queued ones."""
        closed = self._thread.run(self._close)
        self._thread.close()
        return closed

    # ---- in the thread

    def _run(self, work: Work[T], sync: bool) -> T:
        conflicts = 0
        reconnected = False
        while True:
            fresh = self._connection is None
            try:
                return self._once(work, sync)
            except DBAPIError as error:
                if self._engine.is_conflict(error):
                    conflicts += 1
                    if conflicts > _CONFLICTS:
                        raise Unavailable(
                            "The change failed because of conflicts with other transactions: try again"
                        ) from error
                    time.sleep(_pause(conflicts))
                    continue
                # An idle connection may have been lost long ago; try a new one before failing.
                lost = self._engine.is_lost(error)
                if lost:
                    self._drop()
                if lost and not fresh and not reconnected:
                    reconnected = True
                else:
                    if (better := self._engine.translated(error)) is not None:
                        raise better from error
                    raise

    def _once(self, work: Work[T], sync: bool) -> T:
        if self._connection is None:
            self._connection = self._engine.connect(read_only=self._read_only)
        transaction = Transaction(self._connection, self.member)
        try:
            self._engine.begin(self._connection, read_only=self._read_only)
            result = work(transaction)
        except BaseException:
            self._roll_back()
            raise
        finally:
            transaction.end()
        if self._read_only:
            self._roll_back()
        else:
            self._commit(self._connection, sync)
        return result

    def _commit(self, connection: sa.Connection, sync: bool) -> None:
        try:
            connection.commit()
        except DBAPIError as error:
            self._roll_back()
            if self._engine.is_lost(error):
                # It must not be retried: it may have been committed.
                self._drop()
                raise Unavailable(
                    f"The connection to {self._engine.name} was lost during a commit: "
                    "check whether the change was stored before repeating it"
                ) from error
            raise
        self.on_disk = None
        if self._durability is not None and sync:
            self.on_disk = self._durability.request()
        elif self._durability is not None:
            self._durability.note()

    def _roll_back(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.rollback()
        except SQLAlchemyError as error:
            # Without a rollback, the changes would become part of the next transaction.
            log.warning("reconnecting to %s: %s", self._engine.name, error)
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _pause(conflicts: int) -> float:
    longest: float = min(_FIRST_PAUSE * 2**conflicts, _LONGEST_PAUSE)
    return random.uniform(0, longest)
