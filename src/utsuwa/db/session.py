"""A connection with a thread of its own, in which whole transactions run one after the other."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from utsuwa.core.errors import Unavailable
from utsuwa.db.engine import Engine
from utsuwa.db.schema import FIRST_MEMBER
from utsuwa.db.transaction import Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Transaction], T]

_CONFLICTS = 20
"""How many times a transaction is run again because of others. Each waits longer than the one before."""
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.2


class Session:
    """Opened with its first transaction, and again after the connection has been lost."""

    def __init__(self, engine: Engine, *, read_only: bool) -> None:
        self._engine = engine
        self._read_only = read_only
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._connection: sa.Connection | None = None
        self.member = FIRST_MEMBER
        """Whose transactions these are."""

    def run(self, work: Work[T]) -> asyncio.Future[T]:
        """Run a transaction: stored when the future has its result, undone where `work` raised.

        A reader's is always undone. Raises Unavailable where the database cannot be reached, and the
        engine's typed errors.
        """
        return asyncio.wrap_future(self._thread.submit(self._run, work))

    def close(self) -> Future[None]:
        """Take no more transactions, and close the connection when those before are done."""
        closed = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        return closed

    # ---- in the thread

    def _run(self, work: Work[T]) -> T:
        conflicts = 0
        reconnected = False
        while True:
            fresh = self._connection is None
            try:
                return self._once(work)
            except DBAPIError as error:
                if self._engine.is_conflict(error):
                    conflicts += 1
                    if conflicts > _CONFLICTS:
                        raise Unavailable(
                            "The change failed, for other transactions were in the way"
                        ) from error
                    time.sleep(_pause(conflicts))
                    continue
                # One that was idle may have been lost long ago; a new one tells how things are now.
                lost = self._engine.is_lost(error)
                if lost:
                    self._drop()
                if lost and not fresh and not reconnected:
                    reconnected = True
                else:
                    if (better := self._engine.translated(error)) is not None:
                        raise better from error
                    raise

    def _once(self, work: Work[T]) -> T:
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
            self._commit(self._connection)
        return result

    def _commit(self, connection: sa.Connection) -> None:
        try:
            connection.commit()
        except DBAPIError as error:
            self._roll_back()
            if self._engine.is_lost(error):
                # It must not be run again: it may have been stored.
                self._drop()
                raise Unavailable(
                    f"The connection to {self._engine.name} broke while a change was being stored: "
                    "look whether it was before you repeat it"
                ) from error
            raise

    def _roll_back(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.rollback()
        except SQLAlchemyError as error:
            # What could not be undone must not become part of the next transaction.
            log.warning("a connection to %s is opened anew: %s", self._engine.name, error)
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
