"""What stands in the way of saving a running container, as /proc shows it: nothing is frozen or changed.

Blocking; processes that end meanwhile are passed over. A container without findings can still turn out to be
impossible to save: CRIU knows more than this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.checkpoint import region_locks, sockets
from utsuwa.host.mounts.mounts import parse_mountinfo

_PROC = Path("/proc")
_NAMESPACES = ("mnt", "uts", "ipc", "pid", "user", "cgroup", "time")
"""A network namespace of its own is restored."""
_MAX_GHOST = 256 << 20
_NODES = frozenset(
    ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", "net/tun", "pts/ptmx")
)
_ANONYMOUS = {
    "[io_uring]": "uses io_uring",
    "[userfaultfd]": "uses userfaultfd",
    "[perf_event]": "measures performance events",
    "[landlock-ruleset]": "holds rules of landlock",
    "seccomp notify": "supervises system calls of others",
    "bpf-": "holds a BPF object",
    "[fuse]": "serves a FUSE file system",
}
_CREDENTIALS = "/run/credentials/"
_UNIT = re.compile(r"/([^/]+\.(?:service|scope))(?:/|$)")
_DELETED = " (deleted)"
_PRESSURE = re.compile(r"/proc/pressure/|/sys/fs/cgroup/.*\.pressure\Z")
_ADD_KEY = "set migration.stateful=true and restart the instance"


@dataclass(frozen=True)
class Obstacle:
    """One thing that cannot be saved, with what is to be done about it."""

    reason: str
    remedy: str
    pid: int = 0
    """The process, as the container's own processes see it; 0 if it is not about one."""
    process: str = ""
    unit: str = ""
    """The systemd unit of the process, if any."""
    passing: bool = False
    """Whether it passes by itself or is healed when the state is saved."""


@dataclass(frozen=True)
class _Process:
    folder: Path
    pid: int
    name: str
    unit: str
    status: Mapping[str, str]

    def obstacle(self, reason: str, remedy: str, *, passing: bool = False) -> Obstacle:
        return Obstacle(reason, remedy, self.pid, self.name, self.unit, passing)

    @property
    def stop(self) -> str:
        """How to stop it."""
        if self.unit.endswith(".service"):
            return f"stop the unit {self.unit}"
        return f"stop the process {self.pid} ({self.name})"


@dataclass(frozen=True)
class _Init:
    """What the processes are compared with."""

    namespaces: Mapping[str, str]
    console: tuple[int, int] | None
    lacking: Collection[str]
    """The kernel's modules for sockets that it lacks."""


