"""Memory of a daemon and of the monitors of its containers, as the kernel counts it (PSS).

The proportional set size shares a page's cost among those that map it, so the parts of a sum do not count
twice.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from bench.daemons import Daemon, processes_naming

MIB = 1 << 20
MONITOR = b"[lxc monitor]"
_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


def available() -> float:
    """MiB of the machine that programs could still have."""
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line]
    return int(line.split()[1]) / 1024


def daemon(of: Daemon) -> float:
    """MiB of the daemon and its helper processes, without monitors and what runs in containers."""
    return sum(map(_pss, [of.pid, *helpers(of.pid)])) / MIB


def helpers(daemon: int) -> list[int]:
    """The processes that stand below a daemon, but for monitors and what runs in containers."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # the name in parentheses may hold anything, even parentheses
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue = [daemon]
    while queue:
        below = [pid for pid in children.get(queue.pop(), []) if not _is_monitor(pid)]
        found += below
        queue += below
    return found


def monitor(of: Daemon) -> float:
    """MiB of one container's monitor, the mean over all that run."""
    monitors = [pid for pid in processes_naming(of.dir) if _is_monitor(pid)]
    if not monitors:
        raise LookupError("no monitor runs")
    return sum(map(_pss, monitors)) / len(monitors) / MIB


def _is_monitor(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(MONITOR)
    except OSError:
        return False


def _pss(pid: int) -> int:
    """Bytes; 0 for a process that is gone."""
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
