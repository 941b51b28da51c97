"""Hosts as their files below /proc and cgroupfs show them, made in a folder."""

from __future__ import annotations

from pathlib import Path

OWN = "u/lxc.payload.c"
"""The container's cgroup in each hierarchy; its init is process 7."""


class Host:
    """A /proc and mounted hierarchies with one container, pid 7."""

    def __init__(self, root: Path, mounts: dict[str, str], paths: list[str], own: list[str]) -> None:
        self.proc = root / "proc"
        self.mounts = {name: root / name for name in mounts}
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "7").mkdir()
        lines = [
            f"{n} 1 0:{n} / {root / name} rw,relatime - {kind} rw"
            for n, (name, kind) in enumerate(mounts.items(), 30)
        ]
        lines += ["20 1 8:1 / / rw - ext4 /dev/vda rw", "broken line"]
        (self.proc / "self/mountinfo").write_text("\n".join(lines))
        (self.proc / "self/cgroup").write_text("\n".join(own))
        (self.proc / "7/cgroup").write_text("\n".join(paths))

    def write(self, mount: str, folder: str, files: dict[str, str]) -> None:
        where = self.mounts[mount] / folder
        where.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (where / name).write_text(text)


def with_v2(root: Path) -> Host:
    """Make a host with cgroup v2 alone, mounted at `cg`."""
    return Host(root, {"cg": "cgroup2 none"}, ["0::/u/lxc.payload.c/init.scope"], ["0::/"])


def with_v1(root: Path) -> Host:
    """Make a host with controllers of v1, and an empty hierarchy of v2 at `uni`."""
    mounts = {
        "cpu": "cgroup none cpu,cpuacct",
        "mem": "cgroup none memory",
        "pids": "cgroup none pids",
        "fr": "cgroup none freezer",
        "blk": "cgroup none blkio",
        "uni": "cgroup2 none",
    }
    controllers = ("cpu,cpuacct", "memory", "pids", "freezer", "blkio")
    paths = [f"{n}:{names}:/{OWN}" for n, names in enumerate(controllers, 1)]
    return Host(root, mounts, [*paths, f"0::/{OWN}"], ["0::/"])
