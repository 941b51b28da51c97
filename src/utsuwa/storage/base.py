"""The contract of storage drivers: small protocols, and one record that says what a driver is.

A driver acts on the host and knows no database, no events and no other driver. Every method is blocking and
runs in a worker thread; the manager holds the lock of the volume or the image meanwhile. Failures are
HostError or OutOfSpace (ENOSPC, EDQUOT). A method that fails leaves nothing behind, and a method that removes
something does nothing if it does not exist: a step can be undone without knowing how far it got.

Every driver is a `Driver`: a `PoolDriver` and a `VolumeDriver`. The other protocols are optional; where a
driver lacks one, a generic fallback works on files, or the request is refused.

A volume is at `Volume.path` below the pool's directory. That of an instance contains `rootfs/` (the mount
point, or the tree itself), `metadata.yaml`, `templates/`, and what the driver keeps beside them. The
directories above a rootfs are 0711, the volume's directory is 0100 and owned by the host id of the
container's root.

A custom volume contains `rootfs/` only, whose root instances see where they attach it. It is always a tree of
its own, never an overlay: several instances may mount it at the same time, through different id maps.

A snapshot is a volume as well, with the same methods, but it is always mounted read-only. Snapshots are not
affected by methods that are called for their volume, except `rename_snapshots`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from utsuwa.core.config_keys import ConfigKey, KeyTable
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.pool_keys import POOL_KEYS, VOLUME_KEYS, default_of_volumes
from utsuwa.core.volumes import Volume, VolumeKind
from utsuwa.host.processes.stopper import Stopper

Fill = Callable[[Path], None]
"""Creates the content of a new volume in a private directory: `rootfs/`, owned by the container's own ids,
and the files beside it."""


@dataclass(frozen=True)
class Usage:
    """Bytes of the file system below the pool, and its inodes."""

    space_used: int
    space_total: int
    inodes_used: int
    inodes_total: int


class PoolDriver(Protocol):
    """One pool on the host."""

    def create(self) -> None:
        """Create the pool at its source; raises InvalidConfig if that is missing or not empty."""

    def delete(self) -> None:
        """Delete the pool; the manager has checked that it is empty."""

    def discard(self) -> None:
        """Remove what an interrupted `create` left, and nothing that existed before it.

        Raises HostError if the source holds anything else; it is left untouched.
        """

    def mount(self) -> None:
        """Make the pool usable after a start of the daemon or the host; does nothing if it is already.

        Removes what interrupted creations and deletions of volumes left.
        """

    def unmount(self) -> None:
        """Unmount the pool and everything below it; does nothing if it is not mounted."""

    def usage(self) -> Usage: ...

    def configure(self, config: Mapping[str, str]) -> bool:
        """Apply changed config, in keys that are not fixed at creation.

        Returns whether images would be stored in another form from now on.
        """


class VolumeDriver(Protocol):
    """The volumes of one pool."""

    def create_volume(self, volume: Volume, idmap: IdMap, fill: Fill | None) -> None:
        """Create a volume, unmounted. Without `fill` its rootfs is an empty directory.

        Raises HostError if one of that name exists.
        """

    def delete_volume(self, volume: Volume) -> None:
        """Unmount and delete a volume; does nothing if it does not exist."""

    def rename_volume(self, volume: Volume, new: Volume) -> None:
        """Unmount and rename a volume, which needs no space; does nothing if that is done already.

        A snapshot may become one of another volume. Raises HostError if a volume of the new name exists.
        """

    def rename_snapshots(self, volume: Volume, new: Volume) -> None:
        """Rename what contains the snapshots of a volume that is being renamed; unmounts them first.

        Does nothing if there are none, or if that is done already. Raises HostError if `new` has snapshots.
        """

    def mount_volume(self, volume: Volume, idmap: IdMap) -> Path:
        """Mount the rootfs through the id map and return its path; does nothing if that is done already."""

    def unmount_volume(self, volume: Volume) -> None:
        """Unmount the rootfs and the directories beside it; does nothing if they are not mounted."""

    def volume_folder(self, volume: Volume) -> Path: ...

    def volume_usage(self, volume: Volume) -> int | None:
        """Return the bytes that the volume uses, without its image; None if that is expensive to find out."""

    def volumes(self, kind: VolumeKind) -> list[str]:
        """Return the storage names of all volumes of a kind on the pool, for the sweep at start-up."""

    def snapshots(self, volume: Volume) -> list[str]:
        """Return the names of all snapshots of a volume on the pool, for the sweep at start-up."""


class Driver(PoolDriver, VolumeDriver, Protocol):
    """What every driver implements."""


@runtime_checkable
class ImageDriver(Protocol):
    """Images whose files instances share. Without it each instance is a full copy."""

    def ensure_image(self, image: ImageSource, stopper: Stopper, *, ahead: bool) -> None:
        """Store an image on the pool unless it is there already; can be repeated after an interruption.

        With `ahead`, for a prefetch, it may take at most half of the free space. Raises ProcessFailed if
        `stopper` cuts it short.
        """

    def create_from_image(self, volume: Volume, idmap: IdMap, image: ImageSource, stopper: Stopper) -> None:
        """Create a volume with the content of an image for which `ensure_image` has run."""

    def image_of(self, volume: Volume) -> str | None:
        """Return the fingerprint of the image that a volume depends on, if any."""

    def trim_image(self, fingerprint: str) -> None:
        """Remove the forms of an image that no instance uses and that new instances would not use."""

    def sync_images(self) -> None:
        """Sync recently stored images to disk."""

    def delete_image(self, fingerprint: str) -> None:
        """Delete an image from the pool; does nothing if it is not there."""

    def images(self) -> list[str]:
        """Return the fingerprints of the images on the pool."""

    def image_users(self, fingerprint: str) -> list[str]:
        """Return the storage names of the instances that depend on this image."""


@runtime_checkable
class CopyDriver(Protocol):
    """Copies and snapshots on the same pool. Without it they are made file by file."""

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
        """Create a volume or a snapshot with the content of another one, but without its snapshots.

        `mounted` is the id map of the source's mount, if it is that of a running instance: then none of its
        processes may run meanwhile. Otherwise the source is unmounted first. `like` is an older copy of it on
        the pool, which is not in use and is about to be replaced: the target may share its files, so that
        only what has changed is copied. Raises HostError if the target exists, ProcessFailed if `stopper`
        cuts it short.
        """


@runtime_checkable
class CloneDriver(Protocol):
    """Copies of a rootfs that share everything until they are changed."""

    def clone_volume(self, volume: Volume, new: Volume, idmap: IdMap, stopper: Stopper) -> bool:
        """Create a volume with the rootfs of another one, which is unmounted first, in a time that does not
        depend on its size; what is beside the rootfs is left out.

        Returns False, without having created anything, if that is not possible for this volume. Raises
        HostError if the new volume exists.
        """


@runtime_checkable
class StandInDriver(Protocol):
    """Mounts that turn a volume into a complete copy, as its layers cannot be mounted with some id maps."""

    def stand_in(self, volume: Volume, new: Volume, idmap: IdMap, stopper: Stopper) -> bool:
        """Create a volume that is mounted with an id map instead of another one, which stays as it is.

        It has the rootfs, metadata and templates of the other one, which is unmounted first. Returns False,
        without having created anything, if that can be mounted itself, or cannot be shared. Raises HostError
        if the new volume exists.
        """


class LayerMerge(Protocol):
    """A merge of layers, which changes nothing but the time that later operations take."""

    def run(self, stopper: Stopper) -> None:
        """Do the work, which may take long; the lock of the volume need not be held."""

    def finish(self) -> None:
        """Have the volume use the result, if that still fits. Requires the lock of the volume."""

    def end(self) -> None:
        """Give up what is not used; always called."""


@runtime_checkable
class LayerDriver(Protocol):
    """Layers that accumulate with snapshots and copies."""

    def layer_merge(self, volume: Volume) -> LayerMerge | None:
        """Return what should be done after a snapshot or a copy of the volume, ahead of the next one."""


@runtime_checkable
class FolderDriver(Protocol):
    """Directories beside an instance's rootfs. Without it devices that need one are refused."""

    def own_folders(self, volume: Volume) -> list[str]:
        """Return the names of all directories of a volume."""

    def mount_folder(self, volume: Volume, idmap: IdMap, name: str) -> Path:
        """Mount the directory `name` of a volume through the id map and return its path.

        It is created if necessary, is on the pool itself and not on an overlay, is renamed, copied and
        deleted with the volume, and is unmounted with the rootfs.
        """

    def frozen_folders(self) -> list[Path]:
        """Return the directories below which nothing may be changed, except by the driver itself."""


