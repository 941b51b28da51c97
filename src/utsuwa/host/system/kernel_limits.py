"""Kernel limits that all containers of a host share, and values for a hundred containers. Blocking.

The kernel's defaults suit a single system; a container cannot raise them. docs/host-limits.md explains
each value. Uses only the standard library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SYSCTL = Path("/proc/sys")
_PID_MAX = 4194304 if sys.maxsize > 2**32 else 32768
"""The kernel's maximum."""


@dataclass(frozen=True)
class Group:
    """Limits for one purpose, with their recommended minimum values."""

    name: str
    cost: str
    """What happens to containers if they are lower."""
    values: Mapping[str, int]


GROUPS = (
    Group(
        "inotify limits",
        "shared by all containers: after some containers with systemd (12 with 128 instances) the next "
        "ones have no network, and later ones do not start",
        {
            "fs.inotify.max_user_instances": 65536,
            "fs.inotify.max_user_watches": 1048576,
            "fs.inotify.max_queued_events": 65536,
        },
    ),
    Group(
        "key limits",
        "shared by containers with the same ids: after some containers with systemd (13 with 200 keys) "
        "services have no keyring of their own, and Docker cannot start containers",
        {"kernel.keys.maxkeys": 20000, "kernel.keys.maxbytes": 2000000},
    ),
    Group(
        "memory maps",
        "databases that need more, such as OpenSearch, do not start in containers",
        {"vm.max_map_count": 1048576},
    ),
    Group(
        "neighbour tables",
        "containers that communicate with many others lose packets",
        {
            f"net.{family}.neigh.default.gc_thresh{number}": value
            for family in ("ipv4", "ipv6")
            for number, value in ((1, 1024), (2, 4096), (3, 8192))
        },
    ),
    Group(
        "asynchronous I/O",
        "shared by all containers: after about twenty database servers the next one does not start",
        {"fs.aio-max-nr": 1048576},
    ),
    Group(
        "process ids",
        "shared by all containers: once the ids are used up nothing starts, not even on the host",
        {"kernel.pid_max": _PID_MAX},
    ),
)
WANTED: Mapping[str, int] = {key: value for group in GROUPS for key, value in group.values.items()}


def read(key: str) -> int | None:
    """Return the value of a sysctl; None if it does not exist (or is not a number)."""
    try:
        return int(_file(key).read_text())
    except (OSError, ValueError):
        return None


def current() -> dict[str, int]:
    """Return the values of all limits that this kernel has."""
    values = {key: read(key) for key in WANTED}
    return {key: value for key, value in values.items() if value is not None}


def can_write() -> bool:
    """Return whether limits can be raised here; in a container only its host can."""
    return all(
        os.access(_file(key), os.W_OK) for key in ("fs.inotify.max_user_instances", "vm.max_map_count")
    )


def write(key: str, value: int) -> None:
    """Set a sysctl. Raises OSError."""
    _file(key).write_text(f"{value}\n")


def _file(key: str) -> Path:
    return _SYSCTL.joinpath(*key.split("."))
