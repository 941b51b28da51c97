"""Images of the driver `overlay`: each is on the pool once, as the lowest layer of its instances.

An image is unpacked, or, on pools with `overlay.unpack_images=false`, kept as its squashfs and loop-mounted,
if the kernel can map its ids and its source is trusted. That saves space, but overlayfs asks the lower layer
whether it supports ACLs, so `setfacl` fails (EOPNOTSUPP) on each file that was not changed yet. The key may
change: instances keep the form with which they were created.

Where the kernel cannot map layers, there is one more form for each id map of instances: a copy with shifted
owners. At most one that nobody needs is kept.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from utsuwa.core.config_keys import ConfigKey, parse_bool
from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.volumes import folder_of, snapshots_folder_of
from utsuwa.host.archives.formats import archive_format
from utsuwa.host.archives.unpack import holds_block_devices, unpack_metadata
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.files.shift import Shift, shift_owners
from utsuwa.host.mounts import mounts
from utsuwa.host.mounts.loop import mount_squashfs
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.drivers import image_folders, records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.folder_volumes import FolderVolumes
from utsuwa.storage.drivers.image_folders import ImageFolders, fingerprint_of
from utsuwa.storage.drivers.records import VolumeRecord
from utsuwa.storage.drivers.trees import copy_metadata, copy_tree, link_or_copy

log = logging.getLogger(__name__)

_SQUASHFS = "rootfs.squashfs"

UNPACK_KEY = ConfigKey(
    "overlay.unpack_images",
    type="bool",
    default="true",
    help=(
        "Whether images are unpacked for new instances, not mounted as squashfs. A mounted image "
        "takes no space, but ACLs cannot be set on those of its files that nothing changed yet."
    ),
)


class OverlayImages(FolderVolumes):
    """A pool with images that are shared by its instances."""

    def __init__(self, folder: Path, config: Mapping[str, str]) -> None:
        super().__init__(folder, config)
        self._images = ImageFolders(folder / "images")
        self._maps_overlays = False
        self._shifting = threading.Lock()
        self._shifted_for: Counter[str] = Counter()
        """The shifted forms that instances which are being created will use."""
        self._unpack_images = _unpacks_images(config)

    def configure(self, config: Mapping[str, str]) -> bool:
        old, self._unpack_images = self._unpack_images, _unpacks_images(config)
        return old != self._unpack_images

    def mount(self) -> None:
        super().mount()
        self._judge_images()

    @translated
    def ensure_image(self, image: ImageSource, stopper: Stopper, *, ahead: bool) -> None:
        folder = self._form_for_new(image.fingerprint)
        if folder is None:
            folder = self._images.place(image.fingerprint)
            with self._fresh(folder) as new:
                if not self._mount_new_image(new, image):
                    image_folders.unpack(image, new, stopper=stopper, ahead=ahead)
        self._lower(folder.name)

    def _form_for_new(self, fingerprint: str) -> Path | None:
        """Return the directory of the image's form for new instances; None if it is not on the pool."""
        fit = [
            folder
            for folder in self._images.forms(fingerprint)
            if image_folders.sound(folder) and records.owners_of_form(folder).privileged
        ]
        packed = [folder for folder in fit if _is_packed(folder)]
        unpacked = [folder for folder in fit if folder not in packed]
        return next(iter(unpacked if self._unpack_images else [*packed, *unpacked]), None)

    @translated
    def trim_image(self, fingerprint: str) -> None:
        forms = self._images.forms(fingerprint)
        if len(forms) < 2:
            return
        kept = self._form_for_new(fingerprint)
        with self._shifting:
            spare = [folder for folder in forms if folder != kept and not self._is_needed(folder)]
            if not self._maps_overlays and kept is not None:
                # The next instance, which may be the only one again, would have to wait for a new copy.
                shifted = [folder for folder in spare if not records.owners_of_form(folder).privileged]
                spare = [folder for folder in spare if folder not in shifted[-1:]]
            for folder in spare:
                self._remove(folder)

    @contextmanager
    def _shifted_form(self, form: Path, idmap: IdMap, stopper: Stopper) -> Iterator[Path]:
        """Yield the copy of an image's form with owners that are shifted to a map; create it if necessary.

        It is kept as long as the block lasts, and as long as a record mentions it.
        """
        with self._shifting:
            folder = self._find_shifted(form, idmap) or self._shift_form(form, idmap, stopper)
            self._shifted_for[folder.name] += 1
        try:
            yield folder
        finally:
            with self._shifting:
                self._shifted_for[folder.name] -= 1

    def _find_shifted(self, form: Path, idmap: IdMap) -> Path | None:
        for folder in self._images.forms(fingerprint_of(form)):
            if image_folders.sound(folder) and records.owners_of_form(folder) == idmap:
                return folder
        return None

    def _shift_form(self, form: Path, idmap: IdMap, stopper: Stopper) -> Path:
        for other in self._images.forms(fingerprint_of(form)):
            if not records.owners_of_form(other).privileged and not self._is_needed(other):
                self._remove(other)
        folder = self._images.place(fingerprint_of(form))
        with self._fresh(folder) as new:
            rootfs = new / "rootfs"
            image_folders.note_unsynced(new)
            copy_metadata(form, new)
            copy_tree(self._lower(form.name), rootfs, stopper)
            shift_owners(rootfs, Shift(IdMap(), idmap))
            records.store_volume(new, VolumeRecord(owners=idmap))
        return folder

    def _is_needed(self, form: Path) -> bool:
        return self._shifted_for[form.name] > 0 or bool(self._users_of_form(form))

    def _mount_new_image(self, folder: Path, image: ImageSource) -> bool:
        """Lay out an image as its mounted squashfs; if that is not possible, leave nothing, return False."""
        if not (image.trusted and image.rootfs and self._maps_overlays) or self._unpack_images:
            return False
        if archive_format(image.rootfs) != "squashfs":
            return False
        unpack_metadata(image.metadata, folder)
        link_or_copy(image.rootfs, folder / _SQUASHFS)
        rootfs = folder / "rootfs"
        rootfs.mkdir(mode=0o755)
        try:
            mount_squashfs(folder / _SQUASHFS, rootfs)
        except (OSError, HostError) as error:
            log.warning("image %s is unpacked, for it cannot be mounted: %s", image.fingerprint, error)
        if mounts.mounted(rootfs) and mounts.can_idmap(rootfs) and not holds_block_devices(rootfs):
            return True
        mounts.unmount(rootfs)
        for entry in folder.iterdir():
            remove_tree(entry)
        return False

    def _lower(self, name: str) -> Path:
        """Return the rootfs of a form of an image, mounted if it is a squashfs. Raises HostError."""
        folder = self.folder / "images" / name
        rootfs = folder / "rootfs"
        if not rootfs.is_dir():
            raise HostError(f"The image {name[:12]} that the instance was made from is gone from its pool")
        if _is_packed(folder) and not mounts.mounted(rootfs):
            mount_squashfs(folder / _SQUASHFS, rootfs)
        return rootfs

    def _is_packed(self, record: VolumeRecord) -> bool:
        """Return whether the lowest layer of a volume is a mounted squashfs."""
        name = records.lower_folder(record)
        return name is not None and _is_packed(self.folder / "images" / name)

    @translated
    def image_users(self, fingerprint: str) -> list[str]:
        return self._users(lambda record: record.image == fingerprint)

    def _users_of_form(self, folder: Path) -> list[str]:
        return self._users(lambda record: records.lower_folder(record) == folder.name)

    def _users(self, needs: Callable[[VolumeRecord], bool]) -> list[str]:
        """Return the names of instances, and `instance/snapshot`, whose record says that they need something.

        One whose record cannot be read counts as a user: nothing is taken from below it.
        """
        while True:
            folders = self._volume_folders()
            users = [name for name, folder in folders.items() if _may_need(folder, needs)]
            # One that was renamed meanwhile may have been passed over under both names.
            if self._volume_folders() == folders:
                return users

    def _volume_folders(self) -> dict[str, Path]:
        """Return the directories of all volumes and snapshots that may be based on an image or on layers."""
        below = {name: self.folder / folder_of("container") / name for name in self.volumes("container")}
        above = self.folder / snapshots_folder_of("container")
        for folder in sorted(above.glob("*/*")):
            if not folder.name.startswith("."):
                below[f"{folder.parent.name}/{folder.name}"] = folder
        return below

    @translated
    def images(self) -> list[str]:
        return self._images.images()

    @translated
    def sync_images(self) -> None:
        image_folders.sync(self._images.all())

    @translated
    def delete_image(self, fingerprint: str) -> None:
        for folder in self._images.forms(fingerprint):
            self._remove(folder)

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


def _may_need(folder: Path, needs: Callable[[VolumeRecord], bool]) -> bool:
    try:
        return needs(records.load_volume(folder))
    except FileNotFoundError:
        return folder.is_dir()  # else it has just been deleted
    except HostError:
        return True


def _is_packed(folder: Path) -> bool:
    """Return whether the form of an image is a mounted squashfs."""
    return (folder / _SQUASHFS).exists()


def _unpacks_images(config: Mapping[str, str]) -> bool:
    return parse_bool(config.get("overlay.unpack_images") or "true")
