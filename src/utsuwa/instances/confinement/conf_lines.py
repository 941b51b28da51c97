"""Lines of lxc.conf. No value can add further lines."""

from __future__ import annotations

import re

from utsuwa.core.errors import InvalidConfig

Pair = tuple[str, str]

KEY = re.compile(r"lxc\.[A-Za-z0-9_.:/-]{1,200}\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def line(key: str, value: str) -> str:
    """Return one line of lxc.conf. Raises InvalidConfig if the value could be parsed as anything else."""
    check_pair(key, value)
    if value != value.strip() or (value[:1] in ("'", '"') and value[-1:] == value[0]):
        # liblxc strips white space and one pair of quotes
        value = f'"{value}"'
    return f"{key} = {value}\n"


def check_pair(key: str, value: str) -> None:
    if not KEY.match(key):
        raise InvalidConfig(f"{key[:60]!r} is not a key of a container's configuration")
    if _CONTROL.search(value):
        raise InvalidConfig(f"Invalid value {value[:60]!r} for {key!r}: line breaks or control characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidConfig(f"Invalid value {value[:60]!r} for {key!r}: not valid Unicode") from None
