"""Resource limits: conversion of the expanded config to cgroup files, at start and live.

`plan` is pure; a start passes its lines to liblxc, a live change writes differences to the running
container's cgroups. `cpu_balance` assigns CPUs, considering all instances together.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping, Sequence

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.rollback import Rollback
from utsuwa.core.units import parse_bytes
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups.limits import Knob, LimitFacts, Rlimit
from utsuwa.host.system import descriptors
from utsuwa.host.system.facts import parse_cpu_list
from utsuwa.instances.model import Running

log = logging.getLogger(__name__)

Config = Mapping[str, str]
Lines = Iterator[tuple[Knob, str]]

_PREFIX = "limits."
_KERNEL = "limits.kernel."
_OPEN_FILES = "limits.kernel.nofile"
_HUGE_PAGES = "limits.hugepages."
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
    """The limits of a container that is about to start, as lxc.conf has them."""
    return [(knob.lxc, value) for knob, value in _differences(plan({}, facts), plan(config, facts)).items()]


def cpu_lines(cpus: frozenset[int] | None, facts: LimitFacts) -> list[tuple[str, str]]:
    """The line that holds a container to its CPUs from the start."""
    if cpus is None:
        return []
    knob = Knob("limits.cpu", "cpuset", _version(facts, "cpuset"), "cpuset.cpus")
    return [(knob.lxc, cgroup_limits.cpu_list(cpus))]


def limited(config: Config) -> bool:
    return any(key.startswith(_PREFIX) for key in config)


def _differences(old: Mapping[Knob, str], new: Mapping[Knob, str]) -> dict[Knob, str]:
    return {knob: value for knob, value in new.items() if old.get(knob) != value}


_CONTROLLERS = {
    "limits.cpu": "cpuset",
    "limits.cpu.allowance": "cpu",
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
                f"Cannot hold {key!r}: this host's kernel has no cgroup controller {controller!r}; "
                "unset it, or start the kernel with that controller"
            )
    if not facts.swap and not _is_bool(config.get("limits.memory.swap", "")):
        raise InvalidConfig(
            "Cannot hold a size in 'limits.memory.swap': this host's kernel does not account for swap"
        )
    _check_cpus(config, facts)
    _check_huge_pages(config, facts)


def _check_cpus(config: Config, facts: LimitFacts) -> None:
    """Reject a set in `limits.cpu` with CPUs that the host does not have."""
    wanted = cpus_named(config.get("limits.cpu", ""))
    if lacking := wanted - facts.cpus:
        raise InvalidConfig(
            f"Invalid value {config['limits.cpu'][:60]!r} for 'limits.cpu': this host has no CPU "
            f"{cgroup_limits.cpu_list(lacking)}; it has {cgroup_limits.cpu_list(facts.cpus)}"
        )


def cpus_named(value: str) -> frozenset[int]:
    """The CPUs of a set such as `0-2,4`; none where it is a number of CPUs, or empty."""
    return frozenset() if value.isdecimal() else frozenset(parse_cpu_list(value))


def _version(facts: LimitFacts, controller: str) -> int:
    """1 or 2; 0 where the host has no such controller. What is `io` now was `blkio`."""
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
    """Bytes as a hard and as a soft limit; None where there is no such limit."""
    value = config.get("limits.memory", "")
    if not value:
        return None, None
    limit = facts.memory * int(value[:-1]) // 100 if value.endswith("%") else parse_bytes(value)
    return (None, limit) if config.get("limits.memory.enforce", "") == "soft" else (limit, None)


def _swap(config: Config) -> bool | int:
    """Whether swap may be used, or how many bytes of it."""
    value = config.get("limits.memory.swap", "")
    return parse_bool(value or "true") if _is_bool(value) else parse_bytes(value)


def _is_bool(value: str) -> bool:
    try:
        parse_bool(value)
    except InvalidConfig:
        return False
    return True


def _memory_v1(config: Config, facts: LimitFacts) -> Lines:
    """Swap is counted together with memory: by default an instance gets no more of both than of memory."""

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
    """Swap is counted by itself: by default an instance may swap as much as it may have memory."""

    def knob(name: str, key: str = "limits.memory") -> Knob:
        return Knob(key, "memory", 2, f"memory.{name}")

    hard, soft = _memory_limits(config, facts)
    swap = _swap(config)
    yield knob("max"), _or(hard, "max")
    # Of what is above it the kernel takes first when the host runs short.
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
    """How much CPU time an instance gets on a busy host, beside one of 1.0 without any limit.

    A percentage is taken as it is; each step of priority below 10 takes an eleventh of it.
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
            raise InvalidConfig(f"Cannot hold {key!r}: sizes of huge pages that can be limited here: {sizes}")


# ---- disks


