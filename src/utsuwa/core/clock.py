"""Timestamps in UTC, in the forms used in the database and in the API."""

from __future__ import annotations

from datetime import UTC, datetime

ZERO_TIME = "0001-01-01T00:00:00Z"
"""The API's value for a missing timestamp, as in LXD."""


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
