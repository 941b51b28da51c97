"""Decoding of untrusted JSON into records and encoding, with limits that are checked before decoding.

A `null` field of a record counts as absent, and a `null` in a map of strings as the empty string
(so `{"config": {"user.x": null}}` removes a key), as LXD's clients expect. Unknown fields are ignored.
Errors about types name the field.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class InvalidBody(ValueError):
    """The body is not valid JSON, nested too deeply, or does not match the record."""


MAX_DEPTH = 64
"""Maximum depth of nested objects and arrays; no request of the API needs more than a few levels."""

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_OPENING = b"[{"

_encoder = msgspec.json.Encoder()
_sorted_encoder = msgspec.json.Encoder(order="deterministic")


def encode(value: Any) -> bytes:
    """Encode records and plain values as compact JSON."""
    return _encoder.encode(value)


def encode_stable(value: Any) -> bytes:
    """Encode as JSON that is identical for equal values, regardless of the order of their keys."""
    return _sorted_encoder.encode(value)


def decode_json(data: bytes) -> Any:
    """Decode any JSON value. Raises InvalidBody if it is invalid or nested too deeply."""
    check_depth(data)
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidBody(f"The request body is not valid JSON: {error}") from error


def decode_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object into plain values."""
    value = decode_json(data)
    if not isinstance(value, dict):
        raise InvalidBody("The request body must be a JSON object")
    return value


def decode(data: bytes, record: type[T]) -> T:
    """Decode a JSON object into a record (a msgspec Struct)."""
    return convert(decode_object(data), record)


def convert(value: dict[str, Any], record: type[T]) -> T:
    """Convert a decoded object to a record. Raises InvalidBody, naming the first field of a wrong type."""
    clean = _without_nulls(value, record)
    try:
        return msgspec.convert(clean, record)
    except msgspec.ValidationError as error:
        path, reason = explain(error, clean, record)
        raise InvalidBody(
            f"Invalid value for {path or 'the body'!r}: {reason}"
            if path is not None
            else f"Invalid request: {reason}"
        ) from error


def explain(error: msgspec.ValidationError, value: Any, record: Any) -> tuple[str | None, str]:
    """Return the place where `value` does not match `record` (None if msgspec names none), and the reason.

    msgspec itself omits the keys of maps, which the reader needs to find the error.
    """
    reason, found, path = str(error).partition(" - at `$")
    if not found:
        return None, reason
    place, culprit = _place(path.rstrip("`"), value, record)
    if reason.startswith("Expected `str`") and isinstance(culprit, bool | int | float):
        reason += f', write it in quotes: "{msgspec.json.encode(culprit).decode()}"'
    return place.lstrip("."), reason


_STEP = re.compile(r"\.([^.\[]+)|\[([0-9]+|\.\.\.)\]")


def _place(path: str, value: Any, kind: Any) -> tuple[str, Any]:
    """Return the path including the keys of maps, and the value there."""
    place = ""
    for name, index in _STEP.findall(path):
        kind = _container(kind)
        if name:
            kind = next(field.type for field in msgspec.structs.fields(kind) if field.encode_name == name)
            value = value.get(name)
            place += f".{name}"
        elif index != "...":
            (kind,) = typing.get_args(kind)
            value = value[int(index)]
            place += f"[{index}]"
        else:
            kind = typing.get_args(kind)[1]
            key = next((key for key, item in value.items() if not _fits(item, kind)), index)
            value = value.get(key)
            place += f"[{key[:_MAX_KEY]}]"
    return place, value


_MAX_KEY = 60


def _container(kind: Any) -> Any:
    """Return the record, map or list of a union, which has at most one such member."""
    members = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next(
        m for m in members if typing.get_origin(m) in (dict, list) or msgspec.inspect.is_struct_type(m)
    )


def _fits(item: Any, kind: Any) -> bool:
    try:
        msgspec.convert(item, kind)
    except msgspec.ValidationError:
        return False
    return True


def check_depth(data: bytes, limit: int = MAX_DEPTH) -> None:
    """Raise InvalidBody if nesting exceeds `limit`; not recursive, and ignores brackets inside strings."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return
    depth = 0
    for bracket in _STRINGS.sub(b"", data).translate(None, _NOT_BRACKETS):
        if bracket in _OPENING:
            depth += 1
            if depth > limit:
                raise InvalidBody(f"The request body is nested deeper than {limit} levels")
        else:
            depth -= 1


def _without_nulls(value: Any, record: Any) -> Any:
    clean = _cleaner(record)
    return value if clean is None else clean(value)


Cleaner = Callable[[Any], Any]


@cache
def _cleaner(record: Any) -> Cleaner | None:
    return _cleaner_of(msgspec.inspect.type_info(record))


def _cleaner_of(info: msgspec.inspect.Type) -> Cleaner | None:
    """Return a function that removes nulls from a value of this type, or None if it cannot contain any."""
    match info:
        case msgspec.inspect.StructType(fields=fields):
            return _struct_cleaner({field.encode_name: _cleaner_of(field.type) for field in fields})
        case msgspec.inspect.DictType(value_type=inner):
            return _map_cleaner(inner)
        case msgspec.inspect.ListType(item_type=inner):
            clean = _cleaner_of(inner)
            return None if clean is None else lambda value: _clean_list(value, clean)
        case msgspec.inspect.UnionType(types=types):
            cleaners = [c for c in map(_cleaner_of, types) if c is not None]
            return cleaners[0] if len(cleaners) == 1 else None
        case _:
            return None


def _struct_cleaner(fields: dict[str, Cleaner | None]) -> Cleaner:
    def clean(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {}
        for name, item in value.items():
            if item is not None and name in fields:
                inner = fields[name]
                kept[name] = item if inner is None else inner(item)
        return kept

    return clean


def _map_cleaner(inner: msgspec.inspect.Type) -> Cleaner | None:
    if isinstance(inner, msgspec.inspect.StrType):
        return _clean_strings
    clean = _cleaner_of(inner)
    if clean is None:
        return None
    return lambda value: (
        {name: clean({} if item is None else item) for name, item in value.items()}
        if isinstance(value, dict)
        else value
    )


def _clean_strings(value: Any) -> Any:
    if isinstance(value, dict) and None in value.values():
        return {name: "" if item is None else item for name, item in value.items()}
    return value


def _clean_list(value: Any, clean: Cleaner) -> Any:
    return [clean(item) for item in value] if isinstance(value, list) else value
