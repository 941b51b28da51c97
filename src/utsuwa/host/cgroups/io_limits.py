"""Limits of the requests that containers send to disks, as files of cgroups hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from utsuwa.core.errors import InvalidConfig
from utsuwa.host.cgroups import tree as cgroups

_PROC = Path("/proc")
_FILES_V1 = tuple(
    f"blkio.throttle.{name}_device" for name in ("read_bps", "read_iops", "write_bps", "write_iops")
)
_FILE_V2 = "io.max"
_NAMES_V2 = ("rbps", "riops", "wbps", "wiops")


@dataclass(frozen=True)
class IoLimit:
    """Bytes and requests per second; None for no limit."""

    read_bytes: int | None = None
    read_requests: int | None = None
    write_bytes: int | None = None
    write_requests: int | None = None


Limits = Mapping[str, IoLimit]
"""Limits by disk (`major:minor`)."""


def merged(limits: Iterable[tuple[str, IoLimit]]) -> dict[str, IoLimit]:
    """Return one limit for each disk: the average of those that there are, as LXD has it."""
    by_disk: dict[str, list[IoLimit]] = {}
    for disk, limit in limits:
        by_disk.setdefault(disk, []).append(limit)
    return {
        disk: IoLimit(*map(_average, zip(*map(astuple, found), strict=True)))
        for disk, found in by_disk.items()
    }


def _average(values: Iterable[int | None]) -> int | None:
    given = [value for value in values if value is not None]
    return sum(given) // len(given) if given else None


def version(proc: Path = _PROC) -> int:
    """Return the cgroup version of the controller, 0 if this host has none."""
    found = cgroups.controllers(proc)
    return found["blkio"][0] if "blkio" in found else 2 if "io" in found else 0


def lines(limits: Limits, proc: Path = _PROC) -> list[tuple[str, str]]:
    """Return the limits as lines of lxc.conf. Raises InvalidConfig without a controller for them."""
    if not limits:
        return []
    used = version(proc)
    if not used:
        raise InvalidConfig(
            "Cannot enforce 'limits.read', 'limits.write' and 'limits.max': this host's kernel has no cgroup "
            "controller for them"
        )
    prefix = "lxc.cgroup" if used == 1 else "lxc.cgroup2"
    return [
        (f"{prefix}.{file}", value)
        for disk, limit in sorted(limits.items())
        for file, value in _values(used, disk, limit)
        if used == 2 or not value.endswith(" 0")
    ]


def change(pid: int, old: Limits, new: Limits, proc: Path = _PROC) -> None:
    """Change the limits of a running container from `old` to `new`; does nothing if it has ended.

    Raises InvalidConfig if the kernel refuses one.
    """
    folders = cgroups.folders_of(pid, proc)
    used = version(proc)
    folder = folders.get("blkio" if used == 1 else cgroups.UNIFIED)
    wanted = {**dict.fromkeys(old, IoLimit()), **new}
    if folder is None or not used:
        return
    for disk, limit in sorted(wanted.items()):
        if old.get(disk) == limit:
            continue
        for file, value in _values(used, disk, limit):
            try:
                cgroups.write(folder / file, value)
            except OSError as error:
                if disk in new:
                    raise InvalidConfig(
                        f"The requests to the disk {disk} cannot be limited: the kernel refuses {value!r} "
                        f"for {file} ({error.strerror})"
                    ) from error


def _values(used: int, disk: str, limit: IoLimit) -> Iterator[tuple[str, str]]:
    given = (limit.read_bytes, limit.read_requests, limit.write_bytes, limit.write_requests)
    if used == 1:
        for file, value in zip(_FILES_V1, given, strict=True):
            yield file, f"{disk} {value or 0}"
        return
    parts = (
        f"{name}={'max' if value is None else value}" for name, value in zip(_NAMES_V2, given, strict=True)
    )
    yield _FILE_V2, " ".join((disk, *parts))
