"""sysinfo: the container's figures in place of the host's."""

from __future__ import annotations

import ctypes
import os
import struct
import time

from utsuwa.host.helper import procfs
from utsuwa.host.helper.cgroups import of_container
from utsuwa.host.interception.messages import CONTINUE, SUCCESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from utsuwa.host.interception.caller import Caller
    from utsuwa.host.interception.messages import Answer, Notification

_SYSINFO = struct.Struct("=q3Q6QH6x2QI4x")
"""Uptime; loads; total, free, shared, buffer, swap, free swap; processes; high memory; the unit in bytes."""
_START = 21
"""Index of the start time in /proc/PID/stat, after the name."""

_libc = ctypes.CDLL(None, use_errno=True)


def sysinfo(call: Notification, caller: Caller) -> Answer:
    """Answer with the container's uptime, processes and memory; its load is the host's."""
    answer = figures(call.init)
    if not call.waits():
        return CONTINUE
    caller.write(call.arguments[0], answer)
    return SUCCESS


def figures(init: int) -> bytes:
    """Return `struct sysinfo` for the container with this init. Raises OSError."""
    buffer = ctypes.create_string_buffer(_SYSINFO.size)
    if _libc.sysinfo(buffer):
        raise OSError(ctypes.get_errno(), "sysinfo")
    values = list(_SYSINFO.unpack(buffer.raw))
    unit = values[13] or 1
    total, free, shared, buffers, swap, free_swap = (value * unit for value in values[4:10])
    memory, pids = _container(init, "memory"), _container(init, "pids")
    limit = _limit(memory, "memory.max", "memory.limit_in_bytes")
    used = _number(memory, "memory.current", "memory.usage_in_bytes")
    if used is not None:
        total = min(total, limit if limit is not None else total)
        cache = _statistics(memory)
        free = min(free, max(0, total - used)) if limit is None else max(0, total - used)
        shared, buffers = cache.get("shmem", shared), 0
        swap, free_swap = _swap(memory, limit, used, swap, free_swap)
    processes = _number(pids, "pids.current", "pids.current")
    values[0] = _uptime(init)
    values[4:10] = total, free, shared, buffers, swap, free_swap
    values[10] = min(processes if processes is not None else values[10], 0xFFFF)
    values[11:14] = 0, 0, 1
    return _SYSINFO.pack(*values)


def _swap(memory: str, limit: int | None, used: int, swap: int, free_swap: int) -> tuple[int, int]:
    """Return what the container has of the host's swap, and what is free of it."""
    own = _limit(memory, "memory.swap.max", "")
    if own is not None:
        used_swap = _number(memory, "memory.swap.current", "") or 0
    else:
        both = _limit(memory, "", "memory.memsw.limit_in_bytes")
        if both is None or limit is None:
            return swap, free_swap
        own = max(0, both - limit)
        used_swap = max(0, (_number(memory, "", "memory.memsw.usage_in_bytes") or used) - used)
    total = min(swap, own)
    return total, min(free_swap, max(0, total - used_swap))


def _uptime(init: int) -> int:
    fields = procfs.read(f"/proc/{init}/stat").rpartition(")")[2].split()
    # The first of them is the third of the file.
    ticks = int(fields[_START - 2])
    return max(0, int(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")))


def _container(init: int, controller: str) -> str:
    """Return the directory of the container's cgroup for a controller, which is init's or above it."""
    try:
        found = of_container(init)
    except ValueError:
        return ""
    return next((path for names, path in found.items() if controller in names), found.get(frozenset(), ""))


def _limit(folder: str, name: str, old_name: str) -> int | None:
    """Return the lowest limit of a cgroup and of those above it; None for none."""
    lowest: int | None = None
    while "/" in folder[1:]:
        value = _number(folder, name, old_name)
        if value is not None and value < 1 << 60:
            lowest = value if lowest is None else min(lowest, value)
        folder = os.path.dirname(folder)
    return lowest


def _number(folder: str, name: str, old_name: str) -> int | None:
    """Return the number in a file of cgroup v2 or v1, None if there is no such file or no limit."""
    for file in filter(None, (name, old_name)):
        text = _read(f"{folder}/{file}")
        if text:
            return int(text) if text.strip().isdigit() else None
    return None


def _statistics(folder: str) -> Mapping[str, int]:
    lines = (line.split() for line in _read(f"{folder}/memory.stat").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}


def _read(path: str) -> str:
    try:
        return procfs.read(path)
    except OSError:
        return ""
