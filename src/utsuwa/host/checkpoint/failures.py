"""What CRIU's errors mean for the user: which processes cannot be saved, and what to do about that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Remedy(Enum):
    """What makes another attempt succeed, if anything does."""

    NONE = "none"
    WAIT = "wait"
    """The obstacle passes by itself within seconds."""
    LOOK_UP = "look up"
    """Directories that are watched have left the kernel's cache, until they are looked up again."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt: the reason in the user's terms."""

    reason: str
    remedy: Remedy = Remedy.NONE
    error: str = ""
    """CRIU's own words."""

    @property
    def full_disk(self) -> bool:
        return self.reason == _FULL


_FULL = "no space left on the storage pool"
_KNOWN: tuple[tuple[str, str, Remedy], ...] = (
    (r"netlink: The socket has data to read", "a netlink socket has unread messages", Remedy.WAIT),
    (
        r"skqueue: Control messages in queue",
        "a unix socket has unread messages with credentials or descriptors",
        Remedy.WAIT,
    ),
    (r"parse_fdinfo_pid_s: error parsing \[inotify wd", "a watched file is not cached", Remedy.LOOK_UP),
    (r"Can't dump that handle", "a watched file is not cached", Remedy.LOOK_UP),
    (
        r"Can't dump nested (?P<what>\w+) namespace for (?P<pid>[0-9]+)",
        "process {pid} has a {what} namespace of its own, as containers inside, browsers and sandboxes of "
        "services have: stop it",
        Remedy.NONE,
    ),
    (
        r"send_fds failed \(-22\)|Can't retrieve FDs from socket",
        "a process uses io_uring: stop it, or set migration.stateful=true and restart the instance",
        Remedy.NONE,
    ),
    (
        r"Unseizable non-zombie PID (?P<pid>[0-9]+)",
        "process {pid} is being traced (strace, gdb)",
        Remedy.NONE,
    ),
    (r"Unsupported proto 262", "a process has an MPTCP socket: stop it", Remedy.NONE),
    (r"Unknown socket collected \(family 40\)", "a process has a vsock socket: stop it", Remedy.NONE),
    (
        r"Can't dump file (?P<fd>[0-9]+) of that type \[[0-9]+\] \((?P<what>[^)]*)\)",
        "a process has opened a file that cannot be saved ({what}): stop it",
        Remedy.NONE,
    ),
    (
        r"Can't dump ghost file",
        "a deleted file of more than 256 MiB is still open: close it",
        Remedy.NONE,
    ),
    (
        r"Can't lookup mount=-?[0-9]+ for fd=(?P<fd>-?[0-9]+) path=(?P<what>\S+)",
        "a process has opened {what}, which is not on a file system of the instance: stop it",
        Remedy.NONE,
    ),
    (
        r"Unsupported link [0-9]+ \(.*kind (?P<what>\w+)\)",
        "there is a network interface of type {what}: remove it",
        Remedy.NONE,
    ),
    (r"No space left on device", _FULL, Remedy.NONE),
)
_PATTERNS = tuple((re.compile(pattern), reason, remedy) for pattern, reason, remedy in _KNOWN)


def explain(log: str, error: str) -> Failure:
    """Return what a log of CRIU means; `error` is its first error that matters."""
    for pattern, reason, remedy in _PATTERNS:
        found = pattern.search(log)
        if found:
            return Failure(reason.format(**found.groupdict()), remedy, error)
    return Failure(error or "CRIU gives no reason", error=error)
