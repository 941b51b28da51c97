"""The memory of all containers of a daemon together: a limit for it, and what became of it."""

from __future__ import annotations

from pathlib import Path

_MIB = 1 << 20
_CGROUPS = Path("/sys/fs/cgroup")
_V1 = _CGROUPS / "memory"
_V1_FILES = ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
_V2_FILES = ("memory.max", "memory.peak", "memory.events")


class Bound:
    """The cgroup that containers and their monitors are in, by the daemon's name for it."""

    def __init__(self, owner: str) -> None:
        """Take that of a running daemon, which removes it when it starts and when it ends."""
        above, files = (_V1, _V1_FILES) if _V1.is_dir() else (_CGROUPS, _V2_FILES)
        folder = above / owner
        folder.mkdir(exist_ok=True)
        self._limit, self._peak, self._events = (folder / name for name in files)

    def set(self, mib: int) -> None:
        """Set the limit. Programs' pages of files count, as far as containers were the first to read them."""
        self._limit.write_text(str(mib * _MIB))

    def peak(self) -> float:
        """Return the most MiB that were in use at a time, without what the kernel dropped of files."""
        return int(self._peak.read_text()) / _MIB

    def killed(self) -> int:
        """Return how many processes the kernel has ended for lack of memory, of one container or of all."""
        lines = dict(line.split() for line in self._events.read_text().splitlines())
        return int(lines["oom_kill"])
