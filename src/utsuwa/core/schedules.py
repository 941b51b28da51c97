"""Schedules such as `snapshots.schedule`, and time spans such as `snapshots.expiry`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta

from cronsim import CronSim, CronSimError
from dateutil.relativedelta import relativedelta

from utsuwa.core.errors import InvalidConfig

STARTUP = "@startup"
NEVER = "@never"
_ALIASES = {
    "@hourly": "{minute} * * * *",
    "@daily": "{minute} {hour} * * *",
    "@midnight": "{minute} 0 * * *",
    "@weekly": "{minute} {hour} * * 0",
    "@monthly": "{minute} {hour} 1 * *",
    "@annually": "{minute} {hour} 1 1 *",
    "@yearly": "{minute} {hour} 1 1 *",
}
_MINUTE = timedelta(minutes=1)
_SPAN = re.compile(r"([0-9]{1,6})([SMHdwmy])\Z")
_UNITS = {
    "S": "seconds",
    "M": "minutes",
    "H": "hours",
    "d": "days",
    "w": "weeks",
    "m": "months",
    "y": "years",
}


def parse_schedule(value: str) -> list[str]:
    """Split a schedule into cron expressions of five fields and aliases, separated by a comma and a space.

    An empty schedule has none. Raises InvalidConfig.
    """
    parts = [part for part in re.split(r",\s+|,(?=@)", value.strip()) if part]
    if not all(map(_is_valid, parts)):
        raise InvalidConfig(
            "must be a cron expression such as '0 6 * * *', or aliases such as @daily, @startup"
        )
    return parts


def _is_valid(part: str) -> bool:
    if part.startswith("@"):
        return part in _ALIASES or part in (STARTUP, NEVER)
    if len(part.split()) != 5:
        return False
    try:
        CronSim(part, datetime(2000, 1, 1))  # noqa: DTZ001 - schedules are in local time
    except CronSimError:
        return False
    return True


def is_due(value: str, now: datetime, owner: int) -> bool:
    """Whether a valid schedule includes the minute of `now`, in local time.

    The aliases leave the minute and hour open: they depend on `owner`, a number such as the id of an
    instance, so that not everything is due at the same time.
    """
    this_minute = now.replace(second=0, microsecond=0, tzinfo=None)
    for part in parse_schedule(value):
        expression = _ALIASES.get(part, part).format(minute=owner % 60, hour=owner // 60 % 24)
        if (
            not expression.startswith("@")
            and next(CronSim(expression, this_minute - _MINUTE), None) == this_minute
        ):
            return True
    return False


def runs_at_start(value: str) -> bool:
    """Whether a valid schedule includes each start of the instance."""
    return STARTUP in parse_schedule(value)


def add_span(value: str, start: datetime) -> datetime | None:
    """Return the time at which a span such as `1w 12H` after `start` ends; None if it is empty.

    The units are S, M (minutes), H, d, w, m (months) and y. Raises InvalidConfig.
    """
    span = relativedelta()
    parts = value.split()
    for part in parts:
        match = _SPAN.match(part)
        if match is None:
            raise InvalidConfig("must be a time span such as 3d or '1w 12H' (S, M, H, d, w, m, y)")
        span += relativedelta(**{_UNITS[match[2]]: int(match[1])})  # type: ignore[arg-type]
    try:
        return start + span if parts else None
    except (OverflowError, ValueError):
        raise InvalidConfig("must end before the year 10000") from None


def default_expiry(config: Mapping[str, str], now: datetime, *, scheduled: bool) -> datetime | None:
    """Return when a snapshot of now expires by the keys `snapshots.expiry*`; None for never."""
    manual = "" if scheduled else config.get("snapshots.expiry.manual", "")
    return add_span(manual or config.get("snapshots.expiry", ""), now)
