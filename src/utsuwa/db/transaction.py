"""The interface of transactions for entity modules.

A function with a `Transaction` runs in one of the database's threads and is retried after a conflict. So it
must not access anything but the transaction, and return only plain values. Entity modules use SQLAlchemy Core
in a form that both SQLite and PostgreSQL support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from utsuwa.db.schema import FIRST_MEMBER

Values = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Answer:
    """The result of a statement: all of its rows, and the number of changed rows (-1 if unknown).

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
        """Return the values of the first column."""
        return [row[0] for row in self._rows]

    def scalar_one_or_none(self) -> Any:
        """Return the value of the only row; None without a row. Raises ValueError if there are several."""
        if not self._rows:
            return None
        return self.scalar_one()

    def scalar_one(self) -> Any:
        """Return the value of the only row. Raises ValueError if there are none or several."""
        (row,) = self._rows
        return row[0]


class _Compiled:
    """A statement that is compiled once per dialect; all parameters are bound by name."""

    def __init__(self, statement: sa.ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, tuple[str, ...] | None, Mapping[str, Any]]] = {}

    @contextmanager
    def _cursor(self, connection: sa.Connection) -> Iterator[Any]:
        """Yield a cursor. Raises DBAPIError, as SQLAlchemy's own statements do."""
        cursor = connection.connection.cursor()
        driver = connection.dialect.loaded_dbapi
        try:
            yield cursor
        except driver.Error as error:
            raise DBAPIError.instance(None, None, error, driver.Error, hide_parameters=True) from error
        finally:
            cursor.close()

    def _bound(self, connection: sa.Connection, values: Iterable[Mapping[str, Any]]) -> tuple[str, list[Any]]:
        """Return the statement's text, and its parameters for each of the `values`."""
        text, names, constants = self._compiled.get(connection.dialect.name) or self._compile(connection)
        bound = [{**constants, **one} for one in values]
        return text, bound if names is None else [[one[name] for name in names] for one in bound]

    def _compile(self, connection: sa.Connection) -> tuple[str, tuple[str, ...] | None, Mapping[str, Any]]:
        compiled: Any = self._statement.compile(dialect=connection.dialect)
        names = tuple(compiled.positiontup or ()) if compiled.positional else None
        found = str(compiled), names, compiled.params
        self._compiled[connection.dialect.name] = found
        return found


class Prepared(_Compiled):
    """A query that is compiled once per dialect, for lists and the most frequent requests.

    SQLAlchemy takes longer to build a statement, look it up in its cache and convert the rows than SQLite
    takes to run it. All parameters are bound by name; rows are plain tuples, as returned by the driver.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        super().__init__(statement)

    def fetch(self, connection: sa.Connection, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Return all rows. Raises DBAPIError, as SQLAlchemy's own statements do."""
        text, (bound,) = self._bound(connection, [values])
        with self._cursor(connection) as cursor:
            cursor.execute(text, bound)
            return list(cursor.fetchall())


