"""What the drivers that keep a pool in a folder share: its layout, trees with mapped owners, clean-up.

A pool whose source is elsewhere is bind-mounted at its folder in the state folder, so that all paths
lie below that one. Everything is made under a name with a leading dot and renamed when it is whole,
and renamed to such a name before it is removed.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from utsuwa.core.errors import HostError, InvalidConfig, InvalidImage
from utsuwa.core.idmap import IdMap
from utsuwa.host.archives.unpack import DEFAULT_LIMITS, unpack_image
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.files.shift import Shift, shift_owners
from utsuwa.host.mounts import mounts
from utsuwa.host.processes.run import Stopper, run_blocking
from utsuwa.storage.base import Capabilities, ImageSource, InstanceVolume, Usage
from utsuwa.storage.drivers import image_folders, records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.image_folders import ImageFolders
from utsuwa.storage.drivers.records import PoolRecord, VolumeRecord

log = logging.getLogger(__name__)

_FOLDERS = {
    "containers": 0o711,
    "containers-snapshots": 0o711,
    "custom": 0o711,
    "custom-snapshots": 0o711,
    "images": 0o700,
}
_COPY_TIMEOUT = 3600
_METADATA = "metadata.yaml"
_OWN_FOLDERS = "folders"
"""Below an instance's folder: what its devices of type disk with `source=instance:<name>` show."""
_TEMPLATES = "templates"
TRIAL = ".trial-"
"""How the names of folders begin in which a driver tries what the file system can do."""
_MAX_TEMPLATE = 1024 * 1024
_MAX_TEMPLATES = 1000


