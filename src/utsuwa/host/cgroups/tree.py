"""What the cgroups of containers tell, on v1, v2 and hybrids of both. Blocking, but cgroupfs alone is asked.

A container's cgroup is found by its init. A systemd inside moves itself into `init.scope`, so the
path is cut back to the container's own folder, which liblxc names `lxc.payload.<storage name>`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAYLOAD_PREFIX = "lxc.payload."
"""How liblxc names a container's cgroup below `lxc.cgroup.dir`; a number may follow the name."""

UNIFIED = ""
"""The name under which version 2 stands beside the controllers of version 1."""
_V1_CONTROLLERS = (
    *("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc"),
    *("net_cls", "net_prio", "perf_event", "pids", "rdma"),
)
"""Among a hierarchy's mount options, these are controllers."""
_PROC = Path("/proc")


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy: where, and which of its cgroups is visible as its root."""

    mount: Path
    root: str


def frozen(pid: int, proc: Path = _PROC) -> bool:
    """Whether the container of this init is frozen, or about to be; False where it has ended."""
    folders = folders_of(pid, proc)
    if "freezer" in folders and _text(folders["freezer"] / "freezer.state") in ("FROZEN", "FREEZING"):
        return True
    return UNIFIED in folders and _fields(folders[UNIFIED] / "cgroup.events").get("frozen") == 1


def folders_of(pid: int, proc: Path = _PROC) -> dict[str, Path]:
    """The container's own folder in each hierarchy by controller; v2 under the empty name."""
    hierarchies = _hierarchies(proc)
    own = dict(_paths(proc / "self" / "cgroup"))
    folders = {}
    for controllers, path in _paths(proc / str(pid) / "cgroup"):
        for controller in controllers.split(","):
            hierarchy = hierarchies.get(controller)
            if hierarchy is not None:
                folders[controller] = _folder(hierarchy, container_path(path, own.get(controllers, "/")))
    return folders


def own_folder(proc: Path = _PROC) -> Path | None:
    """The folder of this process's cgroup in one of the hierarchies; None where no hierarchy is mounted."""
    hierarchies = _hierarchies(proc)
    for names, path in _paths(proc / "self" / "cgroup"):
        for name in names.split(","):
            if name in hierarchies:
                return _folder(hierarchies[name], path)
    return None


def controllers(proc: Path = _PROC) -> dict[str, tuple[int, Path]]:
    """The controllers that containers can have: version (1 or 2) and mount point of their hierarchy.

    Beside version 1 what version 2 still has does not count: liblxc hands it on to containers only
    where there is nothing else.
    """
    hierarchies = _hierarchies(proc)
    found = {name: (1, hierarchies[name].mount) for name in _V1_CONTROLLERS if name in hierarchies}
    if found or UNIFIED not in hierarchies:
        return found
    mount = hierarchies[UNIFIED].mount
    return {name: (2, mount) for name in (_text(mount / "cgroup.controllers") or "").split()}


def container_path(path: str, own: str = "/") -> str:
    """The container's own cgroup, where `path` is that of its init and `own` that of the daemon.

    A daemon that runs in such a container itself has that one's name on the way: it is passed over.
    """
    passed_over = sum(part.startswith(PAYLOAD_PREFIX) for part in own.split("/"))
    parts = path.split("/")
    for index, part in enumerate(parts):
        if part.startswith(PAYLOAD_PREFIX):
            if passed_over == 0:
                return "/".join(parts[: index + 1])
            passed_over -= 1
    return path.removesuffix("/init.scope") or "/"


def payloads(name: str, proc: Path = _PROC) -> list[Path]:
    """The cgroups of all containers of the daemon whose cgroup is `name`, in every hierarchy."""
    parents = _places(proc)
    found = [folder for parent in parents for folder in _folders_in(parent / name)]
    return [folder for folder in found if folder.name.startswith(PAYLOAD_PREFIX)]


def is_payload_of(folder: Path, container: str) -> bool:
    """Whether a cgroup has the name that a container's own gets."""
    return re.fullmatch(rf"{re.escape(PAYLOAD_PREFIX + container)}(?:-[0-9]+)?", folder.name) is not None


def processes(folder: Path) -> set[int]:
    """The processes in a cgroup and below it."""
    found = {int(pid) for pid in _lines(folder / "cgroup.procs") if pid.isdigit()}
    return found.union(*(processes(below) for below in _folders_in(folder)))


def thaw(folder: Path) -> None:
    """Let frozen processes of a cgroup go on, without liblxc; does nothing where they are not frozen."""
    for file, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):  # not of this hierarchy
            write(folder / file, text)


def write(file: Path, text: str) -> None:
    """In one system call, as cgroupfs wants it; never makes a file."""
    descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def remove_unused(name: str, proc: Path = _PROC, *, container: str | None = None) -> bool:
    """Take away the cgroup `name` of a daemon (its `lxc.cgroup.dir`) wherever nothing is left in it.

    liblxc makes it at the root of a hierarchy or below the cgroup in which the daemon runs itself.
    With `container` only what liblxc made for that one goes: a monitor that was killed, or whose
    container did not start, leaves its cgroups. What still has processes stays, which gives False.
    """
    wanted = re.compile(rf"lxc\.(?:monitor|payload)\.{re.escape(container or '')}(?:-[0-9]+)?")
    gone = True
    for parent in _places(proc):
        if container is None:
            gone &= _remove_empty(parent / name)
            continue
        for folder in _folders_in(parent / name):
            if wanted.fullmatch(folder.name):
                gone &= _remove_empty(folder)
    return gone


def _places(proc: Path) -> set[Path]:
    """Where liblxc may have made a daemon's cgroup."""
    hierarchies = _hierarchies(proc)
    parents = {hierarchy.mount for hierarchy in hierarchies.values()}
    for controllers, path in _paths(proc / "self" / "cgroup"):
        for controller in controllers.split(","):
            if controller in hierarchies:
                parents.add(_folder(hierarchies[controller], path))
    return parents


def _remove_empty(cgroup: Path) -> bool:
    """Remove a cgroup with all below it, but for those that have processes and the way to them."""
    for folder in _folders_in(cgroup):
        _remove_empty(folder)
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        pass
    except OSError:  # in use
        return False
    return True


def _folders_in(cgroup: Path) -> list[Path]:
    try:
        return [entry for entry in cgroup.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _folder(hierarchy: Hierarchy, path: str) -> Path:
    below = path
    if hierarchy.root != "/" and (path + "/").startswith(hierarchy.root + "/"):
        below = path[len(hierarchy.root) :]
    return hierarchy.mount / below.lstrip("/")


@functools.cache
def _hierarchies(proc: Path) -> dict[str, Hierarchy]:
    """The mounted hierarchies by controller, v2 under the empty name; the host's do not change."""
    found: dict[str, Hierarchy] = {}
    for line in _lines(proc / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        hierarchy = Hierarchy(Path(fields[4]), fields[3])
        names = [UNIFIED] if kind[0] == "cgroup2" else kind[2].split(",")
        for name in names:
            found.setdefault(name, hierarchy)
    return found


def _paths(file: Path) -> Iterator[tuple[str, str]]:
    """Controllers and path of each line of a `cgroup` file of /proc; nothing where the process is gone."""
    for line in _lines(file):
        _hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield controllers, path.removesuffix(" (deleted)")


def _lines(file: Path) -> list[str]:
    return (_text(file) or "").splitlines()


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None


def _fields(file: Path) -> dict[str, int]:
    """The `name number` lines of a file."""
    pairs = (line.split() for line in _lines(file))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
