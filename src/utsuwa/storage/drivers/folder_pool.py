"""What the drivers that keep a pool in a folder share: its layout, trees with mapped owners, clean-up.

A pool whose source is elsewhere is bind-mounted at its folder in the state folder, so that all paths
lie below that one. Everything is made under a name with a leading dot and renamed when it is whole,
and renamed to such a name before it is removed.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.volumes import Volume, VolumeKind, folder_of
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.files.shift import Shift, shift_owners
from utsuwa.host.mounts import mounts
from utsuwa.storage.base import Fill, Usage
from utsuwa.storage.drivers import records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.records import PoolRecord, VolumeRecord

_FOLDERS = {
    "containers": 0o711,
    "containers-snapshots": 0o711,
    "custom": 0o711,
    "custom-snapshots": 0o711,
    "images": 0o700,
}
_OWN_FOLDERS = "folders"
"""Below an instance's folder: what its devices of type disk with `source=instance:<name>` show."""
TRIAL = ".trial-"
"""How the names of folders begin in which a driver tries what the file system can do."""


class FolderPool:
    """A pool in a folder; drivers add where images and layers come in."""

    name: ClassVar[str]

    def __init__(self, folder: Path, config: Mapping[str, str]) -> None:
        self.folder = folder
        self.source = Path(config.get("source") or folder)

    def configure(self, config: Mapping[str, str]) -> bool:
        """None of these drivers' keys changes anything while the pool is there, unless one says so."""
        return False

    @property
    def _elsewhere(self) -> bool:
        return self.source != self.folder

    @translated
    def create(self) -> None:
        if self._elsewhere and not self.source.is_dir():
            raise InvalidConfig(f"The source {self.source} is not a folder that exists")
        if self.source.is_dir() and {e.name for e in self.source.iterdir()} - {"lost+found"}:
            raise InvalidConfig(f"The source {self.source} is not empty: a pool needs a folder of its own")
        try:
            self.folder.mkdir(mode=0o711, exist_ok=True)
            self._bind()
            self.folder.chmod(0o711)
            for name, mode in _FOLDERS.items():
                _make_folder(self.folder / name, mode)
            self._fix_options()
        except BaseException:
            self.delete()
            raise

    def _fix_options(self) -> None:
        """Write down what holds for the pool's whole life."""
        records.store_pool(self.folder, PoolRecord(self.name))

    @translated
    def delete(self) -> None:
        mounts.unmount_below(self.folder / "images")
        mounts.unmount_below(self.folder / "containers")
        if not self._elsewhere or mounts.mounted(self.folder):
            for name in _FOLDERS:
                remove_tree(self.folder / name)
            records.remove_pool(self.folder)
        self._let_go()

    @translated
    def discard(self) -> None:
        if self.source.is_dir():
            self.folder.mkdir(mode=0o711, exist_ok=True)
            self._bind()  # gone where the machine has ended meanwhile
            if not self._only_just_begun():
                if self._elsewhere:
                    self._let_go()
                raise HostError(f"The folder {self.source} held something before: it is left as it is")
            for name in _FOLDERS:
                remove_tree(self.folder / name)
            records.remove_pool(self.folder)
        self._let_go()

    def _only_just_begun(self) -> bool:
        """Whether the folder has what `create` makes, all of it empty but for its trials, and no more."""
        known = {*_FOLDERS, *records.POOL_FILES, "lost+found"}
        if any(entry.name not in known for entry in self.folder.iterdir()):
            return False
        for trial in (self.folder / "containers").glob(f"{TRIAL}*"):
            mounts.unmount_below(trial)
            remove_tree(trial)
        folders = [self.folder / name for name in _FOLDERS if (self.folder / name).is_dir()]
        return not any(any(folder.iterdir()) for folder in folders)

    def _let_go(self) -> None:
        self._unbind()
        if self.folder.is_dir():
            self.folder.rmdir()

    def _unbind(self) -> None:
        if self._elsewhere:
            mounts.unmount(self.folder)

    @translated
    def mount(self) -> None:
        self.folder.mkdir(mode=0o711, exist_ok=True)
        bound = self._bind()
        try:
            self._check_own()
        except BaseException:
            if bound:
                self._unbind()  # what comes to that place later is looked at anew
            raise
        for name in ("images", "containers"):
            for entry in (self.folder / name).iterdir():
                if entry.name.startswith("."):
                    mounts.unmount_below(entry)
                    remove_tree(entry)

    def _check_own(self) -> None:
        """Raise HostError where the source is not the one that the pool was made in."""
        try:
            record = records.load_pool(self.folder)
        except FileNotFoundError:
            raise HostError(
                f"The pool's source {self.source} does not hold the pool (there is no {records.POOL_FILE}): "
                "mount its file system or bring its content back, and the pool is used again"
            ) from None
        if record.driver != self.name:
            raise HostError(f"The folder {self.source} belongs to a pool of another driver")

    def _bind(self) -> bool:
        """Show the source at the pool's folder; whether that had not been done yet."""
        if not self._elsewhere or mounts.mounted(self.folder):
            return False
        if not self.source.is_dir():
            raise HostError(
                f"The pool's source {self.source} is not there: mount its file system or bring the folder "
                "back, and the pool is used again"
            )
        mounts.bind(self.source, self.folder)
        return True

    @translated
    def unmount(self) -> None:
        mounts.unmount_below(self.folder)

    @translated
    def usage(self) -> Usage:
        disk = os.statvfs(self.folder)
        return Usage(
            space_used=(disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            space_total=disk.f_blocks * disk.f_frsize,
            inodes_used=disk.f_files - disk.f_ffree,
            inodes_total=disk.f_files,
        )

    # Volumes

    def volume_folder(self, volume: Volume) -> Path:
        return self.folder / volume.path

    @translated
    def volumes(self, kind: VolumeKind) -> list[str]:
        below = self.folder / folder_of(kind)
        return sorted(entry.name for entry in below.iterdir() if not entry.name.startswith("."))

    @translated
    def create_volume(self, volume: Volume, idmap: IdMap, fill: Fill | None) -> None:
        def lay_out(folder: Path) -> VolumeRecord:
            if fill is None:
                _make_folder(folder / "rootfs", 0o755)
            else:
                fill(folder)
            return VolumeRecord()

        self._create(volume, idmap, lay_out)

    def _create(self, volume: Volume, idmap: IdMap, lay_out: Callable[[Path], VolumeRecord]) -> None:
        target = self.volume_folder(volume)
        _refuse_taken(target)
        with self._fresh(target) as folder:
            record = lay_out(folder)
            if volume.kind != "image":
                records.store_volume(folder, record)
                _own(folder, idmap)

    @translated
    def delete_volume(self, volume: Volume) -> None:
        self._remove(self.volume_folder(volume))

    @translated
    def rename_volume(self, volume: Volume, new: Volume) -> None:
        old, target = self.volume_folder(volume), self.volume_folder(new)
        if target.exists() and not old.exists():
            return
        _refuse_taken(target)
        mounts.unmount_below(old)
        old.rename(target)

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
        self._mount(folder, idmap, record)
        return rootfs

    def _mount(self, folder: Path, idmap: IdMap, record: VolumeRecord) -> None:
        """Show a tree of the volume's own through its map: by a mount, or else by its owners on disk."""
        rootfs = folder / "rootfs"
        mapped = not idmap.privileged and mounts.can_idmap(rootfs)
        record = _shift(folder, record, IdMap() if mapped else idmap)
        records.change_volume(folder, record, mounted=idmap if mapped else None)
        if mapped:
            mounts.bind_idmapped(rootfs, rootfs, idmap)
        elif not idmap.privileged:
            mounts.bind_without_devices(rootfs, rootfs)

    @translated
    def mount_folder(self, volume: Volume, idmap: IdMap, name: str) -> Path:
        folder = self.volume_folder(volume)
        place = folder / _OWN_FOLDERS / name
        mounts.unmount(place)
        record = records.load_volume(folder)
        if not place.is_dir():
            _make_own_folder(place, record.owners)
        if idmap.privileged:
            return place
        if record.owners.privileged:
            mounts.bind_idmapped(place, place, idmap)
        else:
            mounts.bind_without_devices(place, place)
        return place

    @translated
    def unmount_volume(self, volume: Volume) -> None:
        folder = self.volume_folder(volume)
        if folder.is_dir():
            mounts.unmount_places(folder, [*own_folders(folder), *folder.iterdir()])

    def volume_usage(self, volume: Volume) -> int | None:
        return None

    # Whole folders, all or nothing

    @contextmanager
    def _fresh(self, target: Path) -> Iterator[Path]:
        """A new folder (0700) that becomes `target` at the end of the block, or goes where it fails."""
        folder = target.with_name(f".new-{secrets.token_hex(8)}")
        folder.mkdir(mode=0o700)
        try:
            yield folder
            folder.rename(target)
        except BaseException:
            mounts.unmount_below(folder)
            remove_tree(folder)
            raise

    def _remove(self, folder: Path) -> None:
        if not os.path.lexists(folder):
            return
        mounts.unmount_below(folder)
        gone = folder.with_name(f".gone-{secrets.token_hex(8)}")
        folder.rename(gone)
        remove_tree(gone)


def _refuse_taken(target: Path) -> None:
    if os.path.lexists(target):
        raise HostError(f"The folder {target} is there already: a volume of that name was not removed")


def _make_folder(path: Path, mode: int) -> None:
    path.mkdir(mode=mode, exist_ok=True)
    path.chmod(mode)


def _own(folder: Path, idmap: IdMap) -> None:
    """The instance's folder belongs to its root, who may pass through it and nothing else."""
    owner = (idmap.host_uid(0), idmap.host_gid(0))
    status = folder.stat()
    if (status.st_uid, status.st_gid) != owner:
        os.chown(folder, *owner)
    if stat.S_IMODE(status.st_mode) != 0o100:
        folder.chmod(0o100)


def _shift(folder: Path, record: VolumeRecord, wanted: IdMap) -> VolumeRecord:
    """Shift the owners below `rootfs` to a map, finishing first what a kill cut off."""
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
    """The folders beside an instance's rootfs that belong to it."""
    try:
        return sorted(e for e in (folder / _OWN_FOLDERS).iterdir() if not e.name.startswith("."))
    except FileNotFoundError:
        return []


def _make_own_folder(place: Path, owners: IdMap) -> None:
    """Empty, and owned by the container's root: all of that, or not there."""
    _make_folder(place.parent, 0o711)
    new = place.with_name(f".{place.name}")
    _make_folder(new, 0o755)
    os.chown(new, owners.host_uid(0), owners.host_gid(0))
    new.rename(place)
