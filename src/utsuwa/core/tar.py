"""Headers of tar archives (POSIX), as `tarfile` takes longer to import than most commands take."""

from __future__ import annotations

import os

BLOCK = 512
FILE, LINK, SYMLINK, DIRECTORY = b"0", b"1", b"2", b"5"
END = bytes(2 * BLOCK)
SKIPPED, FAILED = "skipped ", "failed "
"""What comments begin with, about what is not in an archive that a server has made."""
_EXTENDED, _GLOBAL = b"x", b"g"
_MAX_TEXT = 100
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777


def header(
    path: str, kind: bytes, mode: int, owner: tuple[int, int], *, size: int = 0, target: str = ""
) -> bytes:
    """Return the header of a member; the content of a file follows, and `padding`."""
    name, link = os.fsencode(path), os.fsencode(target)
    records = b""
    for key, value in ((b"path", name), (b"linkpath", link)):
        if len(value) > _MAX_TEXT:
            records += _record(key, value)
    for key, number, limit in (
        (b"uid", owner[0], _MAX_ID),
        (b"gid", owner[1], _MAX_ID),
        (b"size", size, _MAX_SIZE),
    ):
        if number > limit:
            records += _record(key, b"%d" % number)
    block = _block(name, kind, mode, owner, size, link)
    return _extended(_EXTENDED, records) + block if records else block


def comment(text: str) -> bytes:
    """Return a comment between members, which other programs ignore."""
    return _extended(_GLOBAL, _record(b"comment", os.fsencode(text)))


def padding(size: int) -> bytes:
    """Return what follows a content of that size."""
    return bytes(-size % BLOCK)


def _extended(kind: bytes, records: bytes) -> bytes:
    return _block(b"extended", kind, 0, (0, 0), len(records), b"") + records + padding(len(records))


def _block(name: bytes, kind: bytes, mode: int, owner: tuple[int, int], size: int, target: bytes) -> bytes:
    before = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name[:_MAX_TEXT].ljust(_MAX_TEXT, b"\0"),
        mode,
        min(owner[0], _MAX_ID),
        min(owner[1], _MAX_ID),
        min(size, _MAX_SIZE),
        0,
    )
    after = b"%b%bustar\x0000" % (kind, target[:_MAX_TEXT].ljust(_MAX_TEXT, b"\0"))
    total = sum(before) + sum(after) + 8 * 0x20
    return (b"%b%06o\0 %b" % (before, total, after)).ljust(BLOCK, b"\0")


def _record(key: bytes, value: bytes) -> bytes:
    """A record starts with its own length, which counts the digits of that length too."""
    rest = b" %b=%b\n" % (key, value)
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d%b" % (length, rest)
