"""The smallest storage driver that fulfils the contract: plain directories, with idmapped mounts."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from utsuwa.core.config_keys import ConfigKey
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.volumes import Volume, VolumeKind, folder_of, snapshots_folder_of
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.mounts import mounts
from utsuwa.storage.base import DriverType, Fill, Usage
from utsuwa.storage.drivers.failures import translated

_KINDS: tuple[VolumeKind, ...] = ("container", "image", "custom")


class PlainDriver:
    """A driver without any of the optional protocols."""

    def __init__(self, folder: Path, config: Mapping[str, str]) -> None:
        self.folder = folder

    @translated
    def create(self) -> None:
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise InvalidConfig(f"The folder {self.folder} is not empty")
        for kind in _KINDS:
            (self.folder / folder_of(kind)).mkdir(mode=0o711, parents=True)
            (self.folder / snapshots_folder_of(kind)).mkdir(mode=0o711)

    @translated
    def delete(self) -> None:
        self.unmount()
        remove_tree(self.folder)

    discard = delete

    @translated
    def mount(self) -> None:
        for kind in _KINDS:
            volumes, snapshots = self.folder / folder_of(kind), self.folder / snapshots_folder_of(kind)
            for begun in (*volumes.glob(".*"), *snapshots.glob("*/.*")):
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
        new.parent.mkdir(mode=0o711, exist_ok=True)
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
        if volume.snapshot is not None:
            with contextlib.suppress(OSError):
                self.volume_folder(volume).parent.rmdir()

    @translated
    def rename_volume(self, volume: Volume, new: Volume) -> None:
        old, target = self.volume_folder(volume), self.volume_folder(new)
        if target.exists() and not old.exists():
            return
        _refuse_taken(target)
        self.unmount_volume(volume)
        target.parent.mkdir(mode=0o711, exist_ok=True)
        old.rename(target)
        if volume.snapshot is not None:
            with contextlib.suppress(OSError):
                old.parent.rmdir()

    @translated
    def rename_snapshots(self, volume: Volume, new: Volume) -> None:
        old, target = self.folder / volume.snapshots_path, self.folder / new.snapshots_path
        if old.exists():
            _refuse_taken(target)
            mounts.unmount_below(old)
            old.rename(target)

    @translated
    def mount_volume(self, volume: Volume, idmap: IdMap) -> Path:
        folder = self.volume_folder(volume)
        rootfs = folder / "rootfs"
        mounts.unmount(rootfs)
        os.chown(folder, idmap.host_uid(0), idmap.host_gid(0))
        folder.chmod(0o100)
        readonly = volume.snapshot is not None
        if readonly or not idmap.privileged:
            mounts.bind_idmapped(rootfs, rootfs, idmap, readonly=readonly)
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

    @translated
    def snapshots(self, volume: Volume) -> list[str]:
        return sorted(path.name for path in (self.folder / volume.snapshots_path).glob("[!.]*"))


def _refuse_taken(target: Path) -> None:
    if target.exists():
        raise HostError(f"The folder {target} is there already ({errno.errorcode[errno.EEXIST]})")


TYPE = DriverType(
    "plain",
    PlainDriver,
    keys=(ConfigKey("plain.color", default="white", live=False, help="Nothing comes of it."),),
    volume_keys=(ConfigKey("plain.shade", help="Nor of this."),),
    needs_idmapped_mounts=True,
)
