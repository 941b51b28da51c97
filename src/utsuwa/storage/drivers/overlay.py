"""The driver `overlay`: an instance is a layer over its image, which is there once for all of them.

The image is its squashfs, loop-mounted, where the kernel can map its ids and its source is trusted;
else it is unpacked once. An instance's folder holds `layer/{upper,work}` and `lower/`, where the image
is attached for the moment of mounting. Owners on disk are always the container's own.

One thing a mounted squashfs cannot do: the kernel refuses to set an ACL on a file of the image that
nothing changed yet (EOPNOTSUPP, for squashfs has none). Pools with `overlay.unpack_images` can.

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

from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.pool_keys import DEFAULT_OVERLAY_OPTIONS, parse_overlay_options
from utsuwa.host import mounts
from utsuwa.host.filetree import remove_tree
from utsuwa.host.loop import mount_squashfs
from utsuwa.host.mounts import OverlayFolder
from utsuwa.host.unpack import archive_format, unpack_image, unpack_metadata
from utsuwa.storage.base import Capabilities, ImageSource, InstanceVolume
from utsuwa.storage.drivers import records
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
        mount_options: str = DEFAULT_OVERLAY_OPTIONS,
        *,
        unpack_images: bool = False,
    ) -> None:
        super().__init__(folder, source)
        self._options = parse_overlay_options(mount_options)
        self._unpack_images = unpack_images
        self._maps_overlays = False

    def _fix_options(self) -> None:
        record = PoolRecord(self.capabilities.name, self._options, self._unpack_images)
        records.store_pool(self.folder, record)
        if not self._trial(mounts.can_overlay):
            raise InvalidConfig(
                f"The file system of {self.source} cannot hold overlay layers (it may be an overlay itself): "
                "use the driver 'dir', or a source on another file system"
            )
        self._maps_overlays = self._trial(mounts.can_overlay_idmapped)

    @translated
    def mount(self) -> None:
        super().mount()
        # What the pool was made with holds, whatever the daemon's defaults became since.
        record = records.load_pool(self.folder)
        self._options, self._unpack_images = record.mount_options, record.unpack_images
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
    def ensure_image(self, image: ImageSource) -> None:
        target = self.image_folder(image.fingerprint)
        if not target.is_dir():
            with self._fresh(target) as folder:
                if not self._mount_new_image(folder, image):
                    unpack_image(image.metadata, image.rootfs, folder)
        self._lower(image.fingerprint)

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
        if mounts.mounted(rootfs) and mounts.can_idmap(rootfs):
            return True
        mounts.unmount(rootfs)
        for entry in folder.iterdir():
            remove_tree(entry)
        return False

    def _lower(self, fingerprint: str) -> Path:
        """The image's rootfs, mounted where it is a squashfs. Raises HostError where the pool lost it."""
        folder = self.image_folder(fingerprint)
        rootfs = folder / "rootfs"
        if not rootfs.is_dir():
            raise HostError(
                f"The image {fingerprint[:12]} that the instance was made from is gone from its pool"
            )
        if (folder / _SQUASHFS).exists() and not mounts.mounted(rootfs):
            mount_squashfs(folder / _SQUASHFS, rootfs)
        return rootfs

    @translated
    def image_users(self, fingerprint: str) -> list[str]:
        """Instances whose record cannot be read count as users: nothing is taken from below them."""
        while True:
            names = self.instances()
            users = [name for name in names if self._may_need(name, fingerprint)]
            # One that was renamed meanwhile may have been passed over under both names.
            if self.instances() == names:
                return users

    def _may_need(self, name: str, fingerprint: str) -> bool:
        folder = self.instance_folder(name)
        try:
            return records.load_volume(folder).image == fingerprint
        except FileNotFoundError:
            return folder.is_dir()  # else it has just been deleted
        except HostError:
            return True

    # Instances

    def _fill(self, folder: Path, volume: InstanceVolume, image: ImageSource) -> VolumeRecord:
        lower = self._lower(image.fingerprint)
        copy_metadata(lower.parent, folder)
        if not self._can_layer(lower, volume.idmap):
            copy_tree(lower, folder / "rootfs")
            return VolumeRecord()
        layers = OverlayFolder(folder)
        layers.make()
        _look_alike(lower, layers.upper)
        return VolumeRecord(image=image.fingerprint)

    def _can_layer(self, lower: Path, idmap: IdMap) -> bool:
        return idmap.privileged or (self._maps_overlays and mounts.can_idmap(lower))

    def _mount(self, folder: Path, volume: InstanceVolume, record: VolumeRecord) -> None:
        if record.image is None:
            self._mount_tree(folder, volume.idmap, record)
            return
        layers = OverlayFolder(folder)
        for attached in (layers.layer, layers.lower):  # left there by a kill in mid-mount
            mounts.unmount(attached)
        lower = self._lower(record.image)
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
        record = records.change_volume(layers.path, record, image=None)
        for rest in (layers.layer, layers.lower):
            remove_tree(rest)
        return record

    @translated
    def instance_usage(self, name: str) -> int | None:
        folder = OverlayFolder(self.instance_folder(name))
        if not folder.layer.is_dir():
            return None
        return sum(_bytes_below(tree) for tree in (folder.upper, *own_folders(folder.path)))


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
