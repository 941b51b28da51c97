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

import errno
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.pool_keys import DEFAULT_OVERLAY_OPTIONS, parse_overlay_options
from utsuwa.host.archives.unpack import archive_format, holds_block_devices, unpack_metadata
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.mounts import mounts
from utsuwa.host.mounts.loop import mount_squashfs
from utsuwa.host.mounts.mounts import OverlayFolder
from utsuwa.host.processes.run import Stopper
from utsuwa.storage.base import Capabilities, ImageSource, InstanceVolume
from utsuwa.storage.drivers import image_folders, records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.folder_pool import TRIAL, FolderPool, copy_metadata, copy_tree, own_folders
from utsuwa.storage.drivers.records import PoolRecord, VolumeRecord

log = logging.getLogger(__name__)

_SQUASHFS = "rootfs.squashfs"
_PRIVILEGED = IdMap()


class OverlayDriver(FolderPool):
    """Layers over shared images."""

    capabilities = Capabilities(name="overlay", copy_on_write_images=True)

    def __init__(
        self,
        folder: Path,
        source: Path,
        config: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(folder, source)
        self._options = parse_overlay_options(config.get("overlay.mount_options") or DEFAULT_OVERLAY_OPTIONS)
        self._maps_overlays = False
        self.configure(config)

    def configure(self, config: Mapping[str, str]) -> None:
        self._unpack_images = parse_bool(config.get("overlay.unpack_images") or "true")

    def _fix_options(self) -> None:
        record = PoolRecord(self.capabilities.name, self._options)
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
    def ensure_image(self, image: ImageSource, ahead: Stopper | None = None) -> None:
        folder = self._form_for_new(image.fingerprint)
        if folder is None:
            folder = self._images.place(image.fingerprint)
            with self._fresh(folder) as new:
                if not self._mount_new_image(new, image):
                    self._unpack_image(image, new, ahead)
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
        _link_or_copy(image.rootfs, folder / _SQUASHFS)
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
            names = self.instances()
            users = [name for name in names if self._may_need(name, needs)]
            # One that was renamed meanwhile may have been passed over under both names.
            if self.instances() == names:
                return users

    def _may_need(self, name: str, needs: Callable[[VolumeRecord], bool]) -> bool:
        folder = self.instance_folder(name)
        try:
            return needs(records.load_volume(folder))
        except FileNotFoundError:
            return folder.is_dir()  # else it has just been deleted
        except HostError:
            return True

    # Instances

    def _fill(self, folder: Path, volume: InstanceVolume, image: ImageSource) -> VolumeRecord:
        form = self._form_for_new(image.fingerprint)
        if form is None:
            raise HostError(f"The image {image.fingerprint[:12]} is gone from its pool: try again")
        lower = self._lower(form.name)
        copy_metadata(form, folder)
        if not self._can_layer(lower, volume.idmap):
            copy_tree(lower, folder / "rootfs")
            return VolumeRecord()
        layers = OverlayFolder(folder)
        layers.make()
        _look_alike(lower, layers.upper)
        return VolumeRecord(image=image.fingerprint, image_folder=form.name)

    def _can_layer(self, lower: Path, idmap: IdMap) -> bool:
        return idmap.privileged or (self._maps_overlays and mounts.can_idmap(lower))

    def _mount(self, folder: Path, volume: InstanceVolume, record: VolumeRecord) -> None:
        lower_folder = records.lower_folder(record)
        if lower_folder is None:
            self._mount_tree(folder, volume.idmap, record)
            return
        layers = OverlayFolder(folder)
        for attached in (layers.layer, layers.lower):  # left there by a kill in mid-mount
            mounts.unmount(attached)
        lower = self._lower(lower_folder)
        if not self._can_layer(lower, volume.idmap):
            log.warning("instance %s becomes a whole copy: the kernel cannot map its image", volume.name)
            record = self._flatten(layers, lower, record)
            self._mount_tree(folder, volume.idmap, record)
            return
        layers.rootfs.mkdir(mode=0o755, exist_ok=True)
        records.change_volume(folder, record, mounted=volume.idmap)
        mounts.mount_overlay(layers, lower, volume.idmap, self._options)

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
    def instance_usage(self, name: str) -> int | None:
        folder = OverlayFolder(self.instance_folder(name))
        if not folder.layer.is_dir():
            return None
        return sum(_bytes_below(tree) for tree in (folder.upper, *own_folders(folder.path)))


def _is_packed(folder: Path) -> bool:
    """Whether the form of an image is a mounted squashfs."""
    return (folder / _SQUASHFS).exists()


def _link_or_copy(source: Path, target: Path) -> None:
    """The pool keeps the file, whatever becomes of the image outside of it."""
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def _look_alike(source: Path, target: Path) -> None:
    """Owner, mode and attributes of one folder for another: the top of an overlay shows its upper layer's."""
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
    for name in _attributes(source):
        if name.startswith(("user.", "system.posix_acl_")):
            os.setxattr(target, name, os.getxattr(source, name))


def _attributes(path: Path) -> list[str]:
    """Names of extended attributes; none where the file system has none (a squashfs built without)."""
    try:
        return os.listxattr(path)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []


def _bytes_below(folder: Path) -> int:
    """Bytes on disk of a tree that may change meanwhile; a file with several names counts once."""
    total = 0
    linked: set[int] = set()
    for _, folders, files, fd in os.fwalk(folder):
        for name in (*folders, *files):
            try:
                status = os.lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if status.st_ino in linked:
                    continue
                linked.add(status.st_ino)
            total += status.st_blocks * 512
    return total
