"""The interface of transactions for entity modules: statements in, plain values out.

A function that takes a `Transaction` runs as a whole in one of the database's threads, and may be run
again after a conflict. So it touches nothing but the transaction, and returns nothing that belongs to it.
The entity modules use SQLAlchemy Core in a form that both SQLite and PostgreSQL run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from utsuwa.db.schema import FIRST_MEMBER

Values = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Answer:
    """The result of a statement: all of its rows, and how many it changed (-1 where that is not known).

    `columns` is None for a statement that returns no rows.
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


class Prepared:
    """A query that is compiled once per dialect, for what lists and every client's command read.

    SQLAlchemy takes longer to build a statement, find it in its cache and make rows of the result than
    SQLite takes to answer. All values are bound by name; rows are plain tuples, as the driver returns them.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, tuple[str, ...] | None, Mapping[str, Any]]] = {}

    def fetch(self, connection: sa.Connection, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """All rows. Raises DBAPIError, as SQLAlchemy's own statements do."""
        text, names, constants = self._compiled.get(connection.dialect.name) or self._compile(connection)
        bound: Any = {**constants, **values}
        cursor = connection.connection.cursor()
        driver = connection.dialect.loaded_dbapi
        try:
            cursor.execute(text, bound if names is None else [bound[name] for name in names])
            return list(cursor.fetchall())
        except driver.Error as error:
            raise DBAPIError.instance(text, None, error, driver.Error, hide_parameters=True) from error
        finally:
            cursor.close()

    def _compile(self, connection: sa.Connection) -> tuple[str, tuple[str, ...] | None, Mapping[str, Any]]:
        compiled: Any = self._statement.compile(dialect=connection.dialect)
        names = tuple(compiled.positiontup or ()) if compiled.positional else None
        found = str(compiled), names, compiled.params
        self._compiled[connection.dialect.name] = found
        return found


class Transaction:
    """One transaction of one connection. Used after its end it raises RuntimeError."""

    def __init__(self, connection: sa.Connection, member: int = FIRST_MEMBER) -> None:
        self._connection: sa.Connection | None = connection
        self.member = member
        """The id of the member whose daemon this is: what is new lives on it."""

    @property
    def connection(self) -> sa.Connection:
        if self._connection is None:
            raise RuntimeError("the transaction has ended")
        return self._connection

    def execute(self, statement: sa.Executable, values: Values | None = None) -> Answer:
        return Answer(self.connection.execute(statement, values))

    def execute_sql(self, statement: str) -> Answer:
        """A statement in the database's own SQL."""
        return Answer(self.connection.exec_driver_sql(statement, execution_options={"no_parameters": True}))

    def fetch(self, query: Prepared, **values: Any) -> list[tuple[Any, ...]]:
        """All rows of a prepared query."""
        return query.fetch(self.connection, values)

    def insert(self, table: sa.Table, values: Mapping[str, Any]) -> int:
        """Insert one row and return its id."""
        key = self.connection.execute(table.insert().values(**values)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def end(self) -> None:
        """Refuse all further work."""
        self._connection = None
