"""Formatting of sizes and times, and parsing of `key=value` arguments."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_NEVER = ("0001-01-01T00:00:00", "1970-01-01T00:00:00")


def size(count: int, digits: int = 2) -> str:
    """Format bytes in the largest suitable unit: `2.66MiB`, `512B`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{count}B" if unit == 0 else f"{value:.{digits}f}{_UNITS[unit]}"


def is_never(text: str) -> bool:
    """Return whether a timestamp of the API means "never"."""
    return not text or text.startswith(_NEVER)


def local_time(text: str) -> datetime:
    """Parse a timestamp of the API, converting it to the local time zone."""
    from datetime import datetime

    whole, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789") if rest else ""
    return datetime.fromisoformat((whole + zone).replace("Z", "+00:00")).astimezone()


def minute(text: str) -> str:
    """Format as `2026/11/24 07:56 UTC`, or empty for "never"."""
    return "" if is_never(text) else f"{local_time(text):%Y/%m/%d %H:%M %Z}"


def pairs(arguments: Iterable[str]) -> dict[str, str]:
    """Parse `key=value` arguments. Raises UsageError."""
    found = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UsageError(f"Invalid key=value configuration: {argument}")
        found[key] = value
    return found


def override_devices(
    devices: dict[str, dict[str, str]],
    settings: Iterable[str],
    inherited: Callable[[str], dict[str, str]],
) -> None:
    """Apply `--device NAME,KEY=VALUE...` to devices; `inherited` returns one that profiles have, or `{}`.

    Raises UsageError.
    """
    for setting in settings:
        name, comma, fields = setting.partition(",")
        if not comma:
            raise UsageError(f"Bad device setting {setting!r}: use --device NAME,KEY=VALUE")
        if name not in devices:
            devices[name] = dict(inherited(name))
        devices[name] |= pairs(fields.split(","))


def changes(arguments: list[str]) -> dict[str, str]:
    """Parse the arguments of `set`: `key=value...` or `key value`; the value `-` means standard input.

    Raises UsageError.
    """
    if len(arguments) == 2 and "=" not in arguments[0]:
        found = {arguments[0]: arguments[1]}
    else:
        found = pairs(arguments)
    return {key: _from_input() if value == "-" else value for key, value in found.items()}


def _from_input() -> str:
    import sys

    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise UsageError("Standard input is not text in UTF-8, which values have to be") from None


def clock(time: datetime) -> str:
    """Format as `Nov 24, 2026 at 7:56am (UTC)`, in the time's own zone."""
    hour = time.hour % 12 or 12
    half = "pm" if time.hour >= 12 else "am"
    return f"{time:%b} {time.day}, {time.year} at {hour}:{time:%M}{half} ({time:%Z})"
