"""Warnings of what the host lacks. `utsuwad check` has the remedies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from utsuwa.core import warning_types as types
from utsuwa.core.server_keys import SERVER_KEYS
from utsuwa.core.warning_types import WarningType
from utsuwa.host.cgroups import limits
from utsuwa.host.cgroups.limits import LimitFacts
from utsuwa.host.mounts import mounts
from utsuwa.host.system import lxcfs
from utsuwa.instances.confinement import host_facts
from utsuwa.operations.warnings import Warnings
from utsuwa.security import apparmor, idmap
from utsuwa.security.idmap import HostIds

log = logging.getLogger(__name__)

_CONTROLLERS: Mapping[str, tuple[WarningType, str]] = {
    "blkio": (types.NO_BLKIO, "limits.disk.priority and limits of disks have no effect"),
    "cpu": (types.NO_CPU, "limits.cpu.allowance and limits.cpu.priority have no effect"),
    "cpuacct": (types.NO_CPUACCT, "the CPU usage of instances is not known"),
    "cpuset": (types.NO_CPUSET, "limits.cpu has no effect"),
    "devices": (types.NO_DEVICES, "access to devices is not restricted"),
    "freezer": (types.NO_FREEZER, "instances cannot be paused"),
    "hugetlb": (types.NO_HUGETLB, "limits.hugepages.* have no effect"),
    "memory": (types.NO_MEMORY, "limits.memory has no effect"),
    "pids": (types.NO_PIDS, "limits.processes has no effect"),
}
"""The controllers by their names in cgroup v1, and the effect of their absence."""
_V2 = {"blkio": "io", "cpuacct": "cpu"}
"""Their names in cgroup v2, where they differ."""
_V2_BUILT_IN = frozenset(("devices", "freezer"))


@dataclass(frozen=True)
class Lacks:
    """What `judge` looks at; the defaults describe a host that lacks nothing."""

    limits: LimitFacts = LimitFacts(cpus=frozenset({0}))
    disk_weights: bool = True
    apparmor: apparmor.Mode = apparmor.Mode.OWN
    lxcfs: bool = True
    ids: HostIds | None = None
    idmapped_mounts: bool = True


def look(state_folder: Path) -> Lacks:
    """Look at the host. Blocking."""
    return Lacks(
        limits=limits.read_limit_facts(),
        disk_weights=limits.has_disk_weights(),
        apparmor=apparmor.probe().mode,
        lxcfs=host_facts.read_host_facts().lxcfs is not None,
        ids=idmap.read_host_ids(),
        idmapped_mounts=mounts.can_idmap(state_folder),
    )


class HostWarnings:
    """The warnings of what the host lacks."""

    def __init__(self, warnings: Warnings, state_folder: Path) -> None:
        self._warnings = warnings
        self._folder = state_folder
        self._host: Lacks | None = None
        self._messages: dict[WarningType, str] = {}

    async def judge(self) -> bool:
        """Raise a warning for all that the host lacks, and resolve those of what it has now.

        Returns whether it lacks nothing. Further calls look at what can change while the host runs.
        """
        if self._host is None:
            try:
                self._host = await asyncio.to_thread(look, self._folder)
            except OSError as error:  # an odd host must not keep the daemon from starting
                log.warning("cannot determine what the host lacks: %s", error)
                return False
        else:
            self._host = await asyncio.to_thread(_look_again, self._host)
        for kind, message in troubles(self._host):
            if self._messages.get(kind) != message:
                self._messages[kind] = message
                self._warnings.judge(kind, message)
        return not any(self._messages.values())


def _look_again(host: Lacks) -> Lacks:
    return replace(host, lxcfs=host_facts.read_host_facts().lxcfs is not None, ids=idmap.read_host_ids())


async def judge_server_config(
    warnings: Warnings, changed: Collection[str], config: Mapping[str, object]
) -> None:
    """A listener of the server config: warn of keys that have no effect in this version."""
    names = SERVER_KEYS.without_effect(name for name, value in config.items() if value)
    warnings.judge(
        types.KEYS_WITHOUT_EFFECT,
        f"these keys of the server have no effect in this version: {', '.join(names)}" if names else "",
    )


def troubles(host: Lacks) -> Iterator[tuple[WarningType, str]]:
    """Yield every type that is judged, with a message; an empty one if nothing is wrong."""
    yield from _cgroups(host.limits)
    has_blkio = "blkio" in host.limits.controllers or "io" in host.limits.controllers
    yield (
        types.NO_BLKIO_WEIGHT,
        ""
        if host.disk_weights or not has_blkio
        else "no I/O scheduler of this host has weights: limits.disk.priority has no effect",
    )
    yield types.NO_APPARMOR, _apparmor(host.apparmor)
    yield (
        types.NO_LXCFS,
        ""
        if host.lxcfs
        else f"lxcfs is not mounted at {lxcfs.folder()}: instances see the memory, load and processors of "
        "the host; install lxcfs and start it",
    )
    yield types.NO_ID_RANGES, _ids(host.ids)
    yield (
        types.NO_IDMAPPED_MOUNTS,
        ""
        if host.idmapped_mounts
        else "the file system of the state directory has no idmapped mounts: owners of files are shifted on "
        "disk, which makes creating and starting instances slower",
    )


def _cgroups(facts: LimitFacts) -> Iterator[tuple[WarningType, str]]:
    unified = 2 in facts.controllers.values()
    for name, (kind, effect) in _CONTROLLERS.items():
        wanted = _V2.get(name, name) if unified else name
        built_in = unified and name in _V2_BUILT_IN
        lacks = wanted not in facts.controllers and not built_in
        yield kind, f"the host has no cgroup controller {wanted}: {effect}" if lacks else ""
    lacks_swap = "memory" in facts.controllers and not facts.swap
    yield (
        types.NO_SWAP_ACCOUNTING,
        "the kernel does not account for swap: limits.memory.swap has no effect; boot with swapaccount=1"
        if lacks_swap
        else "",
    )


def _apparmor(mode: apparmor.Mode) -> str:
    match mode:
        case apparmor.Mode.OFF:
            return "the kernel has no AppArmor: instances are confined without profiles"
        case apparmor.Mode.INHERIT:
            return "no AppArmor policy can be loaded here: instances have the confinement of the daemon"
        case apparmor.Mode.OWN:
            return ""


def _ids(ids: HostIds | None) -> str:
    if ids is None or all(any(r.count >= idmap.USEFUL for r in found) for found in (ids.uids, ids.gids)):
        return ""
    return (
        f"root has no range of at least {idmap.USEFUL} ids, so unprivileged instances do not start: "
        f"add the line {idmap.suggested()} to /etc/subuid and to /etc/subgid"
    )
