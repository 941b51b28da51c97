"""The table of messages in docs/errors.md, with which tests compare what a user reads."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
_ROW = re.compile(r"(?m)^\| (?P<cause>[^|`]+) \| `` (?P<message>.+) `` \|$")
_PLACEHOLDER = re.compile(r"<([a-z ]+)>")


def documented() -> dict[str, str]:
    """Return the messages of all rows by cause; `<word>` in a message stands for a value."""
    found: dict[str, str] = {}
    for match in _ROW.finditer(PAGE.read_text(encoding="utf-8")):
        cause = match["cause"].strip()
        assert cause not in found, f"two rows of {PAGE.name} are about {cause!r}"
        found[cause] = match["message"]
    return found


def message(cause: str, values: dict[str, str]) -> str:
    """Return the complete message of a row. Raises KeyError for an unknown row or a missing value."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], documented()[cause])
