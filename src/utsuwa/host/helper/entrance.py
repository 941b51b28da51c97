"""Getting into a container by what liblxc has shown once.

liblxc's attach asks the monitor five questions, parses the seccomp policy and forks twice, each time.
So the first command of a container is attached by liblxc, and what the kernel then holds of that
process - its namespaces, cgroups, bounding set, personality, seccomp filters and AppArmor profile - is
read back (`learn`) and given to the later ones (`enter`). Nothing is computed from the configuration:
a command that enters gets just what liblxc gave, or none of it and liblxc is asked again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_NAMESPACES = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_DETACH = 17
_PTRACE_SECCOMP_GET_FILTER = 0x420C
_WAIT = os.WSTOPPED | os.WEXITED | os.WNOWAIT | 0x40000000
"""For the stop of any kind of child; its end is left to whoever waits for that."""
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "ppc64le": 358, "s390x": 348}.get(
    os.uname().machine, -1
)
_SECCOMP_SET_MODE_FILTER = 1
_INSTRUCTION = 8
"""Bytes of one instruction of a seccomp filter."""
_MAX_FILTERS = 8
_NOT_RUN = 126

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def learn(pid: int) -> dict[str, Any] | None:
    """What the kernel holds of a process that liblxc has attached and that is held, a child of this one.

    None where it cannot all be read, or where commands could not be given the same: they go on through
    liblxc. Keys: `namespaces` (flags for setns), `cgroups` (folders), `dropped` (capabilities),
    `personality`, `no_new_privs`, `filters` (hexadecimal, the oldest first), `label` (of AppArmor).
    """
    try:
        ours, theirs = _status("self"), _status(str(pid))
        if int(ours["Seccomp"]) or _differs(pid, "time"):
            return None
        return {
            "namespaces": sum(flag for name, flag in _NAMESPACES.items() if _differs(pid, name)),
            "cgroups": _cgroups(pid),
            "dropped": _bits(int(ours["CapBnd"], 16) & ~int(theirs["CapBnd"], 16)),
            "personality": int(_read(f"/proc/{pid}/personality"), 16),
            "no_new_privs": int(theirs["NoNewPrivs"]),
            "filters": _filters(pid) if int(theirs["Seccomp"]) else [],
            "label": _label(pid),
        }
    except (OSError, KeyError, ValueError):
        return None


def enter(fd: int, namespaces: int) -> None:
    """Move this process into namespaces; `fd` is a pidfd, or that of the one namespace. OSError."""
    if _libc.setns(fd, ctypes.c_int(namespaces)):
        raise _error()


def _bits(mask: int) -> list[int]:
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def _status(process: str) -> dict[str, str]:
    lines = _read(f"/proc/{process}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _read(path: str) -> str:
    with open(path, errors="surrogateescape") as file:  # noqa: PTH123 - pathlib takes 10 ms to import
        return file.read()


def _differs(pid: int, namespace: str) -> bool:
    return os.stat(f"/proc/{pid}/ns/{namespace}").st_ino != os.stat(f"/proc/self/ns/{namespace}").st_ino  # noqa: PTH116


def _cgroups(pid: int) -> list[str]:
    """The folder of a process in each mounted hierarchy. ValueError where one cannot be seen from here."""
    paths: dict[frozenset[str], str] = {}
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        _number, controllers, path = line.split(":", 2)
        if "/.." in path:
            raise ValueError("outside of this cgroup namespace")
        paths[frozenset(controllers.split(",")) - {""}] = path
    folders: dict[frozenset[str], str] = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _source, options = after.split()[:3]
        for names, path in paths.items():
            if kind == ("cgroup" if names else "cgroup2") and names <= {*options.split(",")}:
                inside = os.path.relpath(path, root)
                if not inside.startswith(".."):
                    folders.setdefault(names, f"{mount}/{inside}")
    if len(folders) != len(paths):
        raise ValueError("a hierarchy is not mounted")
    return list(folders.values())


def _label(pid: int) -> str | None:
    """The AppArmor profile that the process takes on when it executes; None where it takes on none."""
    try:
        label = _read(f"/proc/{pid}/attr/apparmor/exec").rstrip("\0\n")
    except FileNotFoundError:
        return None  # a kernel without AppArmor
    except OSError as error:
        if error.errno != errno.EINVAL or _profile(str(pid)) != _profile("self"):
            raise
        return None  # not confined
    return label.rpartition(" (")[0] if label.endswith(")") else label


def _profile(process: str) -> str:
    return _read(f"/proc/{process}/attr/apparmor/current")


def _filters(pid: int) -> list[str]:
    """The seccomp filters of a child, read by stopping it for a moment."""
    _ptrace(_PTRACE_SEIZE, pid)
    try:
        _ptrace(_PTRACE_INTERRUPT, pid)
        os.waitid(os.P_PID, pid, _WAIT)
        found: list[str] = []
        for index in range(_MAX_FILTERS + 1):
            try:
                length = _ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index)
            except FileNotFoundError:  # there are no more
                return found
            buffer = ctypes.create_string_buffer(length * _INSTRUCTION)
            _ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index, ctypes.addressof(buffer))
            found.insert(0, buffer.raw.hex())
        raise ValueError("too many filters")
    finally:
        _ptrace(_PTRACE_DETACH, pid)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result = int(_libc.ptrace(request, pid, address or None, data or None))
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class Entrance:
    """One way in, for one process: made in the worker while that still has the host's rights."""

    def __init__(self, learned: dict[str, Any], init: int) -> None:
        """`init` is a pidfd of the container's init. OSError where a cgroup has gone."""
        self._learned = learned
        self._init = init
        self._filters = [bytes.fromhex(program) for program in learned["filters"]]
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._cgroups = [
            os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for folder in learned["cgroups"]
        ]

    def fork(self, run: Callable[[Callable[[], None]], int]) -> int:
        """Call `run` in a new process inside; gives its pid, a child of this process.

        Its argument is to be called first: it puts all that confines in force and makes the process
        the container's root; OSError. The result of `run` is the exit code. This process is in the
        container's namespaces from then on too, but for that of pids. OSError where the container has
        ended.
        """
        _stay_out_of_files()
        # They get the container's user namespace: without this its root could look into both.
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        enter(self._init, self._learned["namespaces"])
        go, tell = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                os.close(tell)
                os._exit(run(self._confine) if os.read(go, 1) else _NOT_RUN)
            finally:
                os._exit(_NOT_RUN)
        os.close(go)
        try:
            for file in self._cgroups:
                os.write(file, str(pid).encode())
            os.write(tell, b"1")
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        finally:
            for fd in (tell, *self._cgroups):
                os.close(fd)
        return pid

    def _confine(self) -> None:
        """The profile comes before other credentials, the filters while there is the right to set them."""
        learned = self._learned
        if learned["label"] is not None:
            self._take_on(learned["label"])
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        _libc.personality(ctypes.c_ulong(learned["personality"]))
        for number in learned["dropped"]:
            _prctl(_PR_CAPBSET_DROP, number)
        if learned["no_new_privs"]:
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        for program in self._filters:
            argument = _Program(len(program) // _INSTRUCTION, program)
            if _libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(argument)):
                raise _error()

    def _take_on(self, label: str) -> None:
        """Written by the process itself, through the host's /proc: there may be none inside."""
        file = os.open("self/attr/apparmor/exec", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._proc)
        os.write(file, os.fsencode(f"exec {label}"))
        os.close(file)


def _stay_out_of_files() -> None:
    """From here on what lies at a path is the container's: no code and no text is taken from there."""
    sys.meta_path.clear()
    sys.path.clear()
    sys.tracebacklimit = 0


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0):
        raise _error()
