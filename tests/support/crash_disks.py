"""Disks and device nodes of the instances whose daemon is killed: what they may be, and what they are."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

Devices = dict[str, dict[str, str]]

NAMES = ("below", "char", "data")
_PATHS = ("/mnt", "/srv")
_MOUNTED = (*_PATHS, "/media")
_NODES = ("/dev/own", "/dev/shared")


class Disks:
    """Two directories of the host that instances mount, each with a file of its name."""

    def __init__(self, folder: Path) -> None:
        self.sources = (folder / "one", folder / "two")
        for source in self.sources:
            (source / "below").mkdir(parents=True)
            (source / source.name).touch()

    def some(self, random_: random.Random) -> Devices:
        """A disk, another one below it, and a device; each of them or none."""
        path = random_.choice(_PATHS)
        devices: Devices = {
            "data": {"type": "disk", "source": str(random_.choice(self.sources)), "path": path},
            "below": {"type": "disk", "source": str(self.sources[0]), "path": f"{path}/below"},
            "char": {"type": "unix-char", "source": "/dev/zero", "path": "/dev/own"},
        }
        if random_.random() < 0.5:
            devices["data"]["readonly"] = "true"
        if random_.random() < 0.3:
            devices.pop("data")
        return {name: device for name, device in devices.items() if random_.random() < 0.8}

    def check(self, pid: int, devices: Devices, folder: Path) -> None:
        """Raise AssertionError if a running container, with this init and folder of devices, has others.

        `devices` are disks and character devices.
        """
        inside = Path(f"/proc/{pid}/root")
        mounts = self._mounts(pid)
        disks = {device["path"]: device for device in devices.values() if device["type"] == "disk"}
        assert set(mounts) == set(disks), f"mounted are {mounts} instead of {disks}"
        for path, device in disks.items():
            assert ("ro" in mounts[path]) == ("readonly" in device), f"{path} is mounted with {mounts[path]}"
            shown = {entry.name for entry in (inside / path[1:]).iterdir()}
            assert shown == {"below", Path(device["source"]).name}, f"{path} shows {shown}"
        chars = {name: device["path"] for name, device in devices.items() if device["type"] == "unix-char"}
        shown = {node for node in _NODES if (inside / node[1:]).exists()}
        assert shown == set(chars.values()), f"devices inside are {shown} instead of {chars}"
        own = {entry.name for entry in folder.iterdir() if entry.name.startswith(("disk", "unix"))}
        known = {f"disk.{name}" for name, device in devices.items() if device["type"] == "disk"}
        known |= {f"unix.{name}.{node[1:].replace('/', '-')}" for name, node in chars.items()}
        assert own == known, f"prepared are {own} instead of {known}"

    def _mounts(self, pid: int) -> dict[str, set[str]]:
        """The options of what is mounted at the paths that disks have."""
        lines = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
        return {line[1]: set(line[3].split(",")) for line in lines if line[1].startswith(_MOUNTED)}


def of(instance: dict[str, Any]) -> Devices:
    """The instance's devices of these names."""
    return {name: device for name, device in instance["devices"].items() if name in NAMES}
