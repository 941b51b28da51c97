"""Names of snapshots that are taken without one, by a pattern such as `snapshots.pattern`.

A pattern is text with at most one `%d`, the next free number, and `{{ creation_date }}`, which may have a
format as in LXD: `{{ creation_date|date:'2006-01-02_15-04-05' }}` (Go's reference time shows the layout:
Mon Jan 2 15:04:05 2006).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime

from utsuwa.core.errors import InvalidConfig, InvalidName
from utsuwa.core.names import check_object_name

DEFAULT_PATTERN = "snap%d"
_NUMBER = "%d"
_DEFAULT_LAYOUT = "2006-01-02_15-04-05"
_DATE = re.compile(r"\{\{\s*creation_date\s*(?:\|\s*date:\s*(?:\"([^\"]*)\"|'([^']*)')\s*)?\}\}")
_LAYOUT = {
    "2006": "%Y",
    "January": "%B",
    "Monday": "%A",
    "-0700": "%z",
    "Jan": "%b",
    "Mon": "%a",
    "MST": "%Z",
    "01": "%m",
    "02": "%d",
    "03": "%I",
    "04": "%M",
    "05": "%S",
    "06": "%y",
    "15": "%H",
    "PM": "%p",
    "%": "%%",
}
_TOKEN = re.compile("|".join(map(re.escape, _LAYOUT)))


def check_snapshot_name(name: str) -> str:
    return check_object_name("Snapshot", name)


def check_pattern(pattern: str) -> None:
    """Raises InvalidConfig."""
    rest = _DATE.sub("", pattern)
    if "{{" in rest or "{%" in rest:
        raise InvalidConfig("may only contain {{ creation_date }}, also with a format: |date:'2006-01-02'")
    try:
        next_name(pattern, (), datetime(2006, 1, 2, 15, 4, 5))  # noqa: DTZ001 - any time will do
    except InvalidName as error:
        raise InvalidConfig(f"does not result in a valid name: {error.message}") from error


def next_name(pattern: str, taken: Collection[str], created: datetime) -> str:
    """Return the name of a new snapshot. Raises InvalidName.

    `%d` becomes the number after the highest that a snapshot has; without it, `-0`, `-1` ... is appended to
    a name that is taken.
    """
    text = _DATE.sub(lambda found: _formatted(created, found[1] or found[2] or _DEFAULT_LAYOUT), pattern)
    if _NUMBER not in text:
        if text not in taken:
            return check_snapshot_name(text)
        text = f"{text}-{_NUMBER}"
    before, after = text.split(_NUMBER, 1)
    number = re.compile(re.escape(before) + "([0-9]+)" + re.escape(after) + r"\Z")
    used = (int(match[1]) for name in taken if (match := number.match(name)))
    return check_snapshot_name(f"{before}{max(used, default=-1) + 1}{after}")


def _formatted(moment: datetime, layout: str) -> str:
    return moment.strftime(_TOKEN.sub(lambda found: _LAYOUT[found[0]], layout))
