"""Records of `/internal/sql`."""

from __future__ import annotations

import msgspec


class SqlQuery(msgspec.Struct, kw_only=True):
    """`database` is `global` or `local`, which are the same database."""

    database: str = "global"
    query: str = ""


class SqlResult(msgspec.Struct, kw_only=True):
    """The rows of one statement (`select`), or the number of rows it changed (`exec`)."""

    type: str
    columns: list[str] = []
    rows: list[list[str | int | float | None]] = []
    rows_affected: int = 0


class SqlBatch(msgspec.Struct, kw_only=True):
    """The results of the statements, in order."""

    results: list[SqlResult]


class SqlDump(msgspec.Struct, kw_only=True):
    """A database dump as SQL."""

    text: str
