"""Instance types: sizes such as `c2-m4`, which stand for limits."""

from __future__ import annotations

import math
import re

from utsuwa.core.errors import InvalidConfig

_PART = re.compile(r"([cm])([0-9]{1,5}(?:\.[0-9]{1,3})?)\Z")
_PER_GIB = 1024


def limits_of_type(name: str) -> dict[str, str]:
    """Return the limits that an instance type stands for; none for an empty one.

    `c1.5-m2`: one and a half processors, 2 GiB of memory; each part may be missing. As in LXD, the limit of
    memory is 1024MB for each GiB, rounded down, although MB is a decimal unit. Raises InvalidConfig, also for
    types named after those of cloud providers, whose list would have to be downloaded.
    """
    limits: dict[str, str] = {}
    for part in name.split("-") if name else ():
        match = _PART.match(part)
        number = float(match[2]) if match else 0.0
        if match is None or number <= 0 or _key(match[1]) in limits:
            raise InvalidConfig(
                f"Unknown instance type {name[:60]!r}: "
                "use processors and GiB of memory, as in c2-m4 or c0.5-m0.25"
            )
        if match[1] == "m":
            limits["limits.memory"] = f"{math.floor(number * _PER_GIB)}MB"
            continue
        processors = math.ceil(number)
        limits["limits.cpu"] = str(processors)
        if processors != number:
            limits["limits.cpu.allowance"] = f"{max(1, round(100 * number / processors))}%"
    return limits


def _key(letter: str) -> str:
    return "limits.cpu" if letter == "c" else "limits.memory"
