"""Parsing of the plain YAML that the `lxc` client writes: nested mappings with simple values.

Importing PyYAML takes longer than everything else that most commands do. Anything that is not certain to mean
the same to PyYAML is left to it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
# A plain word in any of their spellings may be a boolean or null.
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "y", "n", "null"))
_SWITCHES = {"true": True, "false": False}
_LINE_LIMIT = 500
"""A key of YAML ends within 1024 characters."""


class NotPlain(ValueError):
    """The text has more than this module understands; it may still be valid YAML."""


def loads(text: str) -> dict[str, Any]:
    """Parse a mapping. Raises NotPlain."""
    found: dict[str, Any] = {}
    # The open mappings with their indentation, and the key that the next, deeper line may give a mapping.
    levels: list[tuple[int, dict[str, Any]]] = [(0, found)]
    awaiting: str | None = None
    for line in text.split("\n"):
        content = line.lstrip(" ")
        if not content:
            continue
        if len(line) > _LINE_LIMIT or not line.isascii() or not line.isprintable():
            raise NotPlain
        indent = len(line) - len(content)
        if awaiting is not None and indent > levels[-1][0]:
            inner: dict[str, Any] = {}
            levels[-1][1][awaiting] = inner
            levels.append((indent, inner))
        while indent < levels[-1][0]:
            levels.pop()
        if indent != levels[-1][0]:
            raise NotPlain
        key, awaiting = _enter(levels[-1][1], content.rstrip(" ")), None
        if levels[-1][1][key] is None:
            awaiting = key
    return found


def _enter(mapping: dict[str, Any], content: str) -> str:
    """Add the key and the value of a line, None for a key without a value; return the key."""
    key, colon, value = content.partition(": ")
    if not colon and content.endswith(":"):
        key = content[:-1]
    elif not colon:
        raise NotPlain
    key = key.rstrip(" ")
    if not _is_text(key) or key.endswith(":"):
        raise NotPlain
    mapping[key] = _value(value.lstrip(" "))
    return key


def _value(text: str) -> Any:
    if not text:
        return None
    if text in _SWITCHES:
        return _SWITCHES[text]
    if text == "{}":
        return {}
    quote = text[0]
    if quote in "\"'" and len(text) > 1 and text[-1] == quote:
        inner = text[1:-1]
        if quote in inner or "\\" in inner:
            raise NotPlain
        return inner
    if not _is_text(text) or ": " in text or text.endswith(":"):
        raise NotPlain
    return text


def _is_text(text: str) -> bool:
    """Whether an unquoted scalar is certain to be a string: numbers and dates start with no letter."""
    return text[:1] in _LETTERS and " #" not in text and text.lower() not in _WORDS
