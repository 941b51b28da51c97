"""Volumes in directories: trees with mapped owners, the directories beside them, and whole copies of both.

What the drivers that keep a pool in a directory have in common; they add how images and layers are used.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap
from utsuwa.core.volumes import Volume, VolumeKind, folder_of
from utsuwa.host.files.shift import Shift, shift_owners
from utsuwa.host.mounts import mounts
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.base import Fill
from utsuwa.storage.drivers import records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.file_copies import FileCopies
from utsuwa.storage.drivers.folder_pool import FolderPool, make_folder
from utsuwa.storage.drivers.records import VolumeRecord
from utsuwa.storage.drivers.trees import bytes_below, copy_metadata, copy_tree

_OWN_FOLDERS = "folders"
"""In a volume's directory: those that its devices of type disk with `source=instance:<name>` show."""


class FolderVolumes(FolderPool):
    """A pool whose volumes are directories."""

    def volume_folder(self, volume: Volume) -> Path:
        return self.folder / volume.path

    @translated
    def volumes(self, kind: VolumeKind) -> list[str]:
        below = self.folder / folder_of(kind)
        return sorted(entry.name for entry in below.iterdir() if not entry.name.startswith("."))

    @translated
    def snapshots(self, volume: Volume) -> list[str]:
        try:
            entries = list((self.folder / volume.snapshots_path).iterdir())
        except FileNotFoundError:
            return []
        return sorted(entry.name for entry in entries if not entry.name.startswith("."))

    @translated
    def create_volume(self, volume: Volume, idmap: IdMap, fill: Fill | None) -> None:
        def lay_out(folder: Path) -> VolumeRecord:
            if fill is None:
                make_folder(folder / "rootfs", 0o755)
            else:
                fill(folder)
            return VolumeRecord()

        self._create(volume, idmap, lay_out)

    def _create(self, volume: Volume, idmap: IdMap, lay_out: Callable[[Path], VolumeRecord]) -> None:
        target = self.volume_folder(volume)
        _refuse_taken(target)
        with self._folder_above(volume), self._fresh(target) as folder:
            record = lay_out(folder)
            if volume.kind != "image":
                records.store_volume(folder, record)
                _own(folder, idmap)

    @contextmanager
    def _folder_above(self, volume: Volume) -> Iterator[None]:
        """Have the directory of the snapshots, for a snapshot; an empty one is removed if the block fails."""
        if volume.snapshot is None:
            yield
            return
        folder = self.volume_folder(volume).parent
        make_folder(folder, 0o711)
        try:
            yield
        except BaseException:
            with suppress(OSError):
                folder.rmdir()  # fails while there are others
            raise

    @translated
    def delete_volume(self, volume: Volume) -> None:
        folder = self.volume_folder(volume)
        self._remove(folder)
        if volume.snapshot is not None:
            with suppress(OSError):
                folder.parent.rmdir()  # fails while there are others

    @translated
    def rename_snapshots(self, volume: Volume, new: Volume) -> None:
        old, target = self.folder / volume.snapshots_path, self.folder / new.snapshots_path
        if old.exists():
            _refuse_taken(target)
            mounts.unmount_below(old)
            old.rename(target)

    @translated
    def rename_volume(self, volume: Volume, new: Volume) -> None:
        old, target = self.volume_folder(volume), self.volume_folder(new)
        if target.exists() and not old.exists():
            return
        _refuse_taken(target)
        mounts.unmount_below(old)
        with self._folder_above(new):
            old.rename(target)
        if volume.snapshot is not None:
            with suppress(OSError):
                old.parent.rmdir()  # fails while there are others

    @translated
    def copy_volume(
        self,
        source: Volume,
        target: Volume,
        idmap: IdMap,
        stopper: Stopper,
        *,
        mounted: IdMap | None = None,
        like: Volume | None = None,
    ) -> None:
        if like is not None:
            FileCopies(self, self).copy_volume(source, target, idmap, stopper, mounted=mounted, like=like)
            return
        if mounted is None:
            self.unmount_volume(source)
        folder = self.volume_folder(source)

        def lay_out(new: Path) -> VolumeRecord:
            record = records.load_volume(folder)
            record = shift_volume(folder, record, record.shifting_to or record.owners)
            copy_beside(folder, new, stopper)
            with mounts.uncovered(folder) as (raw, descriptor):
                copy_tree(raw / "rootfs", new / "rootfs", stopper, descriptor)
            return replace(record, mounted=None)

        self._create(target, idmap, lay_out)

    @translated
    def mount_volume(self, volume: Volume, idmap: IdMap) -> Path:
        folder = self.volume_folder(volume)
        record = records.load_volume(folder)
        rootfs = folder / "rootfs"
        if mounts.mounted(rootfs):
            if record.mounted == idmap:
                return rootfs
            mounts.unmount(rootfs)
        _own(folder, idmap)
        self._mount(folder, idmap, record, readonly=volume.snapshot is not None)
        return rootfs

    def _mount(self, folder: Path, idmap: IdMap, record: VolumeRecord, *, readonly: bool) -> None:
        """Mount a tree of the volume's own through its map, or else shift its owners on disk."""
        rootfs = folder / "rootfs"
        mapped = not idmap.privileged and mounts.can_idmap(rootfs)
        bound = mapped or (readonly and idmap.privileged)
        record = shift_volume(folder, record, IdMap() if mapped else idmap)
        records.change_volume(folder, record, mounted=idmap if bound else None)
        if bound:
            mounts.bind_idmapped(rootfs, rootfs, idmap, readonly=readonly)
        elif not idmap.privileged:
            mounts.bind_without_devices(rootfs, rootfs, readonly=readonly)

    def own_folders(self, volume: Volume) -> list[str]:
        return [folder.name for folder in own_folders(self.volume_folder(volume))]

    def frozen_folders(self) -> list[Path]:
        return [self.folder / name for name in self.frozen]

    @translated
    def mount_folder(self, volume: Volume, idmap: IdMap, name: str) -> Path:
        folder = self.volume_folder(volume)
        place = folder / _OWN_FOLDERS / name
        mounts.unmount(place)
        record = records.load_volume(folder)
        if not place.is_dir():
            _make_own_folder(place, record.owners)
        readonly = volume.snapshot is not None
        if idmap.privileged and not readonly:
            return place
        if record.owners.privileged:
            mounts.bind_idmapped(place, place, idmap, readonly=readonly)
        else:
            mounts.bind_without_devices(place, place, readonly=readonly)
        return place

    @translated
    def unmount_volume(self, volume: Volume) -> None:
        self._unmount(self.volume_folder(volume))

    def _unmount(self, folder: Path) -> None:
        if folder.is_dir():
            mounts.unmount_places(folder, [*own_folders(folder), *folder.iterdir()])

    @translated
    def volume_usage(self, volume: Volume) -> int | None:
        """Only of custom volumes, which contain no image."""
        return bytes_below(self.volume_folder(volume) / "rootfs") if volume.kind == "custom" else None


