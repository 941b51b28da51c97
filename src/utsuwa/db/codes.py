"""Numbers that stand in the tables for words, the same as in LXD's database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from utsuwa.core.errors import InvalidConfig

State = Literal["creating", "ready", "deleting"]
"""Rows of things that also lie on the host: what is not `ready` at start-up is swept."""

STATES: Mapping[str, int] = {"creating": 0, "ready": 1, "deleting": 2}

ARCHITECTURES: Mapping[str, int] = {
    "unknown": 0,
    "i686": 1,
    "x86_64": 2,
    "armv7l": 3,
    "aarch64": 4,
    "ppc": 5,
    "ppc64": 6,
    "ppc64le": 7,
    "s390x": 8,
    "mips": 9,
    "mips64": 10,
    "riscv32": 11,
    "riscv64": 12,
    "armv6l": 13,
    "armv8l": 14,
    "loongarch64": 15,
}

DEVICE_TYPES: Mapping[str, int] = {
    "none": 0,
    "nic": 1,
    "disk": 2,
    "unix-char": 3,
    "unix-block": 4,
    "usb": 5,
    "gpu": 6,
    "infiniband": 7,
    "proxy": 8,
    "unix-hotplug": 9,
    "tpm": 10,
    "pci": 11,
}

INSTANCE_TYPES: Mapping[str, int] = {"container": 0, "virtual-machine": 1}

CERTIFICATE_TYPES: Mapping[str, int] = {"client": 1, "server": 2, "metrics": 3}

VOLUME_CONTAINER = 0
VOLUME_IMAGE = 1
VOLUME_CUSTOM = 2
VOLUME_VIRTUAL_MACHINE = 3


def number(codes: Mapping[str, int], word: str, what: str) -> int:
    """The number of a word; raises InvalidConfig for a word that has none."""
    try:
        return codes[word]
    except KeyError:
        raise InvalidConfig(f"Unknown {what} {word[:60]!r}: use one of {', '.join(codes)}") from None


def word(codes: Mapping[str, int], stored: int) -> str:
    """The word of a number; the first one of the table where a hand has written a number that is none."""
    for text, code in codes.items():
        if code == stored:
            return text
    return next(iter(codes))
