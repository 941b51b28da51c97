"""Resource limits: conversion of the expanded config to cgroup files, at start and live.

`plan` is pure; a start passes its lines to liblxc, a live change writes differences to the running
container's cgroups. `cpu_balance` assigns CPUs, considering all instances together.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import in_thread
from utsuwa.core.units import parse_bytes
from utsuwa.core.warning_types import LIMITS_NOT_APPLIED
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups.limits import Knob, LimitFacts, Rlimit
from utsuwa.host.processes import oom_scores
from utsuwa.host.system import descriptors
from utsuwa.host.system.facts import parse_cpu_list
from utsuwa.instances.model import Running
from utsuwa.operations.warnings import Warnings

log = logging.getLogger(__name__)

Config = Mapping[str, str]
Lines = Iterator[tuple[Knob, str]]

_PREFIX = "limits."
_KERNEL = "limits.kernel."
_OPEN_FILES = "limits.kernel.nofile"
_HUGE_PAGES = "limits.hugepages."
_NODES = "limits.cpu.nodes"
BALANCED = "balanced"
"""The value of `limits.cpu.nodes` for the least busy node."""
_TOP_PRIORITY = 10
_MIDDLE_PRIORITY = 5
_MAX_PROCESSES = 2**22
"""The maximum of any kernel; cgroups reject higher numbers."""
_CPU_PERIOD = 100_000
"""Microseconds; the kernel's default."""


def plan(config: Config, facts: LimitFacts) -> dict[Knob, str]:
    """Return the value of every file, which is the kernel's default for unset keys.

    Limits that this host does not support are omitted: `check` rejects them. For disks, see `disk_plan`.
    """
    parts = (_memory(config, facts), _cpu(config, facts), _processes(config, facts))
    return {knob: value for part in (*parts, _huge_pages(config, facts)) for knob, value in part}


def start_lines(config: Config, facts: LimitFacts) -> list[tuple[str, str]]:
    """Return the limits of a container that is about to start, as lines of lxc.conf."""
    return [(knob.lxc, value) for knob, value in _differences(plan({}, facts), plan(config, facts)).items()]


def cpuset_lines(
    cpus: frozenset[int] | None, nodes: frozenset[int] | None, facts: LimitFacts
) -> list[tuple[str, str]]:
    """Return the lines that pin a container to its CPUs and NUMA nodes from the start."""
    version = _version(facts, "cpuset")
    return [
        (Knob("limits.cpu", "cpuset", version, file).lxc, cgroup_limits.cpu_list(numbers))
        for file, numbers in (("cpuset.cpus", cpus), ("cpuset.mems", nodes))
        if numbers is not None
    ]


def limited(config: Config) -> bool:
    return any(key.startswith(_PREFIX) for key in config)


def _differences(old: Mapping[Knob, str], new: Mapping[Knob, str]) -> dict[Knob, str]:
    return {knob: value for knob, value in new.items() if old.get(knob) != value}


_CONTROLLERS = {
    "limits.cpu": "cpuset",
    "limits.cpu.allowance": "cpu",
    "limits.cpu.nodes": "cpuset",
    "limits.cpu.priority": "cpu",
    "limits.disk.priority": "io",
    "limits.memory": "memory",
    "limits.memory.swap": "memory",
    "limits.memory.swap.priority": "memory",
    "limits.processes": "pids",
}


def check(config: Config, facts: LimitFacts) -> None:
    """Raise InvalidConfig for limits that this host does not support."""
    for key, controller in _CONTROLLERS.items():
        if config.get(key) and not _version(facts, controller):
            raise InvalidConfig(
                f"Cannot enforce {key!r}: this host's kernel has no cgroup controller {controller!r}; "
                "unset it, or boot the kernel with that controller enabled"
            )
    if not facts.swap and not _is_bool(config.get("limits.memory.swap", "")):
        raise InvalidConfig(
            "Cannot enforce a size in 'limits.memory.swap': this host's kernel does not account for swap; "
            "unset it, or boot the kernel with swapaccount=1"
        )
    _check_cpus(config, facts)
    _check_nodes(config, facts)
    _check_oom_priority(config, facts)
    _check_huge_pages(config, facts)


def _check_cpus(config: Config, facts: LimitFacts) -> None:
    """Reject a set in `limits.cpu` with CPUs that the host does not have."""
    wanted = cpus_named(config.get("limits.cpu", ""))
    if lacking := wanted - facts.cpus:
        raise InvalidConfig(
            f"Invalid value {config['limits.cpu'][:60]!r} for 'limits.cpu': this host has no CPU "
            f"{cgroup_limits.cpu_list(lacking)}; it has {cgroup_limits.cpu_list(facts.cpus)}"
        )


