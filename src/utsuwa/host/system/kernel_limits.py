"""The kernel's limits that all containers of a host share, and what a host of a hundred needs. Blocking.

The kernel's defaults suit one system; a guest cannot raise them. The reason of each value is in
docs/host-limits.md. Only the standard library is needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SYSCTL = Path("/proc/sys")
_PID_MAX = 4194304 if sys.maxsize > 2**32 else 32768
"""The most that the kernel takes."""


@dataclass(frozen=True)
class Group:
    """Limits that serve one purpose, with the values that they should have at least."""

    name: str
    cost: str
    """What happens to containers where they are lower."""
    values: Mapping[str, int]


GROUPS = (
    Group(
        "inotify limits",
        "all containers count together: after some containers with systemd (12 with 128 instances) the next "
        "ones have no network, and later ones do not start",
        {
            "fs.inotify.max_user_instances": 65536,
            "fs.inotify.max_user_watches": 1048576,
            "fs.inotify.max_queued_events": 65536,
        },
    ),
    Group(
        "key limits",
        "containers with the same ids count together: after some containers with systemd (13 with 200 keys) "
        "services have no keyring of their own, and Docker starts nothing",
        {"kernel.keys.maxkeys": 20000, "kernel.keys.maxbytes": 2000000},
    ),
    Group(
        "memory maps",
        "databases that ask for more, such as OpenSearch, do not start in containers",
        {"vm.max_map_count": 1048576},
    ),
    Group(
        "neighbour tables",
        "containers that talk to many others lose packets",
        {
            f"net.{family}.neigh.default.gc_thresh{number}": value
            for family in ("ipv4", "ipv6")
            for number, value in ((1, 1024), (2, 4096), (3, 8192))
        },
    ),
    Group(
        "asynchronous I/O",
        "all containers count together: after about twenty database servers the next one does not start",
        {"fs.aio-max-nr": 1048576},
    ),
    Group(
        "process ids",
        "all containers count together: once the ids are used up nothing starts, on the host neither",
        {"kernel.pid_max": _PID_MAX},
    ),
)
WANTED: Mapping[str, int] = {key: value for group in GROUPS for key, value in group.values.items()}


def read(key: str) -> int | None:
    """The value of a sysctl; None where the kernel has none of that name (or not a number)."""
    try:
        return int(_file(key).read_text())
    except (OSError, ValueError):
        return None


def current() -> dict[str, int]:
    """The values of all limits that this kernel has."""
    values = {key: read(key) for key in WANTED}
    return {key: value for key, value in values.items() if value is not None}


def can_write() -> bool:
    """Whether limits can be raised here; in a container they are its host's."""
    return all(
        os.access(_file(key), os.W_OK) for key in ("fs.inotify.max_user_instances", "vm.max_map_count")
    )


def write(key: str, value: int) -> None:
    """Raises OSError."""
    _file(key).write_text(f"{value}\n")


def _file(key: str) -> Path:
    return _SYSCTL.joinpath(*key.split("."))
