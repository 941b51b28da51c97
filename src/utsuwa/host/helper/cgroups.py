"""The cgroups of a process and of the container that it is in, in all mounted hierarchies."""

from __future__ import annotations

import os

from utsuwa.host.helper import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PAYLOAD_PREFIX = "lxc.payload."
"""Prefix of a container's cgroup below `lxc.cgroup.dir`; a number may follow the name."""


def folders(pid: int) -> dict[frozenset[str], str]:
    """Return the process's directory in each hierarchy, by its controllers; those of cgroup v2 have none.

    Raises OSError, and ValueError if a cgroup is not visible here.
    """
    return located(procfs.read(f"/proc/{pid}/cgroup"))


def of_container(init: int) -> dict[frozenset[str], str]:
    """As `folders`, of the container with this init, which may be in a cgroup below."""
    own = {names: path for names, path in _paths(procfs.read("/proc/self/cgroup"))}
    lines = (
        f"0:{names}:{container_path(path, own.get(names, '/'))}"
        for names, path in _paths(procfs.read(f"/proc/{init}/cgroup"))
    )
    return located("\n".join(lines))


def container_path(path: str, own: str = "/") -> str:
    """Return the container's cgroup, given those of its init (`path`) and of the daemon (`own`).

    If the daemon itself runs in a container, that container's name in the path is skipped.
    """
    passed_over = sum(part.startswith(PAYLOAD_PREFIX) for part in own.split("/"))
    parts = path.split("/")
    for index, part in enumerate(parts):
        if part.startswith(PAYLOAD_PREFIX):
            if passed_over == 0:
                return "/".join(parts[: index + 1])
            passed_over -= 1
    return path.removesuffix("/init.scope") or "/"


def located(lines: str) -> dict[frozenset[str], str]:
    """As `folders`, for the text of a file /proc/PID/cgroup."""
    paths: dict[frozenset[str], str] = {}
    for controllers, path in _paths(lines):
        if "/.." in path:
            raise ValueError("outside this cgroup namespace")
        paths[frozenset(controllers.split(",")) - {""}] = path
    found: dict[frozenset[str], str] = {}
    for line in procfs.read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _source, options = after.split()[:3]
        for names, path in paths.items():
            if kind == ("cgroup" if names else "cgroup2") and names <= {*options.split(",")}:
                inside = os.path.relpath(path, root)
                if not inside.startswith(".."):
                    found.setdefault(names, f"{mount}/{inside}")
    if len(found) != len(paths):
        raise ValueError("a hierarchy is not mounted")
    return found


def _paths(lines: str) -> Iterator[tuple[str, str]]:
    """Yield the controllers and the path of each line of a file /proc/PID/cgroup."""
    for line in lines.splitlines():
        _number, controllers, path = line.split(":", 2)
        yield controllers, path
