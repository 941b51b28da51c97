"""A driver in as few lines as the contract asks for: plain folders, on a kernel that maps ids."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from utsuwa.core.config_keys import ConfigKey
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.volumes import Volume, VolumeKind, folder_of
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.mounts import mounts
from utsuwa.storage.base import DriverType, Fill, Usage
from utsuwa.storage.drivers.failures import translated

_KINDS: tuple[VolumeKind, ...] = ("container", "image", "custom")


class PlainDriver:
    """All that a driver needs, and none of what it may have beyond that."""

    def __init__(self, folder: Path, config: Mapping[str, str]) -> None:
        self.folder = folder

    @translated
    def create(self) -> None:
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise InvalidConfig(f"The folder {self.folder} is not empty")
        for kind in _KINDS:
            (self.folder / folder_of(kind)).mkdir(mode=0o711, parents=True)

    @translated
    def delete(self) -> None:
        self.unmount()
        remove_tree(self.folder)

    discard = delete

    @translated
    def mount(self) -> None:
        for kind in _KINDS:
            for begun in (self.folder / folder_of(kind)).glob(".*"):
                mounts.unmount_below(begun)
                remove_tree(begun)

    @translated
    def unmount(self) -> None:
        mounts.unmount_below(self.folder)

    @translated
    def usage(self) -> Usage:
        disk = os.statvfs(self.folder)
        blocks, files = disk.f_blocks - disk.f_bfree, disk.f_files - disk.f_ffree
        return Usage(blocks * disk.f_frsize, disk.f_blocks * disk.f_frsize, files, disk.f_files)

    def configure(self, config: Mapping[str, str]) -> bool:
        return False

    @translated
    def create_volume(self, volume: Volume, idmap: IdMap, fill: Fill | None) -> None:
        target = self.volume_folder(volume)
        _refuse_taken(target)
        new = target.with_name(f".{target.name}")
        new.mkdir(mode=0o700)
        try:
            if fill is None:
                (new / "rootfs").mkdir(mode=0o755)
            else:
                fill(new)
            new.rename(target)
        except BaseException:
            remove_tree(new)
            raise

    @translated
    def delete_volume(self, volume: Volume) -> None:
        self.unmount_volume(volume)
        remove_tree(self.volume_folder(volume))

    @translated
    def rename_volume(self, volume: Volume, new: Volume) -> None:
        old, target = self.volume_folder(volume), self.volume_folder(new)
        if target.exists() and not old.exists():
            return
        _refuse_taken(target)
        self.unmount_volume(volume)
        old.rename(target)

    @translated
    def mount_volume(self, volume: Volume, idmap: IdMap) -> Path:
        folder = self.volume_folder(volume)
        rootfs = folder / "rootfs"
        mounts.unmount(rootfs)
        os.chown(folder, idmap.host_uid(0), idmap.host_gid(0))
        folder.chmod(0o100)
        if not idmap.privileged:
            mounts.bind_idmapped(rootfs, rootfs, idmap)
        return rootfs

    @translated
    def unmount_volume(self, volume: Volume) -> None:
        mounts.unmount_below(self.volume_folder(volume))

    def volume_folder(self, volume: Volume) -> Path:
        return self.folder / volume.path

    def volume_usage(self, volume: Volume) -> int | None:
        return None

    @translated
    def volumes(self, kind: VolumeKind) -> list[str]:
        below = self.folder / folder_of(kind)
        return sorted(entry.name for entry in below.iterdir() if not entry.name.startswith("."))


def _refuse_taken(target: Path) -> None:
    if target.exists():
        raise HostError(f"The folder {target} is there already ({errno.errorcode[errno.EEXIST]})")


TYPE = DriverType(
    "plain",
    PlainDriver,
    keys=(ConfigKey("plain.color", default="white", live=False, help="Nothing comes of it."),),
    volume_keys=(ConfigKey("plain.shade", help="Nor of this."),),
)
