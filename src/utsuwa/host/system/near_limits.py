"""Shared resources that this host is about to run out of. Blocking, for a millisecond or less."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from utsuwa.host.system import kernel_limits

_PROC = Path("/proc")
_INOTIFY_SPARE = 24
"""Enough for two more containers with Debian's systemd."""
_NEAR = 0.8
_IN_CLOEXEC = 0o2000000


def check() -> dict[str, str]:
    """Return the limits that are nearly reached, by sysctl (or resource), with their usage."""
    found: dict[str, str] = {}
    instances = kernel_limits.read("fs.inotify.max_user_instances")
    if not _inotify_instances_left(_INOTIFY_SPARE):
        found["fs.inotify.max_user_instances"] = f"fewer than {_INOTIFY_SPARE} of {instances} are left"
    for name, used, limit, what in _counted():
        if used >= limit * _NEAR and name not in found:
            found[name] = f"{used} of {limit} are used{what}"
    return found


def _inotify_instances_left(count: int) -> bool:
    """Return whether `count` more can be created, by creating them, as the kernel does not report the usage.

    Those of all containers count for root, who created their user namespaces.
    """
    library = ctypes.CDLL(None)
    made: list[int] = []
    try:
        while len(made) < count and (fd := library.inotify_init1(_IN_CLOEXEC)) >= 0:
            made.append(fd)
        return len(made) == count
    finally:
        for fd in made:
            os.close(fd)


def _counted() -> Iterator[tuple[str, int, int, str]]:
    """Yield the limits whose usage the kernel reports: name, usage, limit, and a note on the user."""
    yield from keys(_text(_PROC / "key-users"))
    for family, cache in (("ipv4", "arp_cache"), ("ipv6", "ndisc_cache")):
        key = f"net.{family}.neigh.default.gc_thresh3"
        entries = neighbours(_text(_PROC / "net/stat" / cache))
        yield from _against(key, entries, kernel_limits.read(key))
    # A part of the limit is reserved for ptys of the host.
    most, reserved = kernel_limits.read("kernel.pty.max"), kernel_limits.read("kernel.pty.reserve")
    if most is not None and reserved is not None:
        yield from _against("kernel.pty.max", kernel_limits.read("kernel.pty.nr"), most - reserved)
    yield from _against("fs.aio-max-nr", kernel_limits.read("fs.aio-nr"), kernel_limits.read("fs.aio-max-nr"))
    tasks = threads(_text(_PROC / "loadavg"))
    for key in ("kernel.pid_max", "kernel.threads-max"):
        yield from _against(key, tasks, kernel_limits.read(key))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = sum(1 for _ in (_PROC / "self/fd").iterdir())
    yield "the daemon's open files (LimitNOFILE)", open_files, soft, ""


def _against(key: str, used: int | None, limit: int | None) -> Iterator[tuple[str, int, int, str]]:
    if used is not None and limit is not None:
        yield key, used, limit, ""


def keys(text: str) -> Iterator[tuple[str, int, int, str]]:
    """Parse /proc/key-users: the number and size of each user's keys, with the quotas."""
    for line in text.splitlines():
        user, _, rest = line.partition(":")
        fields = rest.split()
        if len(fields) != 4:
            continue
        for key, field in (("kernel.keys.maxkeys", fields[2]), ("kernel.keys.maxbytes", fields[3])):
            used, _, limit = field.partition("/")
            name = key.replace(".max", ".root_max") if user.strip() == "0" else key
            yield name, int(used), int(limit), f" by the user {user.strip()}"


def neighbours(text: str) -> int | None:
    """Parse /proc/net/stat/*_cache: the number of entries in the host's table."""
    lines = text.splitlines()
    return int(lines[1].split()[0], 16) if len(lines) > 1 else None


def threads(text: str) -> int | None:
    """Parse /proc/loadavg: the number of processes and threads."""
    fields = text.split()
    return int(fields[3].partition("/")[2]) if len(fields) > 3 else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
