"""Packets of the SSH File Transfer Protocol, version 3, as OpenSSH has it (draft-ietf-secsh-filexfer-02)."""

from __future__ import annotations

import os
import stat
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

Entry = tuple[int, int, int, int, int, int]
"""Mode, uid, gid, size, times of access and modification in nanoseconds."""


class Type(IntEnum):
    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status(IntEnum):
    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    UNSUPPORTED = 8


READ, WRITE, APPEND, CREATE, TRUNCATE, EXCLUSIVE = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
"""Flags of OPEN."""

_SIZE, _OWNER, _MODE, _TIMES, _EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000
_SECOND = 10**9
_KINDS = {
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}


class BadMessage(ValueError):
    """A packet that is shorter than it says, or not as the protocol has it."""


@dataclass(frozen=True)
class Attributes:
    """What a client wants to change; None for what it does not."""

    size: int | None = None
    owner: tuple[int, int] | None = None
    mode: int | None = None
    times: tuple[int, int] | None = None
    """Of access and modification, in nanoseconds."""


class Reader:
    """Reads the fields of a packet in order. Raises BadMessage."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise BadMessage("the packet is too short")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def long(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def string(self) -> bytes:
        return self.take(self.number())

    def path(self) -> str:
        return os.fsdecode(self.string()) or "/"

    def attributes(self) -> Attributes:
        flags = self.number()
        size = self.long() if flags & _SIZE else None
        owner = (self.number(), self.number()) if flags & _OWNER else None
        mode = stat.S_IMODE(self.number()) if flags & _MODE else None
        times = (self.number() * _SECOND, self.number() * _SECOND) if flags & _TIMES else None
        if flags & _EXTENDED:
            for _ in range(2 * min(self.number(), 100)):
                self.string()
        return Attributes(size, owner, mode, times)


def number(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


def string(value: bytes | str) -> bytes:
    data = os.fsencode(value)
    return number(len(data)) + data


def packet(kind: Type, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return number(len(body) + 1) + bytes((kind,)) + body


def status(request: int, code: Status, reason: str = "") -> bytes:
    return packet(Type.STATUS, number(request), number(code), string(reason or code.name), string(""))


def attributes(entry: Entry) -> bytes:
    mode, uid, gid, size, accessed, modified = entry
    return struct.pack(
        ">IQIIIII",
        _SIZE | _OWNER | _MODE | _TIMES,
        size,
        uid,
        gid,
        mode,
        accessed // _SECOND & 0xFFFFFFFF,
        modified // _SECOND & 0xFFFFFFFF,
    )


def name(path: str, entry: Entry | None) -> bytes:
    """One of the names in a NAME packet: the name, a line as `ls -l` shows it, and its attributes."""
    if entry is None:
        return string(path) + string(path) + number(0)
    return string(path) + string(_line(path, entry)) + attributes(entry)


def _line(path: str, entry: Entry) -> str:
    mode, uid, gid, size, _, modified = entry
    bits = "".join(char if mode & 1 << 8 - i else "-" for i, char in enumerate("rwxrwxrwx"))
    date = time.strftime("%b %d %H:%M", time.gmtime(modified // _SECOND))
    return f"{_KINDS.get(stat.S_IFMT(mode), '-')}{bits} 1 {uid} {gid} {size} {date} {path}"