class FolderPool:
    """A pool in a folder; drivers add where images and layers come in."""

    capabilities: ClassVar[Capabilities]

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder = folder
        self.source = source
        self._images = ImageFolders(folder / "images")

    def configure(self, config: Mapping[str, str]) -> None:
        """None of these drivers' keys changes anything while the pool is there, unless one says so."""

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
        records.store_pool(self.folder, PoolRecord(self.capabilities.name))

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
        self._judge_images()

    def _check_own(self) -> None:
        """Raise HostError where the source is not the one that the pool was made in."""
        try:
            record = records.load_pool(self.folder)
        except FileNotFoundError:
            raise HostError(
                f"The pool's source {self.source} does not hold the pool (there is no {records.POOL_FILE}): "
                "mount its file system or bring its content back, and the pool is used again"
            ) from None
        if record.driver != self.capabilities.name:
            raise HostError(f"The folder {self.source} belongs to a pool of another driver")

    def _judge_images(self) -> None:
        """Remove the images that were not on the disk yet when the machine went down."""
        for folder in [folder for folder in self._images.all() if not image_folders.sound(folder)]:
            users = self._users_of_form(folder)
            if not users:
                log.info("image %s was not on the disk yet when the machine went down", folder.name)
                self._remove(folder)
                continue
            log.warning(
                "image %s was not on the disk yet when the machine went down: files of %s may be empty; "
                "make these instances anew",
                folder.name,
                ", ".join(users),
            )

    def _users_of_form(self, folder: Path) -> list[str]:
        """The storage names of the instances whose lower layer is in a folder of an image."""
        return []

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

    # Images

    @translated
    def images(self) -> list[str]:
        return self._images.images()

    @translated
    def trim_image(self, fingerprint: str) -> None:
        """These drivers keep an image in one form only, unless one says otherwise."""

    @translated
    def sync_images(self) -> None:
        self._images.sync()

    @translated
    def delete_image(self, fingerprint: str) -> None:
        for folder in self._images.forms(fingerprint):
            self._remove(folder)

    def _unpack_image(self, image: ImageSource, folder: Path, stopper: Stopper | None) -> None:
        """Lay out an image from its archives; ahead of its use it may have half of the space that is left."""
        limits = DEFAULT_LIMITS
        if stopper is not None:
            disk = os.statvfs(folder)
            limits = replace(limits, size=disk.f_bavail * disk.f_frsize // 2)
        unpack_image(image.metadata, image.rootfs, folder, limits=limits, stopper=stopper)
        image_folders.note_unsynced(folder)

    # Instances

    def instance_folder(self, name: str) -> Path:
        return self.folder / "containers" / name

    @translated
    def instances(self) -> list[str]:
        return sorted(e.name for e in (self.folder / "containers").iterdir() if not e.name.startswith("."))

    @translated
    def create_instance(self, volume: InstanceVolume, image: ImageSource | None) -> None:
        target = self.instance_folder(volume.name)
        if os.path.lexists(target):
            raise HostError(f"The folder {target} is there already: a volume of that name was not removed")
        with self._fresh(target) as folder:
            if image is None:
                _make_folder(folder / "rootfs", 0o755)
                record = VolumeRecord()
            else:
                record = self._fill(folder, volume, image)
            records.store_volume(folder, record)
            _own(folder, volume.idmap)

    def _fill(self, folder: Path, volume: InstanceVolume, image: ImageSource) -> VolumeRecord:
        """Lay out a new instance's folder from its image."""
        raise NotImplementedError

    @translated
    def delete_instance(self, name: str) -> str | None:
        folder = self.instance_folder(name)
        try:
            image = records.load_volume(folder).image
        except (FileNotFoundError, HostError):
            image = None
        self._remove(folder)
        return image

    @translated
    def rename_instance(self, name: str, new: str) -> None:
        old, target = self.instance_folder(name), self.instance_folder(new)
        if os.path.lexists(target):
            raise HostError(f"The folder {target} is there already: a volume of that name was not removed")
        mounts.unmount_below(old)
        records.change_volume(old, records.load_volume(old), renamed_from=name)
        old.rename(target)

    @translated
    def undo_rename(self, name: str, old: str) -> None:
        self.instance_folder(name).rename(self.instance_folder(old))

    @translated
    def renamed_from(self, name: str) -> str | None:
        try:
            return records.load_volume(self.instance_folder(name)).renamed_from
        except (OSError, HostError):
            return None

    @translated
    def mount_instance(self, volume: InstanceVolume) -> Path:
        folder = self.instance_folder(volume.name)
        record = records.load_volume(folder)
        rootfs = folder / "rootfs"
        if mounts.mounted(rootfs):
            if record.mounted == volume.idmap:
                return rootfs
            mounts.unmount(rootfs)
        _own(folder, volume.idmap)
        self._mount(folder, volume, record)
        return rootfs

    def _mount(self, folder: Path, volume: InstanceVolume, record: VolumeRecord) -> None:
        self._mount_tree(folder, volume.idmap, record)

    def _mount_tree(self, folder: Path, idmap: IdMap, record: VolumeRecord) -> None:
        """Show a tree of the instance's own through its map: by a mount, or else by its owners on disk."""
        rootfs = folder / "rootfs"
        mapped = not idmap.privileged and mounts.can_idmap(rootfs)
        record = _shift(folder, record, IdMap() if mapped else idmap)
        records.change_volume(folder, record, mounted=idmap if mapped else None)
        if mapped:
            mounts.bind_idmapped(rootfs, rootfs, idmap)
        elif not idmap.privileged:
            mounts.bind_without_devices(rootfs, rootfs)

    @translated
    def mount_folder(self, volume: InstanceVolume, name: str) -> Path:
        folder = self.instance_folder(volume.name)
        place = folder / _OWN_FOLDERS / name
        mounts.unmount(place)
        record = records.load_volume(folder)
        if not place.is_dir():
            _make_own_folder(place, record.owners)
        if volume.idmap.privileged:
            return place
        if record.owners.privileged:
            mounts.bind_idmapped(place, place, volume.idmap)
        else:
            mounts.bind_without_devices(place, place)
        return place

    @translated
    def unmount_instance(self, name: str) -> None:
        mounts.unmount_below(self.instance_folder(name))

    def instance_usage(self, name: str) -> int | None:
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


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree with everything that it has, sharing blocks where the file system can.

    The copying ends with the daemon: the next one takes away what was copied so far.
    """
    options = ["--archive", "--reflink=auto", "--one-file-system", "--no-target-directory"]
    copy = ["cp", *options, "--", str(source), str(target)]
    run_blocking(["setpriv", "--pdeathsig", "KILL", *copy], timeout=_COPY_TIMEOUT)


def copy_metadata(image: Path, folder: Path) -> None:
    """Give an instance its own `metadata.yaml` and `templates/` from an image's folder.

    Only plain files are copied, no symlink is followed. Raises InvalidImage for others and past the limits.
    """
    _copy_file(image / _METADATA, folder / _METADATA)
    templates = image / _TEMPLATES
    if not templates.exists():
        return
    count = 0
    for below, folders, files in os.walk(templates):
        target = folder / _TEMPLATES / Path(below).relative_to(templates)
        target.mkdir(mode=0o755)
        count += len(folders) + len(files)
        if count > _MAX_TEMPLATES:
            raise InvalidImage(f"The image holds more than {_MAX_TEMPLATES} templates")
        for name in files:
            _copy_file(Path(below) / name, target / name)


def _copy_file(source: Path, target: Path) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_TEMPLATE:
            raise InvalidImage(f"{source.name} in the image is not a file of at most {_MAX_TEMPLATE} bytes")
        made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(made, "wb") as out:
            shutil.copyfileobj(file, out)
