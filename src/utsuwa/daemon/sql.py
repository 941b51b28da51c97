"""`utsuwad sql`: run a query on the running daemon's database and print the result as a table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from utsuwa.core.errors import InvalidRequest
from utsuwa.daemon.local_api import LocalApi

_TEXTS = {".dump": "0", ".schema": "1"}


def run(socket: Path, database: str, query: str) -> int:
    """Run a query (`-`: from standard input; `.dump` and `.schema` print SQL) and print the result."""
    api = LocalApi(socket)
    if query == "-":
        query = sys.stdin.read()
    if query in _TEXTS:
        url = f"/internal/sql?{urlencode({'database': database, 'schema': _TEXTS[query]})}"
        sys.stdout.write(api.get(url)["text"])
        return 0
    if not query.strip():
        raise InvalidRequest("The query is empty")
    reply = api.request("POST", "/internal/sql", {"database": database, "query": query})
    sys.stdout.write(shown(reply.metadata["results"]))
    return 0


def shown(results: Sequence[Mapping[str, Any]]) -> str:
    """Format the results as LXD does: numbered if there are several."""
    if len(results) == 1:
        return _one(results[0])
    return "".join(f"=> Query {number}:\n\n{_one(result)}\n" for number, result in enumerate(results))


def _one(result: Mapping[str, Any]) -> str:
    if result["type"] == "exec":
        return f"Rows affected: {result['rows_affected']}\n"
    cells = [["<nil>" if cell is None else str(cell) for cell in row] for row in result["rows"]]
    return table(result["columns"], cells)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a grid with centred headings, every column as wide as its widest cell."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    rule = "+" + "".join(f"{'-' * (width + 2)}+" for width in widths)
    heading = "|" + "".join(f" {_centred(c, w)} |" for c, w in zip(columns, widths, strict=True))
    body = [
        "|" + "".join(f" {cell:<{width}} |" for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    return "\n".join([rule, heading, rule, *body, rule]) + "\n"


def _centred(text: str, width: int) -> str:
    """Centre, with an odd space on the right."""
    left = (width - len(text)) // 2
    return " " * left + text + " " * (width - len(text) - left)
