"""What a container's mounts have of the host, and by which paths the host has it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utsuwa.host.checkpoint.commands import CONSOLE
from utsuwa.host.mounts.mounts import Mount

_CGROUPS = frozenset(("cgroup", "cgroup2"))


def externals(inner: Sequence[Mount], host: Sequence[Mount], disks: Sequence[str] = ()) -> list[str]:
    """Return the mount points inside of what belongs to the host, in mount order.

    That is what is mounted on the host as well, and the `disks`, the mount points of devices. The root and
    the cgroups are restored by CRIU itself.
    """
    devices = {mount.device for mount in host}
    found = []
    for mount in inner:
        target = str(mount.target)
        shared = mount.device in devices and mount.fstype not in _CGROUPS
        shared |= any(path in disks for path in _with_parents(target))
        if target == CONSOLE or (shared and target != "/"):
            found.append(target)
    return list(dict.fromkeys(found))


def sources(wanted: Sequence[str], given: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the host's paths for mount points inside, and those for which there is none.

    `given` are the host's paths by mount points. What is below one of them is below its path; nodes of the
    kernel's devtmpfs are the host's own.
    """
    found: dict[str, str] = {}
    missing: list[str] = []
    for target in wanted:
        above = next((path for path in _with_parents(target) if path in given), None)
        if above is not None:
            found[target] = given[above] + target[len(above) :]
        elif target in _NODES:
            found[target] = target
        else:
            missing.append(target)
    return found, missing


def _with_parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts), 1, -1)]


_NODES = frozenset(f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero"))
"""The nodes that liblxc takes from the host for unprivileged containers."""
