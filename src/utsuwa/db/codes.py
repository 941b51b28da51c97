"""Numeric codes in the tables, the same as in LXD's database.

A row may hold a number that no table has, written by a newer version or by hand. What the row means is not
known then, so nothing is done with it: lists go on without it, and it is never swept or taken for something
else. Its state is `UNKNOWN`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, Literal, cast

from utsuwa.core.errors import InvalidConfig, Unavailable

log = logging.getLogger(__name__)

State = Literal["creating", "ready", "deleting", "pending", "unknown"]
"""Rows of things that also lie on the host: what is `HALF_MADE` at start-up is swept. What is `PENDING` other
members have and this one does not, which no row says.
"""

HALF_MADE: Final = ("creating", "deleting")
PENDING: Final = "pending"
UNKNOWN: Final = "unknown"


class UnknownCode(Unavailable):
    """A row holds a number that this version has no word for."""


class Codes(dict[str, int]):
    """The numbers by their words; `kind` says what they stand for."""

    def __init__(self, kind: str, numbers: Mapping[str, int]) -> None:
        super().__init__(numbers)
        self.kind = kind
        self.words = {number: word for word, number in numbers.items()}


STATES = Codes("state", {"creating": 0, "ready": 1, "deleting": 2})

ARCHITECTURES = Codes(
    "architecture",
    {
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
    },
)

DEVICE_TYPES = Codes(
    "device type",
    {
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
    },
)

INSTANCE_TYPES = Codes("type", {"container": 0, "virtual-machine": 1})

CERTIFICATE_TYPES = Codes("type", {"client": 1, "server": 2, "metrics": 3})

NETWORK_TYPES = Codes("type", {"bridge": 0})

VOLUME_CONTAINER = 0
VOLUME_IMAGE = 1
VOLUME_CUSTOM = 2
VOLUME_VIRTUAL_MACHINE = 3

VOLUME_TYPES = Codes(
    "type",
    {
        "container": VOLUME_CONTAINER,
        "image": VOLUME_IMAGE,
        "custom": VOLUME_CUSTOM,
        "virtual-machine": VOLUME_VIRTUAL_MACHINE,
    },
)


def number(codes: Mapping[str, int], word: str, what: str) -> int:
    """Return the number of a word. Raises InvalidConfig for an unknown word."""
    try:
        return codes[word]
    except KeyError:
        raise InvalidConfig(f"Unknown {what} {word[:60]!r}: use one of {', '.join(codes)}") from None


def word(codes: Codes, stored: int) -> str:
    """Return the word of a number. Raises UnknownCode for an unknown number."""
    found = codes.words.get(stored)
    if found is None:
        raise UnknownCode(f"{stored!r} is no {codes.kind} that this version knows")
    return found


class Reader:
    """The words of one row; `complete` is False once one was missing, which the log has then told."""

    __slots__ = ("_what", "complete")

    def __init__(self, what: str) -> None:
        self._what = what
        self.complete = True

    def word(self, codes: Codes, stored: int) -> str:
        """The word, or `UNKNOWN`."""
        try:
            return word(codes, stored)
        except UnknownCode as error:
            self.missing(error)
            return UNKNOWN

    def missing(self, error: UnknownCode) -> None:
        """What the row refers to could not be read."""
        self.complete = False
        _tell(f"{self._what} is left alone: {error}")

    def state(self, stored: int) -> State:
        """The row's state; `UNKNOWN` where any of its words is missing, so it is asked for last."""
        found = cast(State, self.word(STATES, stored))
        return found if self.complete else UNKNOWN


_told: set[str] = set()


def _tell(message: str) -> None:
    """Once: lists are read over and over."""
    if message not in _told:
        _told.add(message)
        log.warning("%s (use the version that wrote it, or correct it with 'utsuwad sql')", message)


def unreadable(what: str) -> UnknownCode:
    """The error for one thing that was asked for by name."""
    return UnknownCode(
        f"{what} cannot be used: its row in the database holds a number that this version does not know;"
        " the daemon's log names it"
    )