def _check_nodes(config: Config, facts: LimitFacts) -> None:
    """Reject NUMA nodes that the host does not have."""
    value = config.get(_NODES, "")
    if value and not facts.nodes:
        raise InvalidConfig(
            f"Cannot enforce {_NODES!r}: this host's kernel does not support NUMA; "
            "unset it, or boot a kernel with CONFIG_NUMA"
        )
    if lacking := nodes_named(value) - facts.nodes.keys():
        raise InvalidConfig(
            f"Invalid value {value[:60]!r} for {_NODES!r}: this host has no NUMA node "
            f"{cgroup_limits.cpu_list(lacking)}; it has {cgroup_limits.cpu_list(facts.nodes)}"
        )


def nodes_named(value: str) -> frozenset[int]:
    """Return the NUMA nodes of a set such as `0-1`; empty for `balanced`."""
    return frozenset() if value == BALANCED else frozenset(parse_cpu_list(value))


def _check_oom_priority(config: Config, facts: LimitFacts) -> None:
    if oom_priority(config) < facts.lowest_oom_score:
        raise InvalidConfig(
            f"Cannot enforce {oom_scores.KEY!r}: the daemon has no CAP_SYS_RESOURCE on the host, so the key "
            f"must be at least {facts.lowest_oom_score} here"
        )


def oom_priority(config: Config) -> int:
    """Return the adjustment of OOM scores; containers without one inherit that of the daemon."""
    value = config.get(oom_scores.KEY, "")
    return int(value) if value else oom_scores.own()


def cpus_named(value: str) -> frozenset[int]:
    """Return the CPUs of a set such as `0-2,4`; empty for a number of CPUs."""
    return frozenset() if value.isdecimal() else frozenset(parse_cpu_list(value))


def _version(facts: LimitFacts, controller: str) -> int:
    """Return the cgroup version of a controller, 0 if the host does not have it. v1 calls `io` `blkio`."""
    if controller == "io" and "blkio" in facts.controllers:
        return facts.controllers["blkio"]
    return facts.controllers.get(controller, 0)


# ---- memory


def _memory(config: Config, facts: LimitFacts) -> Lines:
    version = _version(facts, "memory")
    if version == 1:
        yield from _memory_v1(config, facts)
    elif version == 2:
        yield from _memory_v2(config, facts)


def _memory_limits(config: Config, facts: LimitFacts) -> tuple[int | None, int | None]:
    """Return the hard and the soft limit in bytes; None if unlimited."""
    value = config.get("limits.memory", "")
    if not value:
        return None, None
    limit = facts.memory * int(value[:-1]) // 100 if value.endswith("%") else parse_bytes(value)
    return (None, limit) if config.get("limits.memory.enforce", "") == "soft" else (limit, None)


def _swap(config: Config) -> bool | int:
    """Return whether swap may be used, or the limit in bytes."""
    value = config.get("limits.memory.swap", "")
    return parse_bool(value or "true") if _is_bool(value) else parse_bytes(value)


def _is_bool(value: str) -> bool:
    try:
        parse_bool(value)
    except InvalidConfig:
        return False
    return True


def _memory_v1(config: Config, facts: LimitFacts) -> Lines:
    """cgroup v1 counts memory and swap together: by default the limit of memory applies to their sum."""

    def knob(name: str, key: str = "limits.memory") -> Knob:
        return Knob(key, "memory", 1, f"memory.{name}")

    hard, soft = _memory_limits(config, facts)
    swap = _swap(config)
    yield knob("limit_in_bytes"), _or(hard, "-1")
    if facts.swap:
        both = None if hard is None else hard + int(0 if isinstance(swap, bool) else swap)
        yield knob("memsw.limit_in_bytes"), _or(both, "-1")
    yield knob("soft_limit_in_bytes"), _or(soft, "-1")
    priority = int(config.get("limits.memory.swap.priority") or _TOP_PRIORITY)
    readiness = 0 if swap is False else min(100, facts.swappiness + _TOP_PRIORITY - priority)
    yield knob("swappiness", "limits.memory.swap"), str(readiness)


