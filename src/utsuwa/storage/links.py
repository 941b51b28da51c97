"""The symlinks `containers/<name>` and `snapshots/<name>` in the state directory.

liblxc relies on the former, users and tools on both, as with LXD. Everything here blocks and must run in
worker threads.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from utsuwa.core.volumes import Volume
from utsuwa.storage.base import VolumeDriver


class Links:
    """The symlinks to the directories of instances, and to those with their snapshots."""

    def __init__(self, containers: Path, snapshots: Path) -> None:
        self._containers = containers
        self._snapshots = snapshots

    def make(self, name: str, target: Path) -> None:
        """Create or update the link to an instance's directory."""
        _link(self._containers / name, target)

    def add_snapshot(self, driver: VolumeDriver, snapshot: Volume) -> None:
        """Create or update the link to an instance's snapshots, which include this one."""
        _link(self._snapshots / snapshot.storage_name, driver.volume_folder(snapshot).parent)

    def update_snapshots(self, driver: VolumeDriver, volume: Volume) -> None:
        """Create or update the link to an instance's snapshots; remove it if there are none."""
        link = self._snapshots / volume.storage_name
        names = driver.snapshots(volume)
        if names:
            _link(link, driver.volume_folder(volume.snapshot_named(names[0])).parent)
        else:
            link.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove the links of an instance, if there are any."""
        for directory in (self._containers, self._snapshots):
            (directory / name).unlink(missing_ok=True)

    def sweep(self, known: Container[str]) -> None:
        """Remove links without an instance."""
        for directory in (self._containers, self._snapshots):
            for link in directory.iterdir():
                if link.is_symlink() and link.name not in known:
                    link.unlink()


def _link(link: Path, target: Path) -> None:
    if link.is_symlink():
        if link.readlink() == target:
            return
        link.unlink()
    link.symlink_to(target)
