"""The driver `overlay`: an instance is a layer over its image, which is there once for all of them.

The image is unpacked once. Pools with `overlay.unpack_images=false` save that space: there the image is its
squashfs, loop-mounted, where the kernel can map its ids and its source is trusted. What such an image
cannot do: the kernel asks the lower layer whether it takes ACLs, so `setfacl` fails (EOPNOTSUPP) on each
file that nothing changed yet. The key may change: instances stay on the form that they were made on.

An instance's folder holds `layer/{upper,work}` and `lower/`, where the image is attached for the moment of
mounting. Owners on disk are always the container's own.

Where the kernel cannot map what a new instance needs, the instance gets a whole copy in place of a
layer; an instance with a layer that meets such a kernel later is turned into a whole copy then.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from utsuwa.core.config_keys import ConfigKey, parse_bool
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.volumes import Volume, folder_of
from utsuwa.host.archives.unpack import archive_format, holds_block_devices, unpack_metadata
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.mounts import mounts
from utsuwa.host.mounts.loop import mount_squashfs
from utsuwa.host.mounts.mounts import OverlayFolder
from utsuwa.host.processes.run import Stopper
from utsuwa.storage.base import DriverType
from utsuwa.storage.drivers import image_folders, records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.folder_pool import TRIAL, FolderPool, own_folders
from utsuwa.storage.drivers.image_folders import ImageFolders
from utsuwa.storage.drivers.overlay_options import DEFAULT_OPTIONS, check_options, parse_options
from utsuwa.storage.drivers.records import PoolRecord, VolumeRecord
from utsuwa.storage.drivers.trees import bytes_below, copy_metadata, copy_tree, link_or_copy, look_alike

log = logging.getLogger(__name__)

_SQUASHFS = "rootfs.squashfs"
_PRIVILEGED = IdMap()


class OverlayDriver(FolderPool):
    """Layers over shared images."""

    name = "overlay"

    def __init__(self, folder: Path, config: Mapping[str, str]) -> None:
        super().__init__(folder, config)
        self._images = ImageFolders(folder / "images")
        self._options = parse_options(config.get("overlay.mount_options") or DEFAULT_OPTIONS)
        self._maps_overlays = False
        self._unpack_images = _unpacks_images(config)

    def configure(self, config: Mapping[str, str]) -> bool:
        old, self._unpack_images = self._unpack_images, _unpacks_images(config)
        return old != self._unpack_images

    def _fix_options(self) -> None:
        record = PoolRecord(self.name, self._options)
        records.store_pool(self.folder, record)
        if not self._trial(mounts.can_overlay):
            raise InvalidConfig(
                f"The file system of {self.source} cannot hold overlay layers with these mount options (it "
                "may be an overlay itself, or lack extended attributes): use the driver 'dir', or a source "
                "on another file system"
            )
        self._maps_overlays = self._trial(mounts.can_overlay_idmapped)

    @translated
    def mount(self) -> None:
        super().mount()
        self._judge_images()
        # What the pool was made with holds, whatever the daemon's defaults became since.
        self._options = records.load_pool(self.folder).mount_options
        self._maps_overlays = self._trial(mounts.can_overlay_idmapped)

    def _trial(self, possible: Callable[[Path, Mapping[str, str]], bool]) -> bool:
        folder = self.folder / "containers" / f"{TRIAL}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o711)
        try:
            return possible(folder, self._options)
        finally:
            mounts.unmount_below(folder)
            remove_tree(folder)

    # Images

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
        """The folder of the image's form that new instances get; None where it is not on the pool."""
        fit = [folder for folder in self._images.forms(fingerprint) if image_folders.sound(folder)]
        packed = [folder for folder in fit if _is_packed(folder)]
        unpacked = [folder for folder in fit if folder not in packed]
        return next(iter(unpacked if self._unpack_images else [*packed, *unpacked]), None)

    @translated
    def trim_image(self, fingerprint: str) -> None:
        forms = self._images.forms(fingerprint)
        if len(forms) < 2:
            return
        kept = self._form_for_new(fingerprint)
        for folder in forms:
            if folder != kept and not self._users_of_form(folder):
                self._remove(folder)

    def _mount_new_image(self, folder: Path, image: ImageSource) -> bool:
        """Lay out an image whose squashfs can stay packed; else leave the folder empty and give False."""
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
        """The rootfs of an image's form, mounted where it is a squashfs; HostError where the pool lost it."""
        folder = self.folder / "images" / name
        rootfs = folder / "rootfs"
        if not rootfs.is_dir():
            raise HostError(f"The image {name[:12]} that the instance was made from is gone from its pool")
        if _is_packed(folder) and not mounts.mounted(rootfs):
            mount_squashfs(folder / _SQUASHFS, rootfs)
        return rootfs

    @translated
    def image_users(self, fingerprint: str) -> list[str]:
        return self._users(lambda record: record.image == fingerprint)

    def _users_of_form(self, folder: Path) -> list[str]:
        return self._users(lambda record: records.lower_folder(record) == folder.name)

    def _users(self, needs: Callable[[VolumeRecord], bool]) -> list[str]:
        """Instances whose record cannot be read count as users: nothing is taken from below them."""
        while True:
            names = self.volumes("container")
            users = [name for name in names if self._may_need(name, needs)]
            # One that was renamed meanwhile may have been passed over under both names.
            if self.volumes("container") == names:
                return users

    def _may_need(self, name: str, needs: Callable[[VolumeRecord], bool]) -> bool:
        folder = self.folder / folder_of("container") / name
        try:
            return needs(records.load_volume(folder))
        except FileNotFoundError:
            return folder.is_dir()  # else it has just been deleted
        except HostError:
            return True

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

    # Volumes

    @translated
    def create_from_image(self, volume: Volume, idmap: IdMap, image: ImageSource, stopper: Stopper) -> None:
        self._create(volume, idmap, lambda folder: self._lay_over(folder, idmap, image, stopper))

    @translated
    def image_of(self, volume: Volume) -> str | None:
        try:
            return records.load_volume(self.volume_folder(volume)).image
        except (FileNotFoundError, HostError):
            return None

    def _lay_over(self, folder: Path, idmap: IdMap, image: ImageSource, stopper: Stopper) -> VolumeRecord:
        form = self._form_for_new(image.fingerprint)
        if form is None:
            raise HostError(f"The image {image.fingerprint[:12]} is gone from its pool: try again")
        lower = self._lower(form.name)
        copy_metadata(form, folder)
        if not self._can_layer(lower, idmap):
            copy_tree(lower, folder / "rootfs", stopper)
            return VolumeRecord()
        layers = OverlayFolder(folder)
        layers.make()
        look_alike(lower, layers.upper)
        return VolumeRecord(image=image.fingerprint, image_folder=form.name)

    def _can_layer(self, lower: Path, idmap: IdMap) -> bool:
        return idmap.privileged or (self._maps_overlays and mounts.can_idmap(lower))

    def _mount(self, folder: Path, idmap: IdMap, record: VolumeRecord) -> None:
        lower_folder = records.lower_folder(record)
        if lower_folder is None:
            super()._mount(folder, idmap, record)
            return
        layers = OverlayFolder(folder)
        for attached in (layers.layer, layers.lower):  # left there by a kill in mid-mount
            mounts.unmount(attached)
        lower = self._lower(lower_folder)
        if not self._can_layer(lower, idmap):
            log.warning("instance %s becomes a whole copy: the kernel cannot map its image", folder.name)
            record = self._flatten(layers, lower, record)
            super()._mount(folder, idmap, record)
            return
        layers.rootfs.mkdir(mode=0o755, exist_ok=True)
        records.change_volume(folder, record, mounted=idmap)
        mounts.mount_overlay(layers, lower, idmap, self._options)

    def _flatten(self, layers: OverlayFolder, lower: Path, record: VolumeRecord) -> VolumeRecord:
        """Turn a layer into a tree of its own; begun anew where a kill cut it off."""
        whole = layers.path / "rootfs.whole"
        remove_tree(whole)
        layers.rootfs.mkdir(mode=0o755, exist_ok=True)
        mounts.mount_overlay(layers, lower, _PRIVILEGED, self._options)
        try:
            copy_tree(layers.rootfs, whole)
        except BaseException:
            remove_tree(whole)
            raise
        finally:
            mounts.unmount(layers.rootfs)
        remove_tree(layers.rootfs)
        whole.rename(layers.rootfs)
        record = records.change_volume(layers.path, record, image=None, image_folder="")
        for rest in (layers.layer, layers.lower):
            remove_tree(rest)
        return record

    @translated
    def volume_usage(self, volume: Volume) -> int | None:
        folder = OverlayFolder(self.volume_folder(volume))
        if not folder.layer.is_dir():
            return None
        return sum(bytes_below(tree) for tree in (folder.upper, *own_folders(folder.path)))


def _is_packed(folder: Path) -> bool:
    """Whether the form of an image is a mounted squashfs."""
    return (folder / _SQUASHFS).exists()


def _unpacks_images(config: Mapping[str, str]) -> bool:
    return parse_bool(config.get("overlay.unpack_images") or "true")


TYPE = DriverType(
    OverlayDriver.name,
    OverlayDriver,
    keys=(
        ConfigKey(
            "overlay.mount_options",
            default=DEFAULT_OPTIONS,
            live=False,
            help="Options of the overlay mounts. They shape what is on disk, so they are fixed at creation.",
            validate=check_options,
        ),
        ConfigKey(
            "overlay.unpack_images",
            type="bool",
            default="true",
            help=(
                "Whether images are unpacked for new instances, not mounted as squashfs. A mounted image "
                "takes no space, but ACLs cannot be set on those of its files that nothing changed yet."
            ),
        ),
    ),
)
