"""Processors and memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from utsuwa.host.hardware import sysfs
from utsuwa.host.system.facts import parse_cpu_list
from utsuwa.wire.resources import CPU, Cache, Core, Memory, MemoryNode, Socket, Thread

_CPUS = "sys/devices/system/cpu"
_NODES = "sys/devices/system/node"
_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}
_KILOHERTZ = 1000


def cpu(root: Path) -> CPU:
    """Return the processors that are online; the kernel does not know to which core others belong."""
    vendor, name = _model(root)
    isolated = parse_cpu_list(sysfs.text(root / _CPUS / "isolated"))
    sockets: dict[int, Socket] = {}
    total = 0
    for folder in _folders(root / _CPUS, "cpu"):
        topology = folder / "topology"
        if not topology.is_dir():
            continue
        number = sysfs.number(topology / "physical_package_id")
        if number not in sockets:
            sockets[number] = Socket(socket=number, name=name, vendor=vendor, cache=_caches(folder), cores=[])
        _add_thread(sockets[number], folder, isolated)
        total += 1
    for socket in sockets.values():
        _set_frequency(socket)
    ordered = [sockets[number] for number in sorted(sockets)]
    return CPU(architecture=os.uname().machine, sockets=ordered, total=total)


def _add_thread(socket: Socket, folder: Path, isolated: set[int]) -> None:
    topology, scaling = folder / "topology", folder / "cpufreq"
    number = int(folder.name[3:])
    core_id, die = sysfs.number(topology / "core_id"), sysfs.number(topology / "die_id")
    core = next((c for c in socket.cores if (c.core, c.die) == (core_id, die)), None)
    if core is None:
        current = sysfs.number(scaling / "scaling_cur_freq") // _KILOHERTZ
        core = Core(core=core_id, die=die, frequency=current, threads=[])
        socket.cores.append(core)
    online = folder / "online"
    core.threads.append(
        Thread(
            id=number,
            thread=len(core.threads),
            numa_node=next((int(n.name[4:]) for n in _folders(folder, "node")), 0),
            online=not online.exists() or sysfs.number(online) == 1,
            isolated=number in isolated,
        )
    )
    minimum, turbo = (sysfs.number(scaling / f"cpuinfo_{name}_freq") // _KILOHERTZ for name in ("min", "max"))
    known = [n for n in (socket.frequency_minimum, minimum) if n]
    socket.frequency_minimum = min(known, default=0)
    socket.frequency_turbo = max(socket.frequency_turbo, turbo)


def _set_frequency(socket: Socket) -> None:
    """The current frequency of a socket is the mean of those of its cores."""
    known = [core.frequency for core in socket.cores if core.frequency]
    socket.frequency = sum(known) // len(known) if known else 0


def _model(root: Path) -> tuple[str, str]:
    """Return vendor and name; empty on architectures whose kernel does not report them."""
    found: dict[str, str] = {}
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found.get("vendor_id", ""), found.get("model name", "") or found.get("cpu", "")


def _caches(folder: Path) -> list[Cache]:
    return [
        Cache(
            level=sysfs.number(index / "level"),
            type=sysfs.text(index / "type"),
            size=_size(sysfs.text(index / "size")),
        )
        for index in _folders(folder / "cache", "index")
    ]


def _size(text: str) -> int:
    """Parse `32K`."""
    digits, unit = text.rstrip("KMG"), text[-1:]
    return int(digits) * _UNITS.get(unit, 1) if digits.isdecimal() else 0


def _folders(parent: Path, prefix: str) -> list[Path]:
    """Return the numbered directories `prefixN` in the order of their numbers."""
    found = [
        p for p in sysfs.entries(parent) if p.name[len(prefix) :].isdecimal() and p.name.startswith(prefix)
    ]
    return sorted(found, key=lambda p: int(p.name[len(prefix) :]))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


# ---- memory


def memory(root: Path) -> Memory:
    found = _meminfo(root / "proc/meminfo")
    size = found.get("Hugepagesize", 0)
    nodes = [
        _node(folder, size) for folder in _folders(root / _NODES, "node") if (folder / "meminfo").exists()
    ]
    pages = found.get("HugePages_Total", 0)
    return Memory(
        total=found.get("MemTotal", 0),
        used=_used(found),
        hugepages_total=pages * size,
        hugepages_used=(pages - found.get("HugePages_Free", 0)) * size,
        hugepages_size=size,
        nodes=nodes,
    )


def _node(folder: Path, page: int) -> MemoryNode:
    found = _meminfo(folder / "meminfo")
    pages = found.get("HugePages_Total", 0)
    return MemoryNode(
        numa_node=int(folder.name[4:]),
        total=found.get("MemTotal", 0),
        used=_used(found),
        hugepages_total=pages * page,
        hugepages_used=(pages - found.get("HugePages_Free", 0)) * page,
    )


def _used(found: Mapping[str, int]) -> int:
    """Nodes report `FilePages` for what the host reports as `Buffers` and `Cached`."""
    cached = found.get("Buffers", 0) + found.get("Cached", 0) or found.get("FilePages", 0)
    free = found.get("MemFree", 0) + cached + found.get("SReclaimable", 0)
    return max(found.get("MemTotal", 0) - free, 0)


def _meminfo(path: Path) -> dict[str, int]:
    """Parse `MemTotal:  1024 kB` and `Node 0 MemTotal:  1024 kB`, with sizes in bytes."""
    found = {}
    for line in _lines(path):
        key, _, value = line.partition(":")
        fields = value.split()
        if fields:
            found[key.split()[-1]] = int(fields[0]) * (1024 if fields[1:] == ["kB"] else 1)
    return found