@runtime_checkable
class QuotaDriver(Protocol):
    """Enforced sizes. Without it sizes are stored, and a warning says that they have no effect."""

    def set_quota(self, volume: Volume, size: int | None) -> None:
        """Limit a volume to `size` bytes; None removes the limit.

        Raises InvalidConfig if the volume exceeds the size already.
        """


@dataclass(frozen=True)
class DriverType:
    """All that the rest of the daemon knows of a driver; nothing else names one."""

    name: str
    make: Callable[[Path, Mapping[str, str]], Driver]
    """Returns the driver of the pool at a directory of the state directory, with this config."""
    keys: tuple[ConfigKey, ...] = ()
    """Config keys of its pools, besides the common ones; keys that are not `live` are fixed at creation."""
    volume_keys: tuple[ConfigKey, ...] = ()
    """Config keys of its volumes, besides the common ones; `volume.<key>` of a pool is the default."""
    remote: bool = False
    """Whether several servers can use the same pool."""
    version: str = "1"
    """The version of its on-disk format and of the tools that it needs."""
    needs_idmapped_mounts: bool = False
    """Whether it cannot shift the owners of files where the file system has no idmapped mounts."""

    @cached_property
    def pool_keys(self) -> KeyTable:
        """All config keys of a pool."""
        defaults = map(default_of_volumes, (*VOLUME_KEYS, *self.volume_keys))
        return KeyTable(f"storage pools of the driver {self.name!r}", (*POOL_KEYS, *self.keys, *defaults))

    @cached_property
    def custom_keys(self) -> KeyTable:
        """All config keys of a custom volume."""
        return KeyTable(f"storage volumes of the driver {self.name!r}", (*VOLUME_KEYS, *self.volume_keys))

    @cached_property
    def fixed(self) -> Mapping[str, str]:
        """The config keys that cannot be changed after creation, with their defaults."""
        return {key.name: key.default for key in self.pool_keys.keys if not key.live}
