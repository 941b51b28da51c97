"""The filters of templates, with Pongo2's names and semantics."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import jinja2

from utsuwa.core.errors import InvalidImage
from utsuwa.instances.templates.plain import MAX_OUTPUT


def bounded(text: str) -> str:
    """Return a string of a template, which may be as long as its output."""
    if len(text) > MAX_OUTPUT:
        raise InvalidImage("a string in it becomes too long")
    return text


def _number(value: Any) -> int:
    try:
        return int(str(value)[:40])
    except ValueError:
        return 0


def _add(value: Any, other: Any) -> Any:
    if isinstance(value, int) and isinstance(other, int):
        return value + other
    return bounded(f"{value}{other}")


def _default(value: Any, other: Any) -> Any:
    return value or other


def _default_if_none(value: Any, other: Any) -> Any:
    return other if value is None or isinstance(value, jinja2.Undefined) else value


def _join(value: Any, separator: Any) -> str:
    return bounded(str(separator).join(str(item) for item in value))


def _truncate(value: Any, length: Any) -> str:
    text, limit = str(value), max(0, _number(length))
    return text if len(text) <= limit else f"{text[: max(0, limit - 3)]}..."[:limit]


def _yesno(value: Any, choices: Any = "yes,no,maybe") -> str:
    words = str(choices).split(",")
    if value is None and len(words) > 2:
        return words[2]
    return words[0] if value else words[1] if len(words) > 1 else ""


def _first(value: Any) -> Any:
    return value[0] if value else ""


def _last(value: Any) -> Any:
    return value[-1] if value else ""


FILTERS: Mapping[str, Callable[..., Any]] = {
    "add": _add,
    "addslashes": lambda value: bounded(re.sub(r"([\\'\"])", r"\\\1", str(value))),
    "capfirst": lambda value: str(value)[:1].upper() + str(value)[1:],
    "cut": lambda value, part: str(value).replace(str(part), "") if str(part) else str(value),
    "default": _default,
    "default_if_none": _default_if_none,
    "first": _first,
    "integer": _number,
    "join": _join,
    "last": _last,
    "length": len,
    "lower": lambda value: str(value).lower(),
    "safe": lambda value: value,
    "split": lambda value, separator: str(value).split(str(separator) or None),
    "title": lambda value: str(value).title(),
    "truncatechars": _truncate,
    "upper": lambda value: str(value).upper(),
    "urlencode": lambda value: bounded(quote(str(value), safe="")),
    "wordcount": lambda value: len(str(value).split()),
    "yesno": _yesno,
}