def _refuse_taken(target: Path) -> None:
    if os.path.lexists(target):
        raise HostError(f"The directory {target} is there already: a volume of that name was not removed")


def _own(folder: Path, idmap: IdMap) -> None:
    """Have an instance's directory owned by its root, who may pass through it and nothing else."""
    owner = (idmap.host_uid(0), idmap.host_gid(0))
    status = folder.stat()
    if (status.st_uid, status.st_gid) != owner:
        os.chown(folder, *owner)
    if stat.S_IMODE(status.st_mode) != 0o100:
        folder.chmod(0o100)


def shift_volume(folder: Path, record: VolumeRecord, wanted: IdMap) -> VolumeRecord:
    """Shift the owners below `rootfs` to a map, completing first what was interrupted."""
    if record.shifting_to is not None:
        record = _shift_once(folder, record, record.shifting_to, resumed=True)
    if record.owners == wanted:
        return record
    record = records.change_volume(folder, record, shifting_to=wanted)
    return _shift_once(folder, record, wanted, resumed=False)


def _shift_once(folder: Path, record: VolumeRecord, wanted: IdMap, *, resumed: bool) -> VolumeRecord:
    for tree in (folder / "rootfs", *own_folders(folder)):
        shift_owners(tree, Shift(record.owners, wanted, resumed=resumed))
    return records.change_volume(folder, record, owners=wanted, shifting_to=None)


def own_folders(folder: Path) -> list[Path]:
    """Return the directories beside an instance's rootfs that belong to it."""
    try:
        return sorted(e for e in (folder / _OWN_FOLDERS).iterdir() if not e.name.startswith("."))
    except FileNotFoundError:
        return []


def copy_description(folder: Path, new: Path) -> None:
    """Copy metadata and templates, if there are any, to another volume's directory."""
    if (folder / "metadata.yaml").exists():
        copy_metadata(folder, new)


def copy_beside(folder: Path, new: Path, stopper: Stopper) -> None:
    """Copy what is beside the rootfs in a volume's directory, as it is on disk."""
    copy_description(folder, new)
    beside = own_folders(folder)
    if beside:
        make_folder(new / _OWN_FOLDERS, 0o711)
    for own in beside:
        with mounts.uncovered(own.parent) as (raw, descriptor):
            copy_tree(raw / own.name, new / _OWN_FOLDERS / own.name, stopper, descriptor)


def _make_own_folder(place: Path, owners: IdMap) -> None:
    """Create an empty directory that is owned by the container's root, in one step."""
    make_folder(place.parent, 0o711)
    new = place.with_name(f".{place.name}")
    make_folder(new, 0o755)
    os.chown(new, owners.host_uid(0), owners.host_gid(0))
    new.rename(place)
