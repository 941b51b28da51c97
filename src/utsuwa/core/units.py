"""Sizes and amounts as people write them in config values."""

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
    """Bytes from `1048576`, `512MiB`, `10GB`; LXD's units (decimal kB…EB, binary KiB…EiB).

    Raises InvalidConfig for anything else and for what does not fit into 63 bits.
    """
    match = _BYTES.match(text.strip())
    if not match or match[2] not in _UNITS or match[2].endswith("bit"):
        raise InvalidConfig(f"Invalid size {text[:40]!r}: use bytes or a unit such as 512MiB, 10GB")
    value = int(match[1]) * _UNITS[match[2]]
    if value >= 2**63:
        raise InvalidConfig(f"Size {text[:40]!r} is too large")
    return value
