"""Resource usage of running containers, read from their cgroups. Blocking, but only reads cgroupfs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utsuwa.host.cgroups import files
from utsuwa.host.cgroups.tree import UNIFIED, folders_of

_PROC = Path("/proc")
_NUMBER = 32
"""Bytes that are enough for one number."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Resource usage of a container; 0 where the host has no accounting for it."""

    cpu_ns: int = 0
    memory: int = 0
    memory_peak: int = 0
    swap: int = 0
    swap_peak: int = 0
    processes: int = 0


class Meter:
    """Reads the usage of one container. Its cgroups are looked up once, as they do not change while it runs.

    The files are opened for each reading: each open file would occupy a page of kernel memory.
    """

    __slots__ = ("_cpu", "_cpu_stat", "_memory", "_memory_and_swap", "_processes", "_swap")

    def __init__(self, pid: int, proc: Path = _PROC) -> None:
        """`pid` is the container's init. Raises ProcessLookupError if it has ended."""
        folders = folders_of(pid, proc)
        if not folders:
            raise ProcessLookupError(f"No process {pid} with cgroups")
        unified, memory = folders.get(UNIFIED), folders.get("memory")
        self._cpu = _path(folders, "cpuacct", "cpuacct.usage")
        self._cpu_stat = _path(folders, UNIFIED, "cpu.stat") if self._cpu is None else None
        self._processes = _path(folders, "pids" if "pids" in folders else UNIFIED, "pids.current")
        self._memory: tuple[str, ...] = ()
        self._swap: tuple[str, ...] = ()
        self._memory_and_swap: tuple[str, ...] = ()
        if memory is not None:
            self._memory = (f"{memory}/memory.usage_in_bytes", f"{memory}/memory.max_usage_in_bytes")
            # Version 1 counts memory alone, and memory and swap together.
            self._memory_and_swap = (
                f"{memory}/memory.memsw.usage_in_bytes",
                f"{memory}/memory.memsw.max_usage_in_bytes",
            )
        elif unified is not None:
            self._memory = (f"{unified}/memory.current", f"{unified}/memory.peak")
            self._swap = (f"{unified}/memory.swap.current", f"{unified}/memory.swap.peak")

    def read(self) -> Usage:
        memory, peak = map(_number, self._memory) if self._memory else (0, 0)
        swap, swap_peak = map(_number, self._swap) if self._swap else (0, 0)
        if self._memory_and_swap:
            both, both_peak = map(_number, self._memory_and_swap)
            swap, swap_peak = max(0, both - memory), max(0, both_peak - peak)
        return Usage(
            cpu_ns=self._read_cpu(),
            memory=memory,
            memory_peak=peak,
            swap=swap,
            swap_peak=swap_peak,
            processes=_number(self._processes) if self._processes else 0,
        )

    def _read_cpu(self) -> int:
        if self._cpu is not None:
            return _number(self._cpu)
        stat = files.read(self._cpu_stat, 1024) if self._cpu_stat else b""
        for line in stat.splitlines():
            if line.startswith(b"usage_usec "):
                return files.number(line[11:]) * 1000
        return 0


def _path(folders: Mapping[str, Path], controller: str, name: str) -> str | None:
    folder = folders.get(controller)
    return None if folder is None else f"{folder}/{name}"


def _number(path: str) -> int:
    return files.number(files.read(path, _NUMBER))
