"""`utsuwad sql`: queries by root, for inspection and repairs.

All statements of a query run in one transaction, so only what can be rolled back is allowed.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError

from utsuwa.core.errors import InvalidRequest
from utsuwa.db.database import Database
from utsuwa.db.transaction import Answer, Transaction

MAX_QUERY = 1024 * 1024

_BLANK = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_FIRST_WORD = re.compile(rf"{_BLANK}([A-Za-z]+)", re.DOTALL)
_TRIGGER = re.compile(rf"{_BLANK}CREATE\s+(?:TEMP(?:ORARY)?\s+)?TRIGGER\b", re.DOTALL | re.IGNORECASE)
_LAST_END = re.compile(r";\s*END\s*;\Z", re.IGNORECASE)
_TOKEN = re.compile(
    r"""'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^]]*(?:\]|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|;""",
    re.DOTALL,
)
"""Tokens that may contain a semicolon, and the semicolon itself; unterminated quotes extend to the end."""
_TRANSACTIONS = frozenset(
    (
        *("BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "ATTACH", "DETACH", "VACUUM"),
        *("START", "ABORT", "PREPARE", "SET", "RESET", "DISCARD"),
    )
)
_SAFE_PRAGMA = re.compile(
    r"\s*PRAGMA\s+(?:[a-z_]+|foreign_keys\s*=\s*(?:on|true|1)|"
    r"(?:table_info|table_list|index_info|index_list|foreign_key_list|foreign_key_check|integrity_check)"
    r"\s*\([^)]*\))\s*;?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """The result of one statement: columns and rows, or the number of changed rows."""

    columns: tuple[str, ...] | None
    """None for a statement that returns no rows."""
    rows: tuple[tuple[Any, ...], ...] = ()
    affected: int = 0


def split(query: str) -> list[str]:
    """Split a query into statements, ignoring semicolons in strings, comments and triggers."""
    statements, start = [], 0
    for token in _TOKEN.finditer(query):
        end = token.end()
        if token[0] != ";":
            continue
        # The statements of a trigger end with semicolons, and the trigger itself with one after END.
        if _TRIGGER.match(query, start) and not _LAST_END.search(query, max(start, end - 64), end):
            continue
        statements.append(query[start:end])
        start = end
    statements.append(query[start:])
    return [text.strip() for text in statements if text.strip(" \t\r\n;")]


async def execute(database: Database, query: str) -> list[Outcome]:
    """Run all statements or none. Raises InvalidRequest with the database's message."""
    if len(query) > MAX_QUERY:
        raise InvalidRequest(f"The query is longer than {MAX_QUERY} bytes")
    statements = split(query)
    if not statements:
        raise InvalidRequest("The query is empty")
    for statement in statements:
        _refuse_control(statement)
    try:
        return await database.write("SQL by hand", _execute_all, statements)
    except DBAPIError as error:
        raise InvalidRequest(f"The query failed: {error.orig}") from error


def _refuse_control(statement: str) -> None:
    """Reject statements that would end the transaction, or change the state of the connection."""
    found = _FIRST_WORD.match(statement)
    word = found[1].upper() if found else ""
    if word in _TRANSACTIONS:
        raise InvalidRequest(f"{word} cannot be used here: the query runs as one transaction")
    if word == "PRAGMA" and not _SAFE_PRAGMA.fullmatch(statement):
        raise InvalidRequest("This PRAGMA would change the daemon's own connection: it cannot be used here")


def _execute_all(tx: Transaction, statements: list[str]) -> list[Outcome]:
    return [_outcome(tx.execute_sql(statement)) for statement in statements]


def _outcome(answer: Answer) -> Outcome:
    if answer.columns is not None:
        return Outcome(answer.columns, tuple(tuple(row) for row in answer))
    return Outcome(None, affected=max(answer.rowcount, 0))


async def dump(database: Database, *, schema_only: bool) -> str:
    """Return the database as SQL text, with or without its rows."""
    return await asyncio.to_thread(database.engine.dump, schema_only=schema_only)
