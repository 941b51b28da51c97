"""A connection with a thread of its own: what is asked of it is done there in order, and awaited.

A step of any size costs one change of threads: one statement, or a function that makes many. What the
entity modules do with it is SQLAlchemy Core that PostgreSQL runs as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger(__name__)

T = TypeVar("T")

Values = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Answer:
    """What a statement gave: all of its rows, and how many it changed (-1 where that is not known).

    `columns` is None for a statement that gives no rows.
    """

    def __init__(self, result: sa.CursorResult[Any]) -> None:
        self._rows: Sequence[Any] = result.all() if result.returns_rows else ()
        self.rowcount: int = result.rowcount
        self.columns: tuple[str, ...] | None = tuple(result.keys()) if result.returns_rows else None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def all(self) -> list[Any]:
        return list(self._rows)

    def scalars(self) -> list[Any]:
        """The first column."""
        return [row[0] for row in self._rows]

    def scalar_one_or_none(self) -> Any:
        """The one value of the one row; None without a row. ValueError where there are more."""
        if not self._rows:
            return None
        return self.scalar_one()

    def scalar_one(self) -> Any:
        """The one value of the one row; ValueError where there are more or none."""
        (row,) = self._rows
        return row[0]


class Session:
    """One connection of the driver, from the daemon's start to its end, and the thread that uses it.

    A transaction begins with the first step after the end of the one before.
    """

    def __init__(self, connect: Callable[[], sa.Connection], begin: str) -> None:
        self._connect = connect
        self._begin = begin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._connection: sa.Connection | None = None

    def step(self, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Do a step in the transaction. One that is cancelled has been done or has not, as a whole."""
        return asyncio.wrap_future(self._thread.submit(self._step, work))

    def transact(self, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """A whole transaction as one step: committed, or undone where `work` raises."""
        return asyncio.wrap_future(self._thread.submit(self._transact, work))

    def commit(self) -> asyncio.Future[None]:
        return asyncio.wrap_future(self._thread.submit(self._commit))

    def roll_back(self) -> None:
        """Undo what was not committed, before the steps that come after; nobody waits for it."""
        with suppress(RuntimeError):  # closed: nothing is committed any more
            self._thread.submit(self._roll_back)

    def close(self) -> Future[None]:
        """Take no more steps, and close the connection when those before are done."""
        closed = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        return closed

    # ---- in the thread

    def _step(self, work: Callable[[sa.Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._connect()
        if not self._connection.in_transaction():
            self._connection.exec_driver_sql(self._begin)
        return work(self._connection)

    def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            result = self._step(work)
            self._commit()
        except BaseException:
            self._roll_back()
            raise
        return result

    def _commit(self) -> None:
        if self._connection is not None:
            self._connection.commit()

    def _roll_back(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.rollback()
        except SQLAlchemyError as error:
            # What could not be undone must not become part of the next transaction.
            log.warning("a connection of the database is opened anew: %s", error)
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Connection:
    """A transaction, as the entity modules see it."""

    def __init__(self, session: Session) -> None:
        self._session: Session | None = session

    async def execute(self, statement: sa.Executable, values: Values | None = None) -> Answer:
        return await self.run(partial(_execute, statement, values))

    async def exec_driver_sql(self, statement: str, values: tuple[Any, ...] | None = None) -> Answer:
        """A statement in the database's own SQL."""
        return await self.run(lambda connection: Answer(connection.exec_driver_sql(statement, values)))

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Have a function work with the connection in its thread; it gives nothing that belongs to it."""
        if self._session is None:
            raise RuntimeError("the transaction has ended")
        return await self._session.step(work)

    def end(self) -> None:
        """Refuse all further work."""
        self._session = None


class _InThread(Connection):
    """What entity modules get in the connection's own thread: whatever they await of it is there at once."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        return work(self._connection)


def in_thread(work: Callable[[Connection], Coroutine[Any, Any, T]], connection: sa.Connection) -> T:
    """Run entity functions in the connection's thread; RuntimeError where `work` awaits anything else."""
    steps = work(_InThread(connection))
    try:
        steps.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    steps.close()
    raise RuntimeError("a transaction in one step awaits something else than its statements")


def _execute(statement: sa.Executable, values: Values | None, connection: sa.Connection) -> Answer:
    return Answer(connection.execute(statement, values))


class Prepared:
    """A query that is compiled once a dialect, for what lists and every client's command read.

    SQLAlchemy takes longer to build a statement, find it in its cache and make rows of the result than
    SQLite takes to answer. All values are bound by name; the rows are plain tuples, as the driver gives them.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, tuple[str, ...], Mapping[str, Any]]] = {}

    def fetch(self, connection: sa.Connection, **values: Any) -> list[tuple[Any, ...]]:
        """All rows; called in the connection's thread."""
        text, names, constants = self._compiled.get(connection.dialect.name) or self._compile(connection)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(text, tuple(values[n] if n in values else constants[n] for n in names))
            return list(cursor.fetchall())
        finally:
            cursor.close()

    def _compile(self, connection: sa.Connection) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
        compiled: Any = self._statement.compile(dialect=connection.dialect)
        found = str(compiled), tuple(compiled.positiontup or ()), compiled.params
        self._compiled[connection.dialect.name] = found
        return found
