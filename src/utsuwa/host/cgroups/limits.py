"""Resource limits of running containers: what the host supports, and writing them to cgroups.

Limits are written to the container's cgroup, not that of its init, so that they also apply to the cgroups
that systemd creates in the container. Blocking, but only accesses cgroupfs.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from utsuwa.core.errors import InvalidConfig
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.processes import oom_scores
from utsuwa.host.processes.oom_scores import OOM_SCORE_MIN
from utsuwa.host.system.facts import parse_cpu_list

_PROC = Path("/proc")
_SYS = Path("/sys")
_GONE = (errno.ENODEV, errno.ESRCH)
_MEMORY_MAX = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max")


@dataclass(frozen=True)
class LimitFacts:
    """Facts about the host that determine which limits can be set, and how."""

    cpus: frozenset[int]
    """The CPUs that are online and available to this host's cgroups."""
    isolated: frozenset[int] = frozenset()
    """CPUs that the kernel's command line isolates."""
    nodes: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """The NUMA nodes with their CPUs; none if the kernel does not support NUMA."""
    memory_nodes: frozenset[int] = frozenset()
    """The NUMA nodes that have memory which is available to this host's cgroups."""
    memory: int = 0
    """Total memory in bytes."""
    controllers: Mapping[str, int] = field(default_factory=dict)
    """Controllers and the cgroup version (1 or 2) of their hierarchy."""
    swap: bool = False
    """Whether swap accounting is enabled."""
    swappiness: int = 60
    """The default swappiness."""
    huge_pages: frozenset[str] = frozenset()
    """Sizes of huge pages in the spelling of cgroup files: `2MB`."""
    lowest_oom_score: int = OOM_SCORE_MIN
    """The lowest adjustment of OOM scores that this process may set."""


@dataclass(frozen=True)
class Knob:
    """One file of a controller, and the config key that determines its value."""

    key: str
    controller: str
    version: int
    file: str

    @property
    def lxc(self) -> str:
        """The key for it in lxc.conf."""
        return f"lxc.cgroup2.{self.file}" if self.version == 2 else f"lxc.cgroup.{self.file}"


Plan = Mapping[Knob, str]
"""The value of each file, in the order of writing."""

Written = list[tuple[Path, str]]
"""Files that were written, with their previous values."""


def read_limit_facts(proc: Path = _PROC, sys: Path = _SYS) -> LimitFacts:
    """Return the host's current facts; CPUs may be hot-plugged."""
    mounts = cgroups.controllers(proc)
    controllers = {name: version for name, (version, _) in mounts.items()}
    online = parse_cpu_list(_text(sys / "devices/system/cpu/online") or "0")
    cpus = frozenset(online & _allowed(mounts, "cpus") or online)
    nodes = sys / "devices/system/node"
    memory = parse_cpu_list(_text(nodes / "has_memory"))
    return LimitFacts(
        cpus=cpus,
        isolated=frozenset(parse_cpu_list(_text(sys / "devices/system/cpu/isolated"))),
        nodes={
            node: cpus & parse_cpu_list(_text(nodes / f"node{node}/cpulist"))
            for node in sorted(parse_cpu_list(_text(nodes / "online")))
        },
        memory_nodes=frozenset(memory & _allowed(mounts, "mems") or memory),
        memory=total_memory(proc),
        controllers=controllers,
        swap=_swap_accounted(mounts, proc),
        swappiness=int(_text(proc / "sys/vm/swappiness") or 60),
        huge_pages=frozenset(_huge_page_sizes(sys / "kernel/mm/hugepages")),
        lowest_oom_score=oom_scores.lowest(proc),
    )


def _allowed(mounts: Mapping[str, tuple[int, Path]], kind: str) -> set[int]:
    """Return the CPUs (`cpus`) or NUMA nodes (`mems`) of the root cgroup; empty without cpusets."""
    if "cpuset" not in mounts:
        return set()
    version, mount = mounts["cpuset"]
    name = f"cpuset.{kind}.effective" if version == 2 else f"cpuset.effective_{kind}"
    return parse_cpu_list(_text(mount / name) or (_text(mount / f"cpuset.{kind}") if version == 1 else ""))


def _swap_accounted(mounts: Mapping[str, tuple[int, Path]], proc: Path) -> bool:
    """On version 2 the root cgroup does not have this file, so its children are checked."""
    if "memory" not in mounts:
        return False
    version, mount = mounts["memory"]
    if version == 1:
        return (mount / "memory.memsw.limit_in_bytes").exists()
    folders = [folder for folder in mount.iterdir() if (folder / "memory.max").exists()]
    if not folders:  # no child has the controller yet: accounting is the default where swap is supported
        return (proc / "swaps").exists()
    return any((folder / "memory.swap.max").exists() for folder in folders)


