"""The confinement of a container's processes, read back from the kernel and applied again.

liblxc's attach asks the monitor five questions, parses the seccomp policy and forks twice, each time.
So the first command of a container is attached by liblxc, and what the kernel then holds of that
process - its namespaces, cgroups, bounding set, personality, seccomp filters and AppArmor profile - is
read back (`read_back`) and applied to the later ones (`ConfinedProcess`). Nothing is computed from the
configuration: a later command gets just what liblxc gave, or none of it and liblxc is asked again.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

from utsuwa.host.helper import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.host.helper.messages import Confinement

_MAX_FILTERS = 8
_NOT_RUN = 126


def read_back(pid: int) -> Confinement | None:
    """The confinement of a process that liblxc has attached and that is held, a child of this one.

    None where it cannot all be read, or where it could not be applied: commands go on through liblxc.
    """
    try:
        ours, theirs = _status("self"), _status(str(pid))
        if int(ours["Seccomp"]) or _differs(pid, "time"):
            return None
        return {
            "namespaces": sum(flag for name, flag in kernel.NAMESPACES.items() if _differs(pid, name)),
            "cgroups": _cgroups(pid),
            "dropped": _bits(int(ours["CapBnd"], 16) & ~int(theirs["CapBnd"], 16)),
            "personality": int(_read(f"/proc/{pid}/personality"), 16),
            "no_new_privs": int(theirs["NoNewPrivs"]),
            "filters": _filters(pid) if int(theirs["Seccomp"]) else [],
            "label": _label(pid),
        }
    except (OSError, KeyError, ValueError):
        return None


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
    return [program.hex() for program in kernel.seccomp_filters(pid, _MAX_FILTERS)]


class ConfinedProcess:
    """A confinement for one process: prepared in the worker while that still has the host's rights."""

    def __init__(self, confinement: Confinement, init: int) -> None:
        """`init` is a pidfd of the container's init. OSError where a cgroup has gone."""
        self._confinement = confinement
        self._init = init
        self._filters = [bytes.fromhex(program) for program in confinement["filters"]]
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._cgroups = [
            os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for folder in confinement["cgroups"]
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
        """The profile comes before other credentials, the filters while there is the right to set them."""
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
        """Written by the process itself, through the host's /proc: there may be none inside."""
        file = os.open("self/attr/apparmor/exec", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._proc)
        os.write(file, os.fsencode(f"exec {label}"))
        os.close(file)


def _stay_out_of_files() -> None:
    """From here on what lies at a path is the container's: no code and no text is taken from there."""
    sys.meta_path.clear()
    sys.path.clear()
    sys.tracebacklimit = 0