class PreparedChange(_Compiled):
    """An insert or delete of rows, prepared like a query. Parameters must not be named like columns."""

    def __init__(self, statement: sa.Insert | sa.Delete) -> None:
        super().__init__(statement)

    def run(self, connection: sa.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run it for each of the rows. Raises DBAPIError, as SQLAlchemy's own statements do."""
        text, bound = self._bound(connection, rows)
        with self._cursor(connection) as cursor:
            cursor.executemany(text, bound)


class _RowChange(_Compiled):
    """An insert or update of one row, whose values are converted as the types of the columns need it."""

    def __init__(
        self,
        table: sa.Table,
        columns: Sequence[str],
        statement: sa.ClauseElement,
    ) -> None:
        """Parameters of the statement are named as `_PARAMETER` says."""
        super().__init__(statement)
        self._types = {column: table.c[column].type for column in columns}
        self._converters: dict[str, dict[str, Callable[[Any], Any]]] = {}

    @contextmanager
    def run(self, connection: sa.Connection, values: Mapping[str, Any], **others: Any) -> Iterator[Any]:
        """Run it and yield the cursor. Raises DBAPIError, as SQLAlchemy's own statements do."""
        convert = self._converters.get(connection.dialect.name) or self._find_converters(connection)
        named = {
            _PARAMETER.format(column): convert[column](value) if column in convert else value
            for column, value in values.items()
        }
        text, (bound,) = self._bound(connection, [{**named, **others}])
        with self._cursor(connection) as cursor:
            cursor.execute(text, bound)
            yield cursor

    def _find_converters(self, connection: sa.Connection) -> dict[str, Callable[[Any], Any]]:
        dialect = connection.dialect
        found: dict[str, Callable[[Any], Any]] = {
            column: processor
            for column, kind in self._types.items()
            if (processor := kind.dialect_impl(dialect).bind_processor(dialect)) is not None
        }
        self._converters[dialect.name] = found
        return found


_PARAMETER = "new_{}"


def _parameters(table: sa.Table, columns: Sequence[str]) -> dict[str, Any]:
    names = {column: _PARAMETER.format(column) for column in columns}
    return {column: sa.bindparam(name, type_=table.c[column].type) for column, name in names.items()}


@cache
def _insertion(table: sa.Table, columns: tuple[str, ...]) -> _RowChange:
    statement = table.insert().values(_parameters(table, columns)).returning(table.c.id)
    return _RowChange(table, columns, statement)


@cache
def _update(table: sa.Table, columns: tuple[str, ...]) -> _RowChange:
    statement = table.update().where(_is_row(table)).values(_parameters(table, columns))
    return _RowChange(table, columns, statement)


@cache
def _deletion(table: sa.Table) -> PreparedChange:
    return PreparedChange(table.delete().where(_is_row(table)))


def _is_row(table: sa.Table) -> sa.ColumnElement[bool]:
    is_row: sa.ColumnElement[bool] = table.c.id == sa.bindparam("row_id", type_=sa.Integer)
    return is_row


class Transaction:
    """A transaction of a connection. Raises RuntimeError if it is used after its end."""

    def __init__(self, connection: sa.Connection, member: int = FIRST_MEMBER) -> None:
        self._connection: sa.Connection | None = connection
        self.member = member
        """The id of this daemon's member, which new rows belong to."""
        self.moment: int | None = None
        """When one that writes has begun, as `Database.moment` tells it; None for one that reads."""

    @property
    def connection(self) -> sa.Connection:
        if self._connection is None:
            raise RuntimeError("the transaction has ended")
        return self._connection

    def execute(self, statement: sa.Executable, values: Values | None = None) -> Answer:
        return Answer(self.connection.execute(statement, values))

    def execute_sql(self, statement: str) -> Answer:
        """Execute a statement in the database's SQL dialect."""
        return Answer(self.connection.exec_driver_sql(statement, execution_options={"no_parameters": True}))

    def fetch(self, query: Prepared, **values: Any) -> list[tuple[Any, ...]]:
        """Return all rows of a prepared query."""
        return query.fetch(self.connection, values)

    def run(self, change: PreparedChange, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run a prepared change for each of the rows."""
        change.run(self.connection, rows)

    def insert(self, table: sa.Table, values: Mapping[str, Any]) -> int:
        """Insert one row and return its id. Prepared, as is what follows."""
        with _insertion(table, tuple(values)).run(self.connection, values) as cursor:
            ((row_id,),) = cursor.fetchall()
        return int(row_id)

    def update(self, table: sa.Table, row_id: int, values: Mapping[str, Any]) -> bool:
        """Change some columns of the row with an id; return whether there is one."""
        with _update(table, tuple(values)).run(self.connection, values, row_id=row_id) as cursor:
            return bool(cursor.rowcount)

    def delete(self, table: sa.Table, row_id: int) -> None:
        """Delete the row with an id, if there is one."""
        self.run(_deletion(table), [{"row_id": row_id}])

    def end(self) -> None:
        """Reject all further use."""
        self._connection = None
