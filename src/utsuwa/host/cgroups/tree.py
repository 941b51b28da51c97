"""The cgroups of containers on v1, v2 and hybrid hosts. Blocking, but only accesses cgroupfs.

A container's cgroup is found by its init. systemd moves itself into `init.scope`, so the path is truncated to
the container's own cgroup, which liblxc names `lxc.payload.<storage name>`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from utsuwa.host.helper.cgroups import PAYLOAD_PREFIX, container_path

UNIFIED = ""
"""The key of the version 2 hierarchy among the controllers of version 1."""
_V1_CONTROLLERS = (
    *("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc"),
    *("net_cls", "net_prio", "perf_event", "pids", "rdma"),
)
"""The mount options of a hierarchy that are controllers."""
_PROC = Path("/proc")


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy: its mount point, and the cgroup that is visible as its root."""

    mount: Path
    root: str


def frozen(pid: int, proc: Path = _PROC) -> bool:
    """Return whether the container of this init is frozen or being frozen; False if it has ended."""
    folders = folders_of(pid, proc)
    if "freezer" in folders and _text(folders["freezer"] / "freezer.state") in ("FROZEN", "FREEZING"):
        return True
    return UNIFIED in folders and _fields(folders[UNIFIED] / "cgroup.events").get("frozen") == 1


def is_frozen(folder: Path) -> bool:
    """Return whether all processes in a cgroup, of either version, are frozen by now."""
    if _text(folder / "freezer.state") == "FROZEN":
        return True
    return _fields(folder / "cgroup.events").get("frozen") == 1


def folders_of(pid: int, proc: Path = _PROC) -> dict[str, Path]:
    """Return the container's cgroup in each hierarchy by controller; v2 under the empty name.

    Hierarchies where it has none of its own are left out: version 1 shows a process that is ending in the
    root, where all of the host would be taken for the container.
    """
    hierarchies = _hierarchies(proc)
    own = dict(_paths(proc / "self" / "cgroup"))
    folders = {}
    for controllers, path in _paths(proc / str(pid) / "cgroup"):
        for controller in controllers.split(","):
            hierarchy = hierarchies.get(controller)
            if hierarchy is not None:
                folder = _folder(hierarchy, container_path(path, own.get(controllers, "/")))
                if folder.name.startswith(PAYLOAD_PREFIX):
                    folders[controller] = folder
    return folders


def has_left(pid: int, controllers: Collection[str], proc: Path = _PROC) -> bool:
    """Return whether a process is ending, which is shown in the root of a hierarchy of these controllers.

    That is so on version 1 until its parent has waited for it; True also if it is gone.
    """
    paths = list(_paths(proc / str(pid) / "cgroup"))
    return not paths or any(
        not {*path.split("/")} - {"", ".."} and not {*names.split(",")}.isdisjoint(controllers)
        for names, path in paths
    )


def path_of(pid: int, proc: Path = _PROC) -> str:
    """Return the container's cgroup as /proc shows it, the same in all hierarchies; empty if it has ended."""
    own = dict(_paths(proc / "self" / "cgroup"))
    found = [container_path(path, own.get(names, "/")) for names, path in _paths(proc / str(pid) / "cgroup")]
    return found[-1] if found else ""


def unified_mount(proc: Path = _PROC) -> Path | None:
    """Return where version 2 is mounted, as /proc shows its cgroups; None if it is not."""
    hierarchy = _hierarchies(proc).get(UNIFIED)
    return hierarchy.mount if hierarchy is not None and hierarchy.root == "/" else None


def own_folder(proc: Path = _PROC) -> Path | None:
    """Return this process's cgroup in one of the hierarchies; None if no hierarchy is mounted."""
    hierarchies = _hierarchies(proc)
    for names, path in _paths(proc / "self" / "cgroup"):
        for name in names.split(","):
            if name in hierarchies:
                return _folder(hierarchies[name], path)
    return None


def controllers(proc: Path = _PROC) -> dict[str, tuple[int, Path]]:
    """Return the controllers available to containers: version (1 or 2) and mount point of their hierarchy.

    On a hybrid host, controllers of version 2 are ignored: liblxc delegates them to containers only if
    there is no other hierarchy.
    """
    hierarchies = _hierarchies(proc)
    found = {name: (1, hierarchies[name].mount) for name in _V1_CONTROLLERS if name in hierarchies}
    if found or UNIFIED not in hierarchies:
        return found
    mount = hierarchies[UNIFIED].mount
    return {name: (2, mount) for name in (_text(mount / "cgroup.controllers") or "").split()}


def payloads(name: str, proc: Path = _PROC) -> list[Path]:
    """Return the cgroups, in every hierarchy, of all containers of the daemon whose cgroup is `name`."""
    parents = _places(proc)
    found = [folder for parent in parents for folder in _folders_in(parent / name)]
    return [folder for folder in found if folder.name.startswith(PAYLOAD_PREFIX)]


def is_payload_of(folder: Path, container: str) -> bool:
    """Return whether a cgroup is named as that of the container."""
    return container_of(folder, (container,)) is not None


def container_of(folder: Path, containers: Collection[str]) -> str | None:
    """Return to which of these containers a cgroup belongs by its name: the one of just that name, if any."""
    if not folder.name.startswith(PAYLOAD_PREFIX):
        return None
    name = folder.name.removeprefix(PAYLOAD_PREFIX)
    for candidate in (name, re.sub(r"-[0-9]+\Z", "", name)):
        if candidate in containers:
            return candidate
    return None


def processes(folder: Path) -> set[int]:
    """Return the processes in a cgroup and its descendants."""
    found = {int(pid) for pid in _lines(folder / "cgroup.procs") if pid.isdigit()}
    return found.union(*(processes(below) for below in _folders_in(folder)))


def thaw_all(pid: int) -> None:
    """Thaw a process in all hierarchies."""
    for folder in folders_of(pid).values():
        thaw(folder)


def thaw(folder: Path) -> None:
    """Thaw a cgroup without liblxc; does nothing if it is not frozen."""
    for file, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):  # not in this hierarchy
            write(folder / file, text)


def write(file: Path, text: str) -> None:
    """Write in one system call, as cgroupfs requires; never creates a file."""
    descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def remove_unused(name: str, proc: Path = _PROC, *, container: str | None = None) -> bool:
    """Remove the cgroup `name` of a daemon (its `lxc.cgroup.dir`) in all hierarchies where it is unused.

    liblxc creates it at the root of a hierarchy or below the daemon's own cgroup. With `container`, only the
    cgroups that liblxc created for that container are removed: a monitor that was killed, or whose container
    did not start, leaves them behind. Cgroups with processes are kept; returns False if there are any.
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
    """Return where liblxc may have created a daemon's cgroup."""
    hierarchies = _hierarchies(proc)
    parents = {hierarchy.mount for hierarchy in hierarchies.values()}
    for controllers, path in _paths(proc / "self" / "cgroup"):
        for controller in controllers.split(","):
            if controller in hierarchies:
                parents.add(_folder(hierarchies[controller], path))
    return parents


def _remove_empty(cgroup: Path) -> bool:
    """Remove a cgroup and its descendants, except those with processes and their ancestors.

    Those of a running container stay as they are: its init watches even the empty ones.
    """
    if cgroup.name.startswith(PAYLOAD_PREFIX) and processes(cgroup):
        return False
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
    """Return the mounted hierarchies by controller, v2 under the empty name (cached)."""
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
    """Yield controllers and path of each line of a `cgroup` file of /proc; nothing if the process is gone."""
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
    """Parse the `name number` lines of a file."""
    pairs = (line.split() for line in _lines(file))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