def _device(path: Path) -> tuple[int, int] | None:
    """Return which device a node is, and on which file system; None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_rdev, status.st_dev) if status.st_rdev else None


def find(
    init_pid: int,
    *,
    prepared: bool,
    disks: frozenset[str] = frozenset(),
    lacking: Collection[str] = (),
    proc: Path = _PROC,
) -> list[Obstacle]:
    """Return what is found in the container of this init.

    `prepared` tells whether it runs with `migration.stateful`, `disks` are the mount points of its devices,
    `lacking` the kernel's modules for sockets that it lacks (`diagnosis.missing`).
    """
    folder = proc / str(init_pid)
    init = _Init(_namespaces(folder), _device(folder / "root/dev/console"), lacking)
    found = list(_mounts(proc / str(init_pid), disks, prepared=prepared))
    if _unread_netlink(proc / str(init_pid)):
        reason = "a netlink socket has unread messages"
        found.append(Obstacle(reason, "it passes within seconds of starts and changes", passing=True))
    for process in _processes(init_pid, proc):
        try:
            found += _of_process(process, init, prepared=prepared)
        except (OSError, ValueError):  # it has ended
            continue
    return found


def _processes(init_pid: int, proc: Path) -> Iterator[_Process]:
    """Yield init and its descendants, which does not include sessions of `exec`."""
    parents: dict[int, int] = {}
    status: dict[int, dict[str, str]] = {}
    pids = {init_pid}
    for folder in set(cgroups.folders_of(init_pid, proc).values()):
        pids |= cgroups.processes(folder)
    for pid in pids:
        try:
            lines = (proc / str(pid) / "status").read_text(errors="replace").splitlines()
        except OSError:
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        status[pid], parents[pid] = fields, int(fields.get("PPid", "0"))
    for pid in sorted(status):
        if _descends(pid, init_pid, parents):
            inner = status[pid].get("NSpid", str(pid)).split()
            number = int(inner[1]) if len(inner) > 1 else pid
            unit = _unit(proc / str(pid))
            yield _Process(proc / str(pid), number, status[pid].get("Name", "?"), unit, status[pid])


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    for _ in range(len(parents) + 1):
        if pid == ancestor:
            return True
        if pid not in parents:
            return False
        pid = parents[pid]
    return False


def _unit(folder: Path) -> str:
    try:
        text = (folder / "cgroup").read_text(errors="replace")
    except OSError:
        return ""
    units = [name for line in text.splitlines() for name in _UNIT.findall(line)]
    return units[-1] if units else ""


def _namespaces(folder: Path) -> dict[str, str]:
    found = {}
    for name in _NAMESPACES:
        try:
            found[name] = str((folder / "ns" / name).readlink())
        except OSError:
            continue
    return found


def _of_process(process: _Process, init: _Init, *, prepared: bool) -> Iterator[Obstacle]:
    if process.status.get("State", "").startswith("Z"):
        return
    links = _namespaces(process.folder).items()
    others = [name for name, link in links if init.namespaces.get(name, link) != link]
    if others:
        names = ", ".join("mount" if name == "mnt" else name for name in others)
        fixable = process.unit.endswith(".service") and not prepared
        reason = f"has namespaces of its own ({names})"
        yield process.obstacle(reason, _ADD_KEY if fixable else process.stop)
    tracer = process.status.get("TracerPid", "0")
    if tracer not in ("", "0"):
        yield process.obstacle("is being traced (strace, gdb)", "end the tracing")
    # The files of a process with mounts of its own may be on those of others.
    mounts = None if "mnt" in others else _mount_ids(process.folder)
    yield from _files(process, init, mounts, prepared=prepared)
    yield from _memory(process)


def _mount_ids(folder: Path) -> set[int]:
    return {mount.id for mount in parse_mountinfo((folder / "mountinfo").read_bytes())}


def _files(process: _Process, init: _Init, mounts: set[int] | None, *, prepared: bool) -> Iterator[Obstacle]:
    seen: set[str] = set()
    for entry in (process.folder / "fd").iterdir():
        try:
            link = os.fsdecode(entry.readlink())
            if link.startswith("anon_inode:"):
                kind = link.removeprefix("anon_inode:")
                obstacle = _anonymous(process, entry, kind, prepared=prepared)
            else:
                obstacle = _file(process, init, entry, link, mounts, prepared=prepared)
        except OSError:  # closed meanwhile
            continue
        if obstacle is not None and obstacle.reason not in seen:
            seen.add(obstacle.reason)
            yield obstacle


def _file(
    process: _Process, init: _Init, entry: Path, link: str, mounts: set[int] | None, *, prepared: bool
) -> Obstacle | None:
    if link.startswith("socket:"):
        protocol = sockets.protocol_of(entry)
        judged = sockets.judge(protocol, init.lacking, process.stop) if protocol else None
        return process.obstacle(*judged) if judged is not None else None
    if not link.startswith("/") or link.startswith("/memfd:"):
        return None
    if init.console is not None and _device(entry) == init.console:
        return None  # that of a restored container is a terminal of the host, and known
    path = link.removesuffix(_DELETED)
    if path.startswith("/dev/") and not _is_plain_node(path):
        return process.obstacle(f"has opened {path}", process.stop)
    if link.endswith(_DELETED) and entry.stat().st_size > _MAX_GHOST:
        return process.obstacle(f"has opened the deleted file {path}, which is too large", process.stop)
    if region_locks.is_lost(process.folder, entry.name, path):
        reason = f"has mapped {path} and locked parts of it, which would be unlocked"
        return process.obstacle(reason, f"{process.stop} (or `pragma journal_mode=delete` for SQLite)")
    if _PRESSURE.match(path) and _writes(process.folder / "fdinfo" / entry.name):
        remedy = process.stop if prepared else _ADD_KEY
        return process.obstacle(f"watches {path}, and would be woken up without end", remedy)
    mount = _field(process.folder / "fdinfo" / entry.name, "mnt_id")
    if mounts is not None and mount.isdigit() and int(mount) not in mounts and _leads_to(entry, link):
        return process.obstacle(f"has opened {path}, which is not in the instance", process.stop)
    return None


def _leads_to(entry: Path, link: str) -> bool:
    """Whether a descriptor is still that of the same file: its number is used again at once."""
    try:
        return str(entry.readlink()) == link
    except OSError:
        return False


def _writes(fdinfo: Path) -> bool:
    """Whether a descriptor is open for writing, as is needed to set a trigger."""
    return int(_field(fdinfo, "flags") or "0", 8) & os.O_ACCMODE != os.O_RDONLY


def _is_plain_node(path: str) -> bool:
    name = path.removeprefix("/dev/")
    return name in _NODES or name.startswith(("pts/", "shm/", "mqueue/")) or name == "shm"


def _anonymous(process: _Process, entry: Path, kind: str, *, prepared: bool) -> Obstacle | None:
    if kind == "inotify":
        text = (process.folder / "fdinfo" / entry.name).read_text(errors="replace")
        if any(line.startswith("inotify wd:") and "fhandle" not in line for line in text.splitlines()):
            remedy = "it is healed when the state is saved"
            return process.obstacle("watches a directory that is not cached", remedy, passing=True)
        return None
    for begin, reason in _ANONYMOUS.items():
        if kind.startswith(begin):
            remedy = _ADD_KEY if begin == "[io_uring]" and not prepared else process.stop
            return process.obstacle(reason, remedy)
    return None


def _field(file: Path, name: str) -> str:
    for line in file.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _memory(process: _Process) -> Iterator[Obstacle]:
    text = (process.folder / "maps").read_text(errors="replace")
    for name, reason in (("/secretmem", "has secret memory"), ("/anon_hugepage", "has mapped huge pages")):
        if name in text:
            yield process.obstacle(reason, process.stop)


def _mounts(folder: Path, disks: frozenset[str], *, prepared: bool) -> Iterator[Obstacle]:
    """Look for file systems that were mounted inside and cannot be mounted again."""
    try:
        mounts = parse_mountinfo((folder / "mountinfo").read_bytes())
    except OSError:
        return
    for mount in mounts:
        target = str(mount.target)
        if any(target == disk or target.startswith(f"{disk}/") for disk in disks):
            continue
        if mount.fstype == "ramfs" and target.startswith(_CREDENTIALS) and not prepared:
            yield Obstacle(f"{target} holds credentials of a service", _ADD_KEY)
        elif _is_foreign(mount.fstype, target):
            reason = f"{target} is a mount of the type {mount.fstype}"
            yield Obstacle(reason, f"unmount {target} in the instance")


def _is_foreign(fstype: str, target: str) -> bool:
    if fstype.startswith("fuse") and fstype not in ("fuse.lxcfs", "fusectl"):  # which are the host's
        return True
    return fstype in ("bpf", "ramfs") or (fstype == "overlay" and target != "/")


def _unread_netlink(folder: Path) -> bool:
    try:
        lines = (folder / "net" / "netlink").read_text(errors="replace").splitlines()[1:]
    except OSError:
        return False
    return any(len(fields) > 4 and fields[4] != "0" for fields in map(str.split, lines))