def _memory_v2(config: Config, facts: LimitFacts) -> Lines:
    """cgroup v2 counts swap separately: by default the limit of swap is that of memory."""

    def knob(name: str, key: str = "limits.memory") -> Knob:
        return Knob(key, "memory", 2, f"memory.{name}")

    hard, soft = _memory_limits(config, facts)
    swap = _swap(config)
    yield knob("max"), _or(hard, "max")
    # The kernel reclaims memory above this limit first.
    yield knob("low"), _or(soft, "0")
    if facts.swap:
        size = (hard if swap else 0) if isinstance(swap, bool) else swap
        yield knob("swap.max", "limits.memory.swap"), _or(size, "max")


def _or(limit: int | None, unlimited: str) -> str:
    return unlimited if limit is None else str(limit)


# ---- processors, processes, huge pages


def _cpu(config: Config, facts: LimitFacts) -> Lines:
    version = _version(facts, "cpu")
    if not version:
        return
    allowance = config.get("limits.cpu.allowance", "")
    share = cpu_share(allowance, config.get("limits.cpu.priority", ""))
    times = re.fullmatch(r"([0-9]+)ms/([0-9]+)ms", allowance)
    quota, period = (int(times[1]) * 1000, int(times[2]) * 1000) if times else (None, _CPU_PERIOD)

    def knob(name: str) -> Knob:
        return Knob("limits.cpu.allowance", "cpu", version, f"cpu.{name}")

    if version == 1:
        yield knob("shares"), str(max(2, round(share * 1024)))
        yield knob("cfs_period_us"), str(period)
        yield knob("cfs_quota_us"), "-1" if quota is None else str(quota)
    else:
        yield knob("weight"), str(max(1, round(share * 100)))
        yield knob("max"), f"{'max' if quota is None else quota} {period}"


def cpu_share(allowance: str, priority: str) -> float:
    """Return the share of CPU time on a busy host, relative to 1.0 for an instance without limits.

    It is the percentage of the allowance, reduced by an eleventh for each step of priority below 10.
    """
    percent = int(allowance[:-1]) if allowance.endswith("%") else 100
    return percent / 100 * (int(priority or _TOP_PRIORITY) + 1) / (_TOP_PRIORITY + 1)


def _processes(config: Config, facts: LimitFacts) -> Lines:
    if version := _version(facts, "pids"):
        limit = int(config.get("limits.processes") or _MAX_PROCESSES)
        knob = Knob("limits.processes", "pids", version, "pids.max")
        yield knob, str(limit) if limit < _MAX_PROCESSES else "max"


def _huge_pages(config: Config, facts: LimitFacts) -> Lines:
    version = _version(facts, "hugetlb")
    if not version:
        return
    name, unlimited = ("limit_in_bytes", "-1") if version == 1 else ("max", "max")
    for size in sorted(facts.huge_pages):
        value = config.get(_HUGE_PAGES + size, "")
        knob = Knob(_HUGE_PAGES + size, "hugetlb", version, f"hugetlb.{size}.{name}")
        yield knob, str(parse_bytes(value)) if value else unlimited


def _check_huge_pages(config: Config, facts: LimitFacts) -> None:
    has = facts.huge_pages if _version(facts, "hugetlb") else frozenset()
    for key, value in config.items():
        if value and key.startswith(_HUGE_PAGES) and key.removeprefix(_HUGE_PAGES) not in has:
            sizes = " and ".join(sorted(has)) or "none"
            raise InvalidConfig(
                f"Cannot enforce {key!r}: this host can limit huge pages of these sizes: {sizes}"
            )


# ---- disks


def disk_plan(config: Config, pid: int) -> dict[Knob, str]:
    """Return the weight of disk requests, for the files that the container's cgroup has.

    Priority 5 is the kernel's default weight. Raises InvalidConfig for a priority if the kernel has no such
    file.
    """
    priority = config.get("limits.disk.priority", "")
    weights = cgroup_limits.disk_weights(pid)
    if priority and not weights:
        raise InvalidConfig(
            "Cannot enforce 'limits.disk.priority': this host's kernel does not weight disk requests"
        )
    factor = max(int(priority or _MIDDLE_PRIORITY), 0.1) / _MIDDLE_PRIORITY
    return {
        Knob("limits.disk.priority", "blkio" if version == 1 else "io", version, file): str(
            round(usual * factor)
        )
        for version, controller, file, usual in weights
    }


async def apply_disk_priority(pid: int, config: Config) -> None:
    """Apply the disk priority of a container that was just started, if it has one."""
    if config.get("limits.disk.priority"):
        weights = await in_thread(disk_plan, config, pid)
        await in_thread(cgroup_limits.change, pid, weights)


# ---- live


