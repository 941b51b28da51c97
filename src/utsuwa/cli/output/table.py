"""Formatting of rows as a table, a compact table, or CSV, as in the `lxc` client."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format with borders between columns and rows; cells may have several lines."""
    cells, widths = _measure(header, rows)
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+\n"
    parts = [rule, _line("| ", " | ", " |", map(_centred, header, widths)), rule]
    for row in cells:
        parts += [_line("| ", " | ", " |", map(_padded, line, widths)) for line in row]
        parts.append(rule)
    return "".join(parts)


def compact(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format with spaces between columns."""
    cells, widths = _measure(header, rows)
    parts = [_line("  ", "  ", "  ", map(_centred, header, widths))]
    for row in cells:
        parts += [_line("  ", "  ", "  ", map(_padded, line, widths)) for line in row]
    return "".join(parts)


def csv(rows: Sequence[Sequence[str]]) -> str:
    """Format without a header, with quotes only where needed."""
    return "".join(",".join(map(_field, row)) + "\n" for row in rows)


def _field(text: str) -> str:
    if text == "":
        return text
    if any(c in text for c in ',"\r\n') or text[0] in " \t" or text == "\\.":
        return '"' + text.replace('"', '""') + '"'
    return text


def _measure(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[list[tuple[str, ...]]], list[int]]:
    """Return the lines of each row, and the widths of the columns."""
    widths = [width(name) for name in header]
    found = []
    for row in rows:
        split = [cell.split("\n") for cell in row]
        height = max(map(len, split), default=1)
        lines = [tuple(cell[i] if i < len(cell) else "" for cell in split) for i in range(height)]
        for line in lines:
            widths = [max(had, width(cell)) for had, cell in zip(widths, line, strict=True)]
        found.append(lines)
    return found, widths


def _line(start: str, between: str, end: str, cells: Iterable[str]) -> str:
    return start + between.join(cells) + end + "\n"


def _padded(text: str, size: int) -> str:
    return text + " " * (size - width(text))


def _centred(text: str, size: int) -> str:
    left = (size - width(text)) // 2
    return " " * left + text + " " * (size - width(text) - left)


def width(text: str) -> int:
    """Return the width of a line in terminal columns."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)
