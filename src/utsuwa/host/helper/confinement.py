"""The confinement of a container's processes, read back from the kernel and applied again.

Each time, liblxc's attach sends five requests to the monitor, parses the seccomp policy and forks twice.
So liblxc attaches only the first command of a container; the confinement of that process - its namespaces,
cgroups, bounding set, personality, seccomp filters and AppArmor profile - is then read back from the
kernel (`read_back`) and applied to later commands (`ConfinedProcess`). Nothing is derived from the
configuration: a later command gets exactly what liblxc has set up, or else liblxc attaches it.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

from utsuwa.host.helper import cgroups, kernel, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.host.helper.messages import Confinement

_MAX_FILTERS = 8
_NOT_RUN = 126


def read_back(pid: int) -> Confinement | None:
    """Return the confinement of a child process that liblxc has attached and that is stopped.

    Return None if any part cannot be read or applied: commands are then attached by liblxc.
    """
    try:
        ours, theirs = _status("self"), _status(str(pid))
        if int(ours["Seccomp"]) or _differs(pid, "time"):
            return None
        return {
            "namespaces": sum(flag for name, flag in kernel.NAMESPACES.items() if _differs(pid, name)),
            "cgroups": list(cgroups.folders(pid).values()),
            "dropped": _bits(int(ours["CapBnd"], 16) & ~int(theirs["CapBnd"], 16)),
            "personality": int(procfs.read(f"/proc/{pid}/personality"), 16),
            "no_new_privs": int(theirs["NoNewPrivs"]),
            "filters": _filters(pid) if int(theirs["Seccomp"]) else [],
            "label": _label(pid),
        }
    except (OSError, KeyError, ValueError):
        return None


def _bits(mask: int) -> list[int]:
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def _status(process: str) -> dict[str, str]:
    lines = procfs.read(f"/proc/{process}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _differs(pid: int, namespace: str) -> bool:
    return os.stat(f"/proc/{pid}/ns/{namespace}").st_ino != os.stat(f"/proc/self/ns/{namespace}").st_ino  # noqa: PTH116


def _label(pid: int) -> str | None:
    """Return the AppArmor profile to which the process changes on exec; None if there is none."""
    try:
        label = procfs.read(f"/proc/{pid}/attr/apparmor/exec").rstrip("\0\n")
    except FileNotFoundError:
        return None  # a kernel without AppArmor
    except OSError as error:
        if error.errno != errno.EINVAL or _profile(str(pid)) != _profile("self"):
            raise
        return None  # not confined
    return label.rpartition(" (")[0] if label.endswith(")") else label


def _profile(process: str) -> str:
    return procfs.read(f"/proc/{process}/attr/apparmor/current")


def _filters(pid: int) -> list[str]:
    """Return the filters. Raises ValueError if one notifies: only liblxc registers a listener for them."""
    programs = kernel.seccomp_filters(pid, _MAX_FILTERS)
    if any(kernel.notifies(program) for program in programs):
        raise ValueError("its system calls are intercepted")
    return [program.hex() for program in programs]


class ConfinedProcess:
    """The confinement of one process, prepared in the worker while that still has privileges on the host."""

    def __init__(self, confinement: Confinement, init: int) -> None:
        """`init` is a pidfd of the container's init. Raises OSError if a cgroup no longer exists."""
        self._confinement = confinement
        self._init = init
        self._filters = [bytes.fromhex(program) for program in confinement["filters"]]
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._cgroups = [
            os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for folder in confinement["cgroups"]
        ]

    def fork(self, run: Callable[[Callable[[], None]], int]) -> int:
        """Call `run` in a new child process inside the container; return its pid.

        `run` must first call its argument, which applies the confinement and makes the process the
        container's root, or raises OSError. The result of `run` is the exit code. Afterwards this process is
        in the container's namespaces too, except for PIDs. Raises OSError if the container has ended.
        """
        stay_out_of_files()
        # They get the container's user namespace: without this its root could inspect both.
        kernel.set_not_dumpable()
        kernel.setns(self._init, self._confinement["namespaces"])
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
        """The profile is set before other credentials, the filters while the process may still set them."""
        confinement = self._confinement
        if confinement["label"] is not None:
            self._take_on(confinement["label"])
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        kernel.set_personality(confinement["personality"])
        for number in confinement["dropped"]:
            kernel.drop_capability(number)
        if confinement["no_new_privs"]:
            kernel.set_no_new_privileges()
        for program in self._filters:
            kernel.add_seccomp_filter(program)

    def _take_on(self, label: str) -> None:
        """Set the profile through the host's /proc: the container may not have one."""
        file = os.open("self/attr/apparmor/exec", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._proc)
        os.write(file, os.fsencode(f"exec {label}"))
        os.close(file)


def stay_out_of_files() -> None:
    """Prevent loading of code and text by path, as paths now lead to the container's files."""
    sys.meta_path.clear()
    sys.path.clear()
    sys.tracebacklimit = 0
