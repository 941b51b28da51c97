"""How the body of a PUT or PATCH changes an object: as a function of what can be edited of it.

The editable part of a kind of object is the record of its PUT. A handler makes a `Change` of the body; the
manager applies it where nobody else can change the object meanwhile: in the transaction, or under the lock,
in which the result is stored. There the caller's If-Match is compared as well, so no update is lost.

In the records of PATCH a field that is absent (or null) is UNSET.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

R = TypeVar("R", bound=msgspec.Struct)

Change = Callable[[R], R]
"""From the editable part as it is to the one that is wanted. It may be called again, and changes nothing."""

IfMatch = Callable[[Any], None]
"""Given the editable part as it is; raises PreconditionFailed where the caller's If-Match is not its ETag."""


def any_state(_: Any) -> None:
    """The IfMatch of a caller who sets no condition."""


def edited(current: R, change: Change[R], if_match: IfMatch) -> R:
    """What `current` becomes. Raises PreconditionFailed."""
    if_match(current)
    return change(current)


def replace(body: R) -> Change[R]:
    """PUT: the body is what the object becomes; fields that are UNSET stay as they are."""

    def change(current: R) -> R:
        kept = {name: getattr(current, name) for name, value in _fields(body) if value is msgspec.UNSET}
        return msgspec.structs.replace(body, **kept)

    return change


def merge(body: msgspec.Struct) -> Change[Any]:
    """PATCH: maps are merged by key, where an empty text removes one; other fields that are given replace."""

    def change(current: R) -> R:
        given = {
            name: _merged(getattr(current, name), value)
            for name, value in _fields(body)
            if value is not msgspec.UNSET
        }
        return msgspec.structs.replace(current, **given)

    return change


def _fields(record: msgspec.Struct) -> list[tuple[str, Any]]:
    return [(name, getattr(record, name)) for name in record.__struct_fields__]


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, dict):
        return new
    return {key: value for key, value in {**old, **new}.items() if value != ""}
