"""Sizes and times as people read them, and what they write as `key=value`."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_NEVER = ("0001-01-01T00:00:00", "1970-01-01T00:00:00")


def size(count: int, digits: int = 2) -> str:
    """Bytes in the greatest unit that they fill: `2.66MiB`, `512B`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{count}B" if unit == 0 else f"{value:.{digits}f}{_UNITS[unit]}"


def is_never(text: str) -> bool:
    """Whether a time of the API stands for none."""
    return not text or text.startswith(_NEVER)


def local_time(text: str) -> datetime:
    """A time of the API in the zone of the user."""
    from datetime import datetime

    whole, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789") if rest else ""
    return datetime.fromisoformat((whole + zone).replace("Z", "+00:00")).astimezone()


def minute(text: str) -> str:
    """`2026/11/24 07:56 UTC`, nothing for no time."""
    return "" if is_never(text) else f"{local_time(text):%Y/%m/%d %H:%M %Z}"


def pairs(arguments: Iterable[str]) -> dict[str, str]:
    """`key=value` arguments. Raises UsageError."""
    found = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UsageError(f"Invalid key=value configuration: {argument}")
        found[key] = value
    return found


def changes(arguments: list[str]) -> dict[str, str]:
    """What `set` is to set: `key=value...`, or the older `key value`; `-` as the value is standard input.

    Raises UsageError.
    """
    if len(arguments) == 2 and "=" not in arguments[0]:
        found = {arguments[0]: arguments[1]}
    else:
        found = pairs(arguments)
    return {key: _from_input() if value == "-" else value for key, value in found.items()}


def _from_input() -> str:
    import sys

    return sys.stdin.read()


def clock(time: datetime) -> str:
    """`Nov 24, 2026 at 7:56am (UTC)`, in the zone that the time has."""
    hour = time.hour % 12 or 12
    half = "pm" if time.hour >= 12 else "am"
    return f"{time:%b} {time.day}, {time.year} at {hour}:{time:%M}{half} ({time:%Z})"
