"""bpf(2), for programs that decide on devices (BPF_PROG_TYPE_CGROUP_DEVICE), without policy.

Failures raise OSError. This module must be quick to import.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

from utsuwa.host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = (
    (0xC000003E, 321),  # x86_64
    (0xC000003E, 0x40000000 + 321),  # x32
    (0x40000003, 357),  # i386
    (0xC00000B7, 280),  # aarch64
    (0x40000028, 386),  # arm
    (0xC00000F3, 280),  # riscv64
    (0x400000F3, 280),  # riscv32
)
"""The kernel's numbers of an architecture and of the call there."""
PROG_LOAD = 5
PROG_ATTACH = 8
PROG_DETACH = 9
LINK_CREATE = 28
LINK_UPDATE = 29
COMMANDS = 0xFFFF
"""The bits of the first argument that are the command."""
_PROG_GET_NEXT_ID = 11
_PROG_GET_FD_BY_ID = 13
_OBJ_GET_INFO_BY_FD = 15
_PROG_QUERY = 16

PROG_TYPE_CGROUP_DEVICE = 15
CGROUP_DEVICE = 6
"""The kind of attachment."""
F_ALLOW_OVERRIDE = 1
F_ALLOW_MULTI = 2
F_REPLACE = 4
INSTRUCTION = struct.Struct("=BBhi")
"""Code, registers (the source in the upper half), offset, constant."""
LICENSE_LIMIT = 128
"""Size of a licence's text with its end."""

LOAD = struct.Struct("=IIQQIIQII16sII")
"""Type, number and address of instructions, licence; level, size and address of its log; kernel version,
flags, name, interface, kind of attachment."""
ATTACH = struct.Struct("=5I")
"""Descriptors of cgroup and program, kind of attachment, flags, descriptor of the program to replace."""
_QUERY = struct.Struct("=4IQII")
_NUMBERS = struct.Struct("=III")
_INFO_REQUEST = struct.Struct("=IIQ")
_INFO = struct.Struct("=II56x16s")
"""Type, id, name."""


def load(code: bytes, license: bytes, name: bytes, level: int = 0, log: mmap.mmap | None = None) -> int:
    """Load a program and return its descriptor; `level` and `log` are of what the verifier writes."""
    text = ctypes.create_string_buffer(license)
    instructions = ctypes.create_string_buffer(code, len(code))
    log_at = ctypes.addressof(ctypes.c_char.from_buffer(log)) if log is not None else 0
    attributes = LOAD.pack(
        PROG_TYPE_CGROUP_DEVICE,
        len(code) // INSTRUCTION.size,
        ctypes.addressof(instructions),
        ctypes.addressof(text),
        level,
        len(log) if log is not None else 0,
        log_at,
        0,
        0,
        name,
        0,
        0,
    )
    return syscalls.bpf(PROG_LOAD, bytearray(attributes))


def attach(cgroup: int, program: int, flags: int, replaced: int = 0) -> None:
    syscalls.bpf(PROG_ATTACH, bytearray(ATTACH.pack(cgroup, program, CGROUP_DEVICE, flags, replaced)))


def detach(cgroup: int, program: int) -> None:
    syscalls.bpf(PROG_DETACH, bytearray(ATTACH.pack(cgroup, program, CGROUP_DEVICE, 0, 0)))


def attached(cgroup: int) -> tuple[int, int]:
    """Return the number of programs of a cgroup, and the flags with which they were attached."""
    attributes = bytearray(_QUERY.pack(cgroup, CGROUP_DEVICE, 0, 0, 0, 0, 0))
    syscalls.bpf(_PROG_QUERY, attributes)
    *_, flags, _, count, _ = _QUERY.unpack(attributes)
    return count, flags


def program(number: int) -> int:
    """Return a descriptor of the program with an id. Raises FileNotFoundError if there is none."""
    return syscalls.bpf(_PROG_GET_FD_BY_ID, bytearray(_NUMBERS.pack(number, 0, 0)))


def name_of(program: int) -> bytes | None:
    """Return the name of a program of the type; None if it is of another one."""
    found = bytearray(_INFO.size)
    buffer = (ctypes.c_char * len(found)).from_buffer(found)
    request = _INFO_REQUEST.pack(program, len(found), ctypes.addressof(buffer))
    syscalls.bpf(_OBJ_GET_INFO_BY_FD, bytearray(request))
    kind, _, name = _INFO.unpack(found)
    return name.rstrip(b"\0") if kind == PROG_TYPE_CGROUP_DEVICE else None


def names() -> Iterator[bytes]:
    """Yield the names of all programs of the type on this host."""
    number = 0
    while True:
        attributes = bytearray(_NUMBERS.pack(number, 0, 0))
        try:
            syscalls.bpf(_PROG_GET_NEXT_ID, attributes)
        except FileNotFoundError:
            return
        number = _NUMBERS.unpack(attributes)[1]
        try:
            found = program(number)
        except FileNotFoundError:  # it is gone meanwhile
            continue
        try:
            name = name_of(found)
        finally:
            os.close(found)
        if name is not None:
            yield name


ALLOW = INSTRUCTION.pack(0xB7, 0, 0, 1) + INSTRUCTION.pack(0x95, 0, 0, 0)
"""A program that allows everything: r0 = 1; exit."""


def lacking() -> str:
    """Return the reason why the kernel cannot load such programs; empty if it can."""
    try:
        os.close(load(ALLOW, b"GPL", b"utsuwa_check"))
    except OSError as error:
        return f"{errno.errorcode.get(error.errno or 0, 'error')}: {error.strerror}"
    return ""
