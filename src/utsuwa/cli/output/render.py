"""Output in the requested format."""

from __future__ import annotations

from utsuwa.cli.output import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

    Column = tuple[str, Callable[[dict[str, Any]], str]]

# Go's encoder, which the `lxc` client uses, escapes these in strings.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def show_list(
    session: Session,
    style: str,
    columns: Sequence[Column],
    records: Sequence[dict[str, Any]],
    kind: str,
    *,
    order: Callable[[Sequence[str]], Any] | None = None,
) -> None:
    """Print records as a table of `columns` (header, cell) sorted by `order`, or as complete records.

    `kind` is one of `utsuwa.cli.output.records`; by default rows are sorted naturally by their cells, with
    `unsorted` they are not sorted.
    """
    if style in ("json", "yaml"):
        write_data(session, style, records, kind)
        return
    rows = [[cell(record) for _name, cell in columns] for record in records]
    if order is not unsorted:
        rows.sort(key=order or naturally)
    header = [name for name, _cell in columns]
    if style == "csv":
        session.write(table.csv(rows))
    elif style == "compact":
        session.write(table.compact(header, rows))
    else:
        session.write(table.table(header, rows))


def list_query(flags: Flags, columns: Sequence[Column]) -> tuple[dict[str, str], Sequence[Column]]:
    """Return the query of a list, and its columns, with that of the project for `--all-projects`."""
    if not flags.on("all-projects"):
        return {"recursion": "1"}, columns
    return {"recursion": "1", "all_projects": "true"}, [("PROJECT", lambda r: r["project"]), *columns]


def write_data(session: Session, style: str, value: Any, kind: str) -> None:
    """Print a record or a list of records as JSON or YAML."""
    from utsuwa.cli.output import records

    if style == "json":
        session.write(to_json(records.arrange(value, kind, nulls=True)) + "\n")
    else:
        from utsuwa.cli.output import yaml_out

        session.write(yaml_out.dump(records.arrange(value, kind)))


def show_yaml(session: Session, value: Any, kind: str) -> None:
    """Print a record as YAML, as `show` does."""
    write_data(session, "yaml", value, kind)


def to_json(value: Any) -> str:
    import json

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def by_columns(row: Sequence[str]) -> list[tuple[bool, str]]:
    """Sort key of rows by their cells from left to right; empty cells are last."""
    return [(not cell, cell) for cell in row]


def unsorted(_row: Sequence[str]) -> int:
    """Sort key that keeps the order of rows."""
    return 0


def naturally(row: Sequence[str]) -> list[tuple[bool, list[tuple[bool, int, str]]]]:
    """As `by_columns`, but comparing numbers in names by value: c2 before c10."""
    return [(not cell, natural(cell)) for cell in row]


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Sort key that treats sequences of digits as numbers, which precede other characters."""
    parts: list[tuple[bool, int, str]] = []
    digits = ""
    for character in text:
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((False, int(digits), digits))
            digits = ""
        parts.append((True, 0, character))
    if digits:
        parts.append((False, int(digits), digits))
    return parts
