"""The language of `?filter=`: clauses such as `name eq web and config.image.os ne debian`.

A clause is `[not] FIELD eq|ne VALUE`; clauses are joined by `and` and `or` and evaluated from left to right,
without precedence, as in LXD. A value with spaces is put in double quotes. For strings, the value is a
regular expression that must match in full, ignoring case; numbers and booleans are compared as written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from utsuwa.core.errors import InvalidRequest

# Not imported by name: type checkers disagree about modules that are not public.
sre: Any = import_module("re._constants")
sre_parser: Any = import_module("re._parser")

_LIMIT = 1000
_TOKEN = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_REPEATS = frozenset((sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT))


@dataclass(frozen=True)
class Clause:
    """One comparison, and whether it is joined to the preceding clauses by `or` (`either`) or `and`."""

    field: str
    value: str
    equal: bool
    either: bool

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        try:
            return re.compile(self.value, re.IGNORECASE)
        except re.error:
            return None

    def holds(self, record: Mapping[str, Any]) -> bool:
        return self._meets(_find(record, self.field)) == self.equal

    def _meets(self, value: object) -> bool:
        if not isinstance(value, str):
            return _as_written(value) == self.value
        if self._pattern is None:
            return value.casefold() == self.value.casefold()
        anchored = "^" in self.value or "$" in self.value
        return bool(self._pattern.search(value) if anchored else self._pattern.fullmatch(value))


@dataclass(frozen=True)
class Filter:
    """A parsed filter."""

    clauses: tuple[Clause, ...]

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record of plain values, in its JSON form, matches the filter."""
        result = True
        for clause in self.clauses:
            held = clause.holds(record)
            result = result or held if clause.either else result and held
        return result


def parse(text: str) -> Filter:
    """Parse a filter. Raises InvalidRequest if it is invalid or its regular expression could be very slow."""
    if len(text) > _LIMIT:
        raise InvalidRequest(f"The filter is longer than {_LIMIT} characters")
    tokens = _tokens(text)
    clauses: list[Clause] = []
    either = False
    while tokens:
        negated = tokens[0].lower() == "not"
        if negated:
            tokens.pop(0)
        if len(tokens) < 3:
            raise InvalidRequest(f"Incomplete filter {text[:80]!r}: use FIELD eq VALUE or FIELD ne VALUE")
        field, operator, value = tokens[:3]
        del tokens[:3]
        if operator.lower() not in ("eq", "ne"):
            raise InvalidRequest(f"Unknown operator {operator[:40]!r} in the filter: use eq or ne")
        _refuse_slow(value)
        clauses.append(Clause(field, value, (operator.lower() == "eq") != negated, either))
        if tokens:
            either = _joins(tokens.pop(0))
            if not tokens:
                raise InvalidRequest(f"Incomplete filter {text[:80]!r}: a clause is missing at the end")
    if not clauses:
        raise InvalidRequest("The filter is empty")
    return Filter(tuple(clauses))


def _joins(word: str) -> bool:
    if word.lower() not in ("and", "or"):
        raise InvalidRequest(f"Unexpected {word[:40]!r} in the filter: join clauses with 'and' or 'or'")
    return word.lower() == "or"


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise InvalidRequest(f"Invalid filter {text[:80]!r}")
        quoted, plain = match.groups()
        found.append(plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        at = match.end()
    return found


def _find(record: Mapping[str, Any], field: str) -> Any:
    """Return the value at a dotted path, or None; the dots within config keys are not path separators."""
    if field in record:
        return record[field]
    for at, character in enumerate(field):
        if character == "." and isinstance(below := record.get(field[:at]), Mapping):
            found = _find(below, field[at + 1 :])
            if found is not None:
                return found
    return None


def _as_written(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)


def _refuse_slow(value: str) -> None:
    """Reject nested quantifiers and backreferences, which can take exponential time."""
    try:
        tree = sre_parser.parse(value)
    except (re.error, OverflowError, RecursionError):
        return
    if _nested_repeat(tree, inside=False):
        raise InvalidRequest(
            f"The filter's expression {value[:60]!r} has nested quantifiers or a backreference: simplify it"
        )


def _nested_repeat(node: Any, *, inside: bool) -> bool:
    if isinstance(node, sre_parser.SubPattern):
        return any(_nested_repeat(item, inside=inside) for item in node)
    if isinstance(node, tuple):
        repeats = bool(node) and node[0] in _REPEATS
        if (repeats and inside) or (node and node[0] is sre.GROUPREF):
            return True
        return any(_nested_repeat(item, inside=inside or repeats) for item in node)
    if isinstance(node, list):
        return any(_nested_repeat(item, inside=inside) for item in node)
    return False
