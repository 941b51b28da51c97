"""Changes by PUT and PATCH, as functions of an object's editable part.

The editable part of an object is the record of its PUT. A handler turns the body into a `Change`; the manager
applies it in the transaction or under the lock in which it stores the result, so that nothing else can change
the object meanwhile. The caller's If-Match is compared there as well, so no update is lost.

In the records of PATCH, an absent (or null) field is UNSET.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

R = TypeVar("R", bound=msgspec.Struct)

Change = Callable[[R], R]
"""Returns the new editable part for the current one, which it does not modify; may be called again."""

IfMatch = Callable[[Any], None]
"""Called with the current editable part; raises PreconditionFailed if its ETag does not match If-Match."""


def any_state(_: Any) -> None:
    """The IfMatch of a request without a condition."""


def edited(current: R, change: Change[R], if_match: IfMatch) -> R:
    """Return the changed `current`. Raises PreconditionFailed."""
    if_match(current)
    return change(current)


def replace(body: R) -> Change[R]:
    """Return the change of a PUT: the body replaces the object; UNSET fields keep their values."""

    def change(current: R) -> R:
        kept = {name: getattr(current, name) for name, value in _fields(body) if value is msgspec.UNSET}
        return msgspec.structs.replace(body, **kept)

    return change


def merge(body: msgspec.Struct, *, empty_removes: bool = True) -> Change[Any]:
    """Return the change of a PATCH: merge maps by key, where an empty value removes one, replace other
    fields. Unless `empty_removes`, an empty value is a value as well."""

    def change(current: R) -> R:
        given = {
            name: _merged(name, getattr(current, name), value, empty_removes=empty_removes)
            for name, value in _fields(body)
            if value is not msgspec.UNSET
        }
        return msgspec.structs.replace(current, **given)

    return change


def _fields(record: msgspec.Struct) -> list[tuple[str, Any]]:
    return [(name, getattr(record, name)) for name in record.__struct_fields__]


def _merged(name: str, old: Any, new: Any, *, empty_removes: bool) -> Any:
    if not isinstance(new, dict):
        return new

    def stays(key: str, value: Any) -> bool:
        # What a config does not have anyway is left to the table of its keys, which refuses unknown ones.
        return value != "" or not empty_removes or (name == "config" and key not in old)

    return {key: value for key, value in {**old, **new}.items() if stays(key, value)}
