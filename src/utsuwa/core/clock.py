"""Times in UTC, as they are stored and as they travel."""

from __future__ import annotations

from datetime import UTC, datetime

ZERO_TIME = "0001-01-01T00:00:00Z"
"""What the API shows where there is no time, as LXD does."""


def now() -> datetime:
    return datetime.now(UTC)


def to_wire(moment: datetime | None) -> str:
    """RFC 3339 in UTC with microseconds; `ZERO_TIME` for None."""
    if moment is None:
        return ZERO_TIME
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    elif moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat().removesuffix("+00:00") + "Z"