async def change_running(running: Running, config: Config, undo: Rollback) -> None:
    """Change the limits of a running container to those of `config`, all or none.

    Raises InvalidConfig if the host or the container's usage prevents it. CPUs are assigned by `cpu_balance`.
    """
    old, new = _of(running.config), _of(config)
    if old == new:
        return
    facts = await in_thread(cgroup_limits.read_limit_facts)
    check(new, facts)
    differences = _differences(plan(old, facts), plan(new, facts))
    if old.get("limits.disk.priority") != new.get("limits.disk.priority"):
        differences |= await in_thread(disk_plan, new, running.init_pid)
    written = await in_thread(cgroup_limits.change, running.init_pid, differences)
    undo.push(in_thread, cgroup_limits.restore, written)
    await _change_rlimits(running, old, new, undo)
    if old.get(oom_scores.KEY) != new.get(oom_scores.KEY):
        had = await in_thread(oom_scores.change, running.init_pid, oom_priority(new))
        if had is not None:
            undo.push(in_thread, oom_scores.change, running.init_pid, had)


def _of(config: Config) -> dict[str, str]:
    return {key: value for key, value in config.items() if key.startswith(_PREFIX) and value}


async def check_change(old: Config, new: Config) -> None:
    """Raise InvalidConfig for changed limits that this host does not support."""
    if limited(new) and _of(old) != _of(new):
        check(new, await in_thread(cgroup_limits.read_limit_facts))


async def enforce_all(warnings: Warnings, containers: Sequence[Running]) -> None:
    """Apply the limits of containers when the daemon starts, as it may have been killed during a change."""
    facts = await in_thread(cgroup_limits.read_limit_facts)
    for running in containers:
        values = plan(running.config, facts)
        if "lxc.cgroup" in running.config.get("raw.lxc", ""):
            # Leave files without a key alone, as raw.lxc may set them.
            values = _differences(plan({}, facts), values)
        try:
            await in_thread(cgroup_limits.change, running.init_pid, values)
            if "oom_score_adj" not in running.config.get("raw.lxc", ""):
                await in_thread(oom_scores.change, running.init_pid, oom_priority(running.config))
        except InvalidConfig as error:
            message = f"cannot apply the limits of instance {running.name!r}: {error.message}"
            warnings.report(LIMITS_NOT_APPLIED, message, running.subject)
        if running.cpu_wish:
            running.cpus = await in_thread(cgroup_limits.pinned, running.init_pid)
        if running.cpu_wish.nodes:
            running.memory_nodes = await in_thread(cgroup_limits.pinned, running.init_pid, "cpuset.mems")


async def _change_rlimits(running: Running, old: Config, new: Config, undo: Rollback) -> None:
    """Change the limits of init, which new processes inherit; unset ones return to their defaults."""
    before, after = _rlimits_set(old), _rlimits_set(new)
    wanted = {name: limit for name, limit in after.items() if before.get(name) != limit}
    had = await in_thread(cgroup_limits.set_rlimits, running.init_pid, wanted)
    undo.push(in_thread, cgroup_limits.set_rlimits, running.init_pid, had)
    gone = before.keys() - after.keys()
    inherited = cgroup_limits.rlimits(running.monitor_pid or 0, gone)
    for name, limit in {**inherited, **{n: v for n, v in rlimits({}).items() if n in gone}}.items():
        try:
            had = await in_thread(cgroup_limits.set_rlimits, running.init_pid, {name: limit})
        except InvalidConfig as error:
            log.info("instance %r keeps a previous limit until its next start: %s", running.name, error)
        else:
            undo.push(in_thread, cgroup_limits.set_rlimits, running.init_pid, had)


def with_kernel_defaults(config: Config) -> Config:
    """Add defaults of limits, which are not those that the daemon has raised for itself."""
    given = descriptors.original_limit()
    if given is None or config.get(_OPEN_FILES):
        return config
    soft, hard = ("unlimited" if limit == -1 else str(limit) for limit in given)
    return {**config, _OPEN_FILES: f"{soft}:{hard}"}


def rlimits(config: Config) -> dict[str, Rlimit]:
    """Return the resource limits of an instance by name: `limits.kernel.*` and defaults."""
    return _rlimits_set(with_kernel_defaults(config))


def _rlimits_set(config: Config) -> dict[str, Rlimit]:
    found = {}
    for key, value in config.items():
        if key.startswith(_KERNEL) and value:
            soft, _, hard = value.partition(":")
            found[key.removeprefix(_KERNEL)] = (_rlimit(soft), _rlimit(hard or soft))
    return found


def _rlimit(text: str) -> int:
    return -1 if text == "unlimited" else int(text)
