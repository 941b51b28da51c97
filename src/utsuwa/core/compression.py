"""Compression of images and backups, as config keys and requests name it: `zstd -3`, `gzip --rsyncable`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from utsuwa.core.errors import InvalidConfig

_FORM = re.compile(r"(?P<name>[a-z0-9]+)(?: -(?P<level>[0-9]{1,2}))?(?P<rsyncable> --rsyncable)?\Z")


@dataclass(frozen=True)
class Compressor:
    """What may follow the name of a compressor: levels from `lowest` to `highest`, and `--rsyncable`."""

    lowest: int = 1
    highest: int = 9
    rsyncable: bool = False


COMPRESSORS = {
    "bzip2": Compressor(),
    "gzip": Compressor(rsyncable=True),
    "lz4": Compressor(highest=12),
    "lzma": Compressor(lowest=0),
    "none": Compressor(highest=0),
    "pigz": Compressor(rsyncable=True),
    "squashfs": Compressor(highest=0),
    "xz": Compressor(lowest=0),
    "zstd": Compressor(highest=19, rsyncable=True),
}
"""By name; `highest` is 0 for those without levels."""


@dataclass(frozen=True)
class Compression:
    """A compressor and its options; `level` is None for its default."""

    name: str
    level: int | None = None
    rsyncable: bool = False


def parse_compression(text: str) -> Compression:
    """Parse a compressor's name, level and `--rsyncable`: nothing else may reach its command line.

    Raises InvalidConfig, whose message continues the name of the key.
    """
    match = _FORM.match(text)
    known = COMPRESSORS.get(match["name"]) if match else None
    if match is None or known is None:
        raise InvalidConfig(
            f"must be one of {', '.join(COMPRESSORS)}, with a level if wanted, as in 'zstd -3': "
            f"{text[:40]!r} is not"
        )
    level = None if match["level"] is None else int(match["level"])
    if level is not None and not known.lowest <= level <= known.highest:
        levels = f"levels from {known.lowest} to {known.highest}" if known.highest else "no levels"
        raise InvalidConfig(f"has the level {level}, but {match['name']} has {levels}")
    if match["rsyncable"] and not known.rsyncable:
        able = ", ".join(name for name, one in COMPRESSORS.items() if one.rsyncable)
        raise InvalidConfig(f"has --rsyncable, which {match['name']} does not know: only {able} do")
    return Compression(match["name"], level, bool(match["rsyncable"]))
