"""The cgroups of a process, in all mounted hierarchies."""

from __future__ import annotations

import os

from utsuwa.host.helper import procfs


def folders(pid: int) -> dict[frozenset[str], str]:
    """Return the process's directory in each hierarchy, by its controllers; those of cgroup v2 have none.

    Raises OSError, and ValueError if a cgroup is not visible here.
    """
    return located(procfs.read(f"/proc/{pid}/cgroup"))


def located(lines: str) -> dict[frozenset[str], str]:
    """As `folders`, for the text of a file /proc/PID/cgroup."""
    paths: dict[frozenset[str], str] = {}
    for line in lines.splitlines():
        _number, controllers, path = line.split(":", 2)
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