def disk_plan(config: Config, pid: int) -> dict[Knob, str]:
    """The weight of disk requests. Which files there are for it shows in a container's cgroup only.

    Priority 5 is the kernel's own weight. Raises InvalidConfig where there is a priority and no file.
    """
    priority = config.get("limits.disk.priority", "")
    weights = cgroup_limits.disk_weights(pid)
    if priority and not weights:
        raise InvalidConfig(
            "Cannot hold 'limits.disk.priority': this host's kernel gives no weights to disk requests"
        )
    factor = max(int(priority or _MIDDLE_PRIORITY), 0.1) / _MIDDLE_PRIORITY
    return {
        Knob("limits.disk.priority", "blkio" if version == 1 else "io", version, file): str(
            round(usual * factor)
        )
        for version, controller, file, usual in weights
    }


async def apply_disk_priority(pid: int, config: Config) -> None:
    """Give a container that has just started its weight, where it has a priority."""
    if config.get("limits.disk.priority"):
        weights = await asyncio.to_thread(disk_plan, config, pid)
        await asyncio.to_thread(cgroup_limits.change, pid, weights)


# ---- live


async def change_running(running: Running, config: Config, undo: Rollback) -> None:
    """Change the limits of a running container to those of `config`, all or none.

    Raises InvalidConfig if the host or the container's usage prevents it. CPUs are not assigned here:
    `running.cpu_limit` is used by `cpu_balance` afterwards.
    """
    old, new = _of(running.config), _of(config)
    if old == new:
        return
    facts = await asyncio.to_thread(cgroup_limits.read_limit_facts)
    check(new, facts)
    differences = _differences(plan(old, facts), plan(new, facts))
    if old.get("limits.disk.priority") != new.get("limits.disk.priority"):
        differences |= await asyncio.to_thread(disk_plan, new, running.init_pid)
    written = await asyncio.to_thread(cgroup_limits.change, running.init_pid, differences)
    undo.push(asyncio.to_thread, cgroup_limits.restore, written)
    await _change_rlimits(running, old, new, undo)
    undo.push(setattr, running, "cpu_limit", running.cpu_limit)
    running.cpu_limit = new.get("limits.cpu", "")


def _of(config: Config) -> dict[str, str]:
    return {key: value for key, value in config.items() if key.startswith(_PREFIX) and value}


async def check_change(old: Config, new: Config) -> None:
    """Refuse what this host cannot hold, where the limits are not those that the instance had already."""
    if limited(new) and _of(old) != _of(new):
        check(new, await asyncio.to_thread(cgroup_limits.read_limit_facts))


async def enforce_all(containers: Sequence[Running]) -> None:
    """Set the limits of containers that ran without the daemon, which may have ended amid a change."""
    facts = await asyncio.to_thread(cgroup_limits.read_limit_facts)
    for running in containers:
        values = plan(running.config, facts)
        if "lxc.cgroup" in running.config.get("raw.lxc", ""):
            # What no key is set for may be the user's own.
            values = _differences(plan({}, facts), values)
        try:
            await asyncio.to_thread(cgroup_limits.change, running.init_pid, values)
        except InvalidConfig as error:
            log.warning("the limits of instance %r are not as configured: %s", running.name, error)
        if running.cpu_limit:
            running.cpus = await asyncio.to_thread(cgroup_limits.pinned, running.init_pid)


async def _change_rlimits(running: Running, old: Config, new: Config, undo: Rollback) -> None:
    """Init gets them, and so what it starts from now on; one that is unset becomes what it is by default."""
    before, after = _rlimits_set(old), _rlimits_set(new)
    wanted = {name: limit for name, limit in after.items() if before.get(name) != limit}
    had = await asyncio.to_thread(cgroup_limits.set_rlimits, running.init_pid, wanted)
    undo.push(asyncio.to_thread, cgroup_limits.set_rlimits, running.init_pid, had)
    gone = before.keys() - after.keys()
    inherited = cgroup_limits.rlimits(running.monitor_pid or 0, gone)
    for name, limit in {**inherited, **{n: v for n, v in rlimits({}).items() if n in gone}}.items():
        try:
            had = await asyncio.to_thread(cgroup_limits.set_rlimits, running.init_pid, {name: limit})
        except InvalidConfig as error:
            log.info("instance %r keeps a limit until its next start: %s", running.name, error)
        else:
            undo.push(asyncio.to_thread, cgroup_limits.set_rlimits, running.init_pid, had)


def with_kernel_defaults(config: Config) -> Config:
    """With the limits that a container gets where its config does not say: not the daemon's own."""
    given = descriptors.original_limit()
    if given is None or config.get(_OPEN_FILES):
        return config
    soft, hard = ("unlimited" if limit == -1 else str(limit) for limit in given)
    return {**config, _OPEN_FILES: f"{soft}:{hard}"}


def rlimits(config: Config) -> dict[str, Rlimit]:
    """The resource limits of an instance, by name: what `limits.kernel.*` sets, and defaults."""
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
