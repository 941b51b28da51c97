"""Numeric codes in the tables, the same as in LXD's database.

A row may contain an unknown number, written by a newer version or by hand. Such a row is ignored: lists skip
it, and it is never swept or interpreted as something else. Its state is `UNKNOWN`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, Literal, cast

from utsuwa.core.errors import InvalidConfig, Unavailable

log = logging.getLogger(__name__)

State = Literal["creating", "ready", "deleting", "pending", "unknown"]
"""States of objects that also exist on the host. `HALF_MADE` objects are swept at start-up. `PENDING` is
never stored: other members have the object, and this one does not.
"""

HALF_MADE: Final = ("creating", "deleting")
PENDING: Final = "pending"
UNKNOWN: Final = "unknown"


class UnknownCode(Unavailable):
    """A row contains a code that this version does not know."""


class Codes(dict[str, int]):
    """Codes by name; `kind` describes them in messages."""

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

IMAGE_PROTOCOLS = Codes("image protocol", {"lxd": 0, "direct": 1, "simplestreams": 2})

CERTIFICATE_TYPES = Codes("type", {"client": 1, "server": 2, "metrics": 3})

NETWORK_TYPES = Codes("type", {"bridge": 0})

WARNING_STATUSES = Codes("status", {"new": 1, "acknowledged": 2, "resolved": 3})

ENTITY_TYPES = Codes(
    "entity type",
    {
        "container": 0,
        "image": 1,
        "profile": 2,
        "project": 3,
        "certificate": 4,
        "instance": 5,
        "network": 8,
        "storage-pool": 12,
        "storage-volume": 13,
    },
)
"""What warnings are about; those of LXD's that rows here can refer to."""

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
        raise UnknownCode(f"{stored!r} is not a known {codes.kind}")
    return found


class Reader:
    """Decodes the columns of one row; `complete` becomes False on an unknown code, which is logged."""

    __slots__ = ("_what", "complete")

    def __init__(self, what: str) -> None:
        self._what = what
        self.complete = True

    def word(self, codes: Codes, stored: int) -> str:
        """Return the name, or `UNKNOWN`."""
        try:
            return word(codes, stored)
        except UnknownCode as error:
            self.missing(error)
            return UNKNOWN

    def missing(self, error: UnknownCode) -> None:
        """Mark the row as incomplete because an object that it refers to is unreadable."""
        self.complete = False
        _log_once(f"{self._what} is ignored: {error}")

    def state(self, stored: int) -> State:
        """Return the row's state; `UNKNOWN` if any of its codes is, so it must be decoded last."""
        found = cast(State, self.word(STATES, stored))
        return found if self.complete else UNKNOWN


_told: set[str] = set()


def _log_once(message: str) -> None:
    """Log each message only once, as lists are read repeatedly."""
    if message not in _told:
        _told.add(message)
        log.warning("%s (use the version that wrote it, or correct it with 'utsuwad sql')", message)


def unreadable(what: str) -> UnknownCode:
    """Return the error for a single object requested by name."""
    return UnknownCode(
        f"{what} cannot be used: its row in the database contains a code that this version does not know;"
        " see the daemon's log"
    )
