"""Parsing of sizes and rates in config values, and formatting of sizes."""

from __future__ import annotations

import re

from utsuwa.core.errors import InvalidConfig

_BYTES = re.compile(r"([0-9]+)\s*([A-Za-z]*)\Z")
_UNITS = {"": 1, "B": 1, "bit": 1}
for _power, _letter in enumerate("kMGTPE", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}iB"] = 1024**_power
    _UNITS[f"{_letter}bit"] = 1000**_power
    _UNITS[f"{_letter}ibit"] = 1024**_power
_UNITS["KB"] = 1000
_UNITS["KiB"] = 1024


def parse_bytes(text: str) -> int:
    """Parse `1048576`, `512MiB`, `10GB` into bytes; LXD's units (decimal kB…EB, binary KiB…EiB).

    Raises InvalidConfig for anything else and for values that exceed 63 bits.
    """
    match = _BYTES.match(text.strip())
    if not match or match[2] not in _UNITS or match[2].endswith("bit"):
        raise InvalidConfig(f"Invalid size {text[:40]!r}: use bytes or a unit such as 512MiB, 10GB")
    value = int(match[1]) * _UNITS[match[2]]
    if value >= 2**63:
        raise InvalidConfig(f"Size {text[:40]!r} is too large")
    return value


def shown_bytes(count: int) -> str:
    """Format bytes for people in the largest decimal unit that suits: `512B`, `12.34MB`."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_SHOWN) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.2f}{_SHOWN[unit]}" if unit else f"{count}B"


_SHOWN = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_BIT_UNITS = {"": 1, "bit": 1}
for _power, _letter in enumerate("kMGTPE", start=1):
    _BIT_UNITS[f"{_letter}bit"] = 1000**_power
    _BIT_UNITS[f"{_letter}ibit"] = 1024**_power


def parse_bits(text: str) -> int:
    """Parse `1000000`, `10Mbit`, `1Gbit` into bits per second (decimal kbit…Ebit, binary Kibit…Eibit).

    Raises InvalidConfig for anything else, for 0, and for values that exceed 63 bits.
    """
    match = _BYTES.match(text.strip())
    unit = {"Kbit": "kbit", "Kibit": "kibit"}.get(match[2], match[2]) if match else ""
    if not match or unit not in _BIT_UNITS:
        raise InvalidConfig(f"Invalid rate {text[:40]!r}: use bits per second with a unit such as 10Mbit")
    value = int(match[1]) * _BIT_UNITS[unit]
    if not 8 <= value < 2**63:
        raise InvalidConfig(f"Rate {text[:40]!r} is out of range")
    return value
