"""Timestamps in UTC, in the forms used in the database and in the API."""

from __future__ import annotations

from datetime import UTC, datetime

from dateutil.parser import isoparse

from utsuwa.core.errors import InvalidRequest

ZERO_TIME = "0001-01-01T00:00:00Z"
"""The API's value for a missing timestamp, as in LXD."""
NEVER_USED = "1970-01-01T00:00:00Z"
"""The API's value for the last use of an instance that was never started, as in LXD."""


def now() -> datetime:
    return datetime.now(UTC)


def to_wire(moment: datetime | None) -> str:
    """Format as RFC 3339 in UTC with microseconds; None becomes `ZERO_TIME`."""
    if moment is None:
        return ZERO_TIME
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    elif moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat().removesuffix("+00:00") + "Z"


def from_wire(text: str) -> datetime | None:
    """Parse a time in RFC 3339; an empty text and the zero time mean none. Raises InvalidRequest."""
    if not text or text.startswith("0001-01-01T00:00:00"):
        return None
    try:
        moment = isoparse(text)
        if moment.tzinfo is None:
            raise ValueError(text)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"Invalid time {text[:60]!r}: use RFC 3339, such as 2030-01-31T12:00:00Z"
        ) from None
