"""What the kernel accounts for a running container, for metrics. Blocking, but only reads cgroupfs.

`usage` has the few figures of an instance's state; these are the many that a monitoring system collects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from utsuwa.host.cgroups import files
from utsuwa.host.cgroups.limits import total_memory
from utsuwa.host.cgroups.tree import UNIFIED, folders_of

_PROC = Path("/proc")
_BLOCK_DEVICES = Path("/sys/dev/block")
_SIZE = 16 * 1024
"""Bytes of a file that are read at most; `cpuacct.usage_all` has 30 for each processor."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes, of the container's cgroup and those below it."""

    total: int = 0
    """The limit; the host's memory if there is no lower one."""
    used: int = 0
    anonymous: int = 0
    """Including transparent huge pages and cached swap."""
    cached: int = 0
    shared: int = 0
    """Of `cached`: tmpfs and shared memory, which can only be swapped."""
    mapped: int = 0
    dirty: int = 0
    writeback: int = 0
    active_anonymous: int = 0
    active_file: int = 0
    inactive_anonymous: int = 0
    inactive_file: int = 0
    unevictable: int = 0
    swap: int = 0
    oom_kills: int = 0
    """Number of processes that the kernel has killed for lack of memory."""

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)

    @property
    def available(self) -> int:
        """What can be used without swapping: the free memory, and cached files."""
        return min(self.total, self.free + max(0, self.cached - self.shared))


@dataclass(slots=True)
class Disk:
    """Input and output on one block device since the container's start."""

    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds of one processor."""

    user: float = 0.0
    system: float = 0.0


@dataclass(frozen=True, slots=True)
class Accounting:
    """What a container has used; empty or 0 where the host has no accounting for it."""

    cpus: Mapping[int, CpuTime] = field(default_factory=dict)
    """By number of the processor; all under 0 with cgroup v2, which does not tell them apart."""
    memory: Memory = Memory()
    disks: Mapping[str, Disk] = field(default_factory=dict)
    """By name of the block device, such as `sda`."""
    processes: int = 0


class Accounts:
    """Reads the accounting of one container. Its cgroups are looked up once, as they do not change."""

    __slots__ = ("_folders", "_memory")

    def __init__(self, pid: int, proc: Path = _PROC) -> None:
        """`pid` is the container's init. Raises ProcessLookupError if it has ended."""
        self._folders = {name: str(folder) for name, folder in folders_of(pid, proc).items()}
        if not self._folders:
            raise ProcessLookupError(f"No process {pid} with cgroups")
        self._memory = total_memory(proc)

    def read(self) -> Accounting:
        """Return the current values; those of a container that has ended meanwhile are 0."""
        return Accounting(
            cpus=self._cpus(),
            memory=self._memory_v1() if "memory" in self._folders else self._memory_v2(),
            disks=self._disks_v1() if "blkio" in self._folders else self._disks_v2(),
            processes=files.number(
                self._text("pids" if "pids" in self._folders else UNIFIED, "pids.current")
            ),
        )

    def _text(self, controller: str, name: str) -> str:
        folder = self._folders.get(controller)
        return "" if folder is None else files.read(f"{folder}/{name}", _SIZE).decode("ascii", "replace")

    def _number(self, controller: str, name: str) -> int:
        return files.number(self._text(controller, name))

    def _cpus(self) -> dict[int, CpuTime]:
        if "cpuacct" not in self._folders:
            stat = _pairs(self._text(UNIFIED, "cpu.stat"))
            return (
                {0: CpuTime(stat.get("user_usec", 0) / 1e6, stat.get("system_usec", 0) / 1e6)} if stat else {}
            )
        lines = self._text("cpuacct", "cpuacct.usage_all").splitlines()[1:]  # the first has the titles
        rows = (map(int, line.split()) for line in lines)
        return {cpu: CpuTime(user / 1e9, system / 1e9) for cpu, user, system in rows}

    def _memory_v1(self) -> Memory:
        stat = _pairs(self._text("memory", "memory.stat"))
        return Memory(
            total=min(self._memory, stat.get("hierarchical_memory_limit", self._memory)),
            used=self._number("memory", "memory.usage_in_bytes"),
            anonymous=stat.get("total_rss", 0),
            cached=stat.get("total_cache", 0),
            shared=stat.get("total_shmem", 0),
            mapped=stat.get("total_mapped_file", 0),
            dirty=stat.get("total_dirty", 0),
            writeback=stat.get("total_writeback", 0),
            active_anonymous=stat.get("total_active_anon", 0),
            active_file=stat.get("total_active_file", 0),
            inactive_anonymous=stat.get("total_inactive_anon", 0),
            inactive_file=stat.get("total_inactive_file", 0),
            unevictable=stat.get("total_unevictable", 0),
            swap=stat.get("total_swap", 0),
            oom_kills=_pairs(self._text("memory", "memory.oom_control")).get("oom_kill", 0),
        )

    def _memory_v2(self) -> Memory:
        stat = _pairs(self._text(UNIFIED, "memory.stat"))
        limit = self._text(UNIFIED, "memory.max").strip()
        return Memory(
            total=min(self._memory, files.number(limit) if limit.isdigit() else self._memory),
            used=self._number(UNIFIED, "memory.current"),
            anonymous=stat.get("anon", 0),
            cached=stat.get("file", 0),
            shared=stat.get("shmem", 0),
            mapped=stat.get("file_mapped", 0),
            dirty=stat.get("file_dirty", 0),
            writeback=stat.get("file_writeback", 0),
            active_anonymous=stat.get("active_anon", 0),
            active_file=stat.get("active_file", 0),
            inactive_anonymous=stat.get("inactive_anon", 0),
            inactive_file=stat.get("inactive_file", 0),
            unevictable=stat.get("unevictable", 0),
            swap=self._number(UNIFIED, "memory.swap.current"),
            oom_kills=_pairs(self._text(UNIFIED, "memory.events")).get("oom_kill", 0),
        )

    def _disks_v1(self) -> dict[str, Disk]:
        found: dict[str, Disk] = {}
        for name, amounts in (
            ("blkio.throttle.io_service_bytes_recursive", ("read_bytes", "written_bytes")),
            ("blkio.throttle.io_serviced_recursive", ("reads", "writes")),
        ):
            attributes = dict(zip(("Read", "Write"), amounts, strict=True))
            for line in self._text("blkio", name).splitlines():
                parts = line.split()
                if len(parts) == 3 and parts[1] in attributes:
                    disk = found.setdefault(_device_name(parts[0]), Disk())
                    setattr(disk, attributes[parts[1]], files.number(parts[2]))
        return found

    def _disks_v2(self) -> dict[str, Disk]:
        return dict(_io_stat(self._text(UNIFIED, "io.stat")))


def _io_stat(text: str) -> Iterator[tuple[str, Disk]]:
    """Parse lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`."""
    for line in text.splitlines():
        device, *fields = line.split()
        amounts = {name: files.number(value) for name, _, value in (f.partition("=") for f in fields)}
        yield (
            _device_name(device),
            Disk(
                amounts.get("rbytes", 0),
                amounts.get("wbytes", 0),
                amounts.get("rios", 0),
                amounts.get("wios", 0),
            ),
        )


@cache
def _device_name(number: str) -> str:
    """Return the name of a block device (`8:0`); its number if the host does not have it any more.

    Cached, as numbers are reused only for devices of the same driver, and few are ever seen.
    """
    try:
        return (_BLOCK_DEVICES / number).readlink().name
    except OSError:
        return number


def _pairs(text: str) -> dict[str, int]:
    """Parse lines of a name and a number; others are skipped."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found
