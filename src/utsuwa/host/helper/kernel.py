"""Functions of the C library and the kernel that Python's `os` lacks, with their constants, for the helper.

Failures raise OSError. This module must be quick to import.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NAMESPACES = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
"""The flags of `setns`, by name in /proc/PID/ns."""
DEVPTS_MAGIC = 0x1CD1
TIOCGPTPEER = 0x5441
TIOCSPTLCK = 0x40045431

_NS_GET_USERNS = 0xB701
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_DETACH = 17
_PTRACE_SECCOMP_GET_FILTER = 0x420C
_WAIT = os.WSTOPPED | os.WEXITED | os.WNOWAIT | 0x40000000
"""Wait for the stop of any kind of child, without reaping it."""
LAST_CAPABILITY = 63
_CAPABILITY_VERSION = 0x20080522
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SYS_OPENAT2 = 437
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "ppc64le": 358, "s390x": 348}.get(
    os.uname().machine, -1
)
_RESOLVE_NO_XDEV_NO_LINKS = 0x01 | 0x02 | 0x04
_SECCOMP_SET_MODE_FILTER = 1
_RETURN = 0x06
"""Code of the instruction that returns a constant action."""
_LOAD, _IF_EQUAL = 0x20, 0x15
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
"""In `struct seccomp_data`."""
_ACTION, _USER_NOTIF, _ALLOW, _ERRNO = 0xFFFF0000, 0x7FC00000, 0x7FFF0000, 0x00050000
_INSTRUCTION = 8
"""Size of an instruction of a seccomp filter in bytes."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def setns(fd: int, namespaces: int) -> None:
    """Move this process into namespaces; `fd` is a pidfd, or the descriptor of a single namespace."""
    if _libc.setns(fd, ctypes.c_int(namespaces)):
        raise _error()


def owner_of(namespace: int) -> int:
    """Return a descriptor of the user namespace to which the namespace of a descriptor belongs."""
    fd = int(_libc.ioctl(namespace, ctypes.c_ulong(_NS_GET_USERNS)))
    if fd < 0:
        raise _error()
    return fd


def set_death_signal(number: int) -> None:
    """Set the signal that this process receives when its parent dies; 0 for none."""
    _prctl(_PR_SET_PDEATHSIG, number)


def set_not_dumpable() -> None:
    """Let only the host's root inspect this process, regardless of the namespaces it shares."""
    _prctl(_PR_SET_DUMPABLE, 0)


def drop_capability(number: int) -> None:
    """Remove a capability from the bounding set."""
    _prctl(_PR_CAPBSET_DROP, number)


def set_capabilities(numbers: Iterable[int]) -> None:
    """Make these the only capabilities of this process; none are inheritable."""
    bits = sum(1 << number for number in numbers)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = struct.pack("=II", _CAPABILITY_VERSION, 0)
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    if _libc.capset(header, data):
        raise _error()


def set_no_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0):
        raise _error()


def set_personality(persona: int) -> None:
    _libc.personality(ctypes.c_ulong(persona))


def add_seccomp_filter(program: bytes) -> None:
    """Install an additional filter for this process."""
    argument = _Program(len(program) // _INSTRUCTION, program)
    if _libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(argument)):
        raise _error()


def seccomp_filters(pid: int, most: int) -> list[bytes]:
    """Return the seccomp filters of a process, the oldest first, by briefly stopping it.

    Raises ValueError if there are more than `most`.
    """
    _ptrace(_PTRACE_SEIZE, pid)
    try:
        _ptrace(_PTRACE_INTERRUPT, pid)
        os.waitid(os.P_PID, pid, _WAIT)
        found: list[bytes] = []
        for index in range(most + 1):
            try:
                length = _ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index)
            except FileNotFoundError:  # no more filters
                return found
            buffer = ctypes.create_string_buffer(length * _INSTRUCTION)
            _ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index, ctypes.addressof(buffer))
            found.insert(0, buffer.raw)
        raise ValueError("too many filters")
    finally:
        _ptrace(_PTRACE_DETACH, pid)


def notifies(program: bytes) -> bool:
    """Return whether a seccomp filter notifies a listener of system calls."""
    instructions = struct.iter_unpack("=HBBI", program)
    return any(code == _RETURN and value & _ACTION == _USER_NOTIF for code, _, _, value in instructions)


def without_notifications(program: bytes) -> bytes:
    """Return a seccomp filter that allows the system calls of which another one notifies a listener."""
    instructions = (
        (code, yes, no, _ALLOW if code == _RETURN and value & _ACTION == _USER_NOTIF else value)
        for code, yes, no, value in struct.iter_unpack("=HBBI", program)
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def denying(calls: Iterable[tuple[int, int]], error: int) -> bytes:
    """Return a seccomp filter by which system calls fail.

    `calls` are pairs of the kernel's number of an architecture and that of a call.
    """
    instructions: list[tuple[int, int, int, int]] = []
    for architecture, number in calls:
        instructions += (
            (_LOAD, 0, 0, _ARCHITECTURE_AT),
            (_IF_EQUAL, 0, 3, architecture),
            (_LOAD, 0, 0, _NUMBER_AT),
            (_IF_EQUAL, 0, 1, number),
            (_RETURN, 0, 0, _ERRNO | error),
        )
    instructions.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result = int(_libc.ptrace(request, pid, address or None, data or None))
    if result < 0:
        raise _error()
    return result


def open_beside(folder_fd: int, name: bytes) -> int:
    """Open a directory entry with O_PATH, without following symlinks or crossing mounts."""
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_XDEV_NO_LINKS)
    fd = int(_libc.syscall(_SYS_OPENAT2, folder_fd, name, how, len(how)))
    if fd < 0:
        raise _error()
    return fd


def set_environment(variables: Sequence[bytes]) -> None:
    """Replace this process's environment by `NAME=value` strings, which must be kept alive."""
    _libc.clearenv()
    for variable in variables:
        _libc.putenv(variable)  # keeps the pointer


class Program:
    """An argument list that is prepared in advance."""

    def __init__(self, argv: Sequence[bytes]) -> None:
        self._argv = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)

    def execute(self) -> OSError:
        """Execute the program, searching PATH; return the reason if that fails."""
        _libc.execvp(self._argv[0], self._argv)
        return _error()