def total_memory(proc: Path) -> int:
    """Return the host's memory in bytes."""
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _huge_page_sizes(folder: Path) -> Iterable[str]:
    """The kernel names its directories in kB, cgroup files use the largest unit."""
    for entry in folder.glob("hugepages-*kB"):
        kilobytes = int(entry.name.removeprefix("hugepages-").removesuffix("kB"))
        for unit, size in (("GB", 1024 * 1024), ("MB", 1024), ("KB", 1)):
            if kilobytes >= size:
                yield f"{kilobytes // size}{unit}"
                break


# ---- writing


def change(pid: int, plan: Plan, proc: Path = _PROC) -> Written:
    """Write the files of the container whose init is `pid`; all or none.

    Raises InvalidConfig, naming the key, if the kernel rejects a value or the container's usage exceeds
    the new limit. Does nothing if the container has ended.
    """
    folders = cgroups.folders_of(pid, proc)
    if not folders or cgroups.has_left(pid, {knob.controller for knob in plan if knob.version == 1}, proc):
        return []
    written: Written = []
    try:
        for knob, path, value in _in_order(plan, folders):
            before = _text(path).partition("\n")[0]
            _check_use(knob, path.parent, value)
            _write_knob(knob, path, value)
            written.append((path, before))
    except BaseException:
        restore(written)
        raise
    return written


def restore(written: Written) -> None:
    """Restore the values that `change` overwrote, if the container still exists."""
    for path, before in reversed(written):
        try:
            cgroups.write(path, before)
        except OSError as error:
            if error.errno not in (*_GONE, errno.ENOENT):
                raise


def _in_order(plan: Plan, folders: Mapping[str, Path]) -> list[tuple[Knob, Path, str]]:
    """Add the paths and order the writes. On version 1 the limit of memory and swap together may never be
    below that of memory: it is written first if raised, and last if lowered."""
    steps = [(knob, _path(knob, folders), value) for knob, value in plan.items()]
    for knob, path, value in steps:
        if knob.file == "memory.memsw.limit_in_bytes" and _rises(path, value):
            steps.sort(key=lambda step: step[0] != knob)
            break
    return steps


def _path(knob: Knob, folders: Mapping[str, Path]) -> Path:
    folder = folders.get("" if knob.version == 2 else knob.controller)
    if folder is None:
        raise InvalidConfig(f"Cannot set {knob.key!r}: this host has no {knob.controller} controller")
    return folder / knob.file


def _rises(path: Path, value: str) -> bool:
    return value == "-1" or int(value) >= int(_text(path) or 0)


def _check_use(knob: Knob, folder: Path, value: str) -> None:
    """Reject values that the kernel would accept, but at the expense of the container's processes."""
    if not value.isdecimal():
        return
    if knob.file == "pids.max":
        used = _number(folder / "pids.current")
        if used > int(value):
            raise InvalidConfig(
                f"Cannot set {knob.key!r} to {value}: the instance has {used} processes and threads now"
            )
    elif knob.file == "memory.max":
        _make_room(knob, folder, int(value))


def _make_room(knob: Knob, folder: Path, limit: int) -> None:
    """Reclaim memory first: on version 2, lowering the limit would kill processes until usage is below it."""
    if _number(folder / "memory.current") <= limit:
        return
    high = folder / "memory.high"
    before = _text(high)
    cgroups.write(high, str(limit))  # reclaims before it returns
    try:
        used = _number(folder / "memory.current")
    finally:
        cgroups.write(high, before)
    if used > limit:
        raise _memory_in_use(knob, limit, used)


def _memory_in_use(knob: Knob, limit: int, used: int) -> InvalidConfig:
    return InvalidConfig(
        f"Cannot set {knob.key!r} to {limit} bytes: the instance uses {used} bytes, which cannot "
        "be reclaimed; stop something inside first, or choose a higher limit"
    )


def _write_knob(knob: Knob, path: Path, value: str) -> None:
    try:
        cgroups.write(path, value)
    except OSError as error:
        if error.errno in _GONE:
            return
        if error.errno == errno.ENOENT:
            raise InvalidConfig(
                f"Cannot set {knob.key!r}: this host's kernel has no {knob.file} for it"
            ) from error
        if error.errno == errno.EBUSY and knob.file in _MEMORY_MAX:
            used = _number(path.with_name(knob.file.replace("limit_in_bytes", "usage_in_bytes")))
            raise _memory_in_use(knob, int(value), used) from error
        raise InvalidConfig(
            f"Cannot set {knob.key!r}: the kernel refuses {value!r} for {knob.file} ({error.strerror})"
        ) from error


# ---- disks


_DISK_WEIGHTS = (
    (1, "blkio", "blkio.weight", 500),
    (1, "blkio", "blkio.bfq.weight", 100),
    (2, "", "io.weight", 100),
    (2, "", "io.bfq.weight", 100),
)


