"""Records of `/internal/sql`."""

from __future__ import annotations

import msgspec


class SqlQuery(msgspec.Struct, kw_only=True):
    """`database` is `global` or `local`, which are one here."""

    database: str = "global"
    query: str = ""


class SqlResult(msgspec.Struct, kw_only=True):
    """One statement's rows (`select`), or how many it changed (`exec`)."""

    type: str
    columns: list[str] = []
    rows: list[list[str | int | float | None]] = []
    rows_affected: int = 0


class SqlBatch(msgspec.Struct, kw_only=True):
    """A result for each statement, in order."""

    results: list[SqlResult]


class SqlDump(msgspec.Struct, kw_only=True):
    """A database as SQL."""

    text: str