def disk_weights(pid: int, proc: Path = _PROC) -> list[tuple[int, str, str, int]]:
    """Return version, controller, name and default value of the files for a container's I/O weight.

    There is one for each I/O scheduler of the kernel; the disk's scheduler determines which one applies.
    """
    folders = cgroups.folders_of(pid, proc)
    return [
        (version, controller, file, usual)
        for version, controller, file, usual in _DISK_WEIGHTS
        if controller in folders and (folders[controller] / file).exists()
    ]


def has_disk_weights(proc: Path = _PROC) -> bool:
    """Return whether an I/O scheduler of this host has weights; the root cgroup does not tell."""
    mounts = cgroups.controllers(proc)
    mount = next((mounts[name][1] for name in ("blkio", "io") if name in mounts), None)
    if mount is None or not mount.is_dir():  # a mount that this mount namespace does not show
        return False
    below = [folder for folder in mount.iterdir() if folder.is_dir()]
    return not below or any((folder / file).exists() for folder in below for *_, file, _ in _DISK_WEIGHTS)


# ---- CPUs and NUMA nodes


CpusetFile = Literal["cpuset.cpus", "cpuset.mems"]


def pinned(pid: int, file: CpusetFile = "cpuset.cpus", *, proc: Path = _PROC) -> frozenset[int]:
    """Return the CPUs or NUMA nodes of the container; empty if it is not pinned or has ended."""
    path = _cpuset(pid, file, proc)
    return frozenset(parse_cpu_list(_text(path))) if path else frozenset()


def pin(
    pid: int, numbers: frozenset[int] | None, file: CpusetFile = "cpuset.cpus", *, proc: Path = _PROC
) -> None:
    """Pin a container to these CPUs or NUMA nodes, or to all of its parent for None. Raises OSError.

    Does nothing if the container has ended.
    """
    path = _cpuset(pid, file, proc)
    if path is None:
        return
    try:
        if path.parent.joinpath("cgroup.controllers").exists():
            cgroups.write(path, cpu_list(numbers) if numbers else "\n")
        else:
            _pin_v1(path, numbers or parse_cpu_list(_text(path.parent.parent / path.name)))
    except OSError as error:
        if error.errno not in (*_GONE, errno.ENOENT):
            raise


def _pin_v1(path: Path, numbers: Iterable[int]) -> None:
    """Version 1 rejects removing what a descendant still has: change descendants first."""
    wanted = frozenset(numbers)
    cgroups.write(path, cpu_list(wanted | parse_cpu_list(_text(path))))
    for child in path.parent.iterdir():
        below = child / path.name
        if child.is_dir() and (has := parse_cpu_list(_text(below))) - wanted:
            _pin_v1(below, has & wanted or wanted)
    cgroups.write(path, cpu_list(wanted))


def _cpuset(pid: int, file: CpusetFile, proc: Path) -> Path | None:
    folders = cgroups.folders_of(pid, proc)
    folder = folders.get("cpuset", folders.get(""))
    return folder / file if folder and (folder / file).exists() else None


def cpu_list(cpus: Iterable[int]) -> str:
    """Format as the kernel does: `0-3,8`."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


# ---- limits of a process


Rlimit = tuple[int, int]
"""Soft and hard limit; -1 is unlimited."""


def rlimits(pid: int, names: Iterable[str]) -> dict[str, Rlimit]:
    """Return limits of a process by lower-case name (`nofile`); empty if it has ended."""
    try:
        return {name: resource.prlimit(pid, _number_of(name)) for name in names}
    except ProcessLookupError:
        return {}


def set_rlimits(pid: int, limits: Mapping[str, Rlimit]) -> dict[str, Rlimit]:
    """Set limits of a process, all or none, and return the previous ones. Raises InvalidConfig."""
    before: dict[str, Rlimit] = {}
    for name, limit in limits.items():
        try:
            before[name] = resource.prlimit(pid, _number_of(name), limit)
        except ProcessLookupError:
            return before
        except (OSError, ValueError) as error:
            set_rlimits(pid, before)
            raise InvalidConfig(
                f"Cannot set 'limits.kernel.{name}' while the instance runs: {error}"
            ) from error
    return before


def numbered(limits: Mapping[str, Rlimit]) -> list[tuple[int, int, int]]:
    """Return the limits with the kernel's numbers instead of names."""
    return [(_number_of(name), soft, hard) for name, (soft, hard) in limits.items()]


def _number_of(name: str) -> int:
    return _RLIMITS[name]


_RLIMITS = {
    name: number
    for number, name in enumerate(
        (
            *("cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as"),
            *("locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"),
        )
    )
}
"""The kernel's numbers, as Python does not define all of them. The same on all architectures except
alpha, mips and sparc."""


# ---- files


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdecimal() else 0
