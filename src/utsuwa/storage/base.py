"""The contract of storage drivers: small protocols, and one record that says what a driver is.

A driver acts on the host and knows no database, no events and no other driver. Every method is blocking and
runs in a worker thread; the manager holds the lock of the volume or the image meanwhile. Failures are
HostError or OutOfSpace (ENOSPC, EDQUOT). What fails leaves nothing of that call behind, and what takes
something away does nothing where it is not there: so a step can be undone without knowing how far it came.

Each driver is a `Driver`: a `PoolDriver` and a `VolumeDriver`. The other protocols are for what it can do
beyond that; where one is missing the manager does the same by files, or says that the pool cannot.

A volume lies at `Volume.path` below the pool's folder. That of an instance holds `rootfs/` (the mount point,
or the tree itself), `metadata.yaml`, `templates/`, and what the driver keeps beside them; the way to a rootfs
is 0711, the folder is 0100 and belongs to the host id of the container's root.
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
from utsuwa.host.processes.run import Stopper

Fill = Callable[[Path], None]
"""Lays out a new volume in the folder that it is given, which nobody else sees: `rootfs/` with the
container's own ids as owners, and what belongs beside it."""


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
        """Make the pool at its source; raises InvalidConfig where that is missing or not empty."""

    def delete(self) -> None:
        """Remove the pool; the manager has checked that nothing is on it."""

    def discard(self) -> None:
        """Take away what a `create` that a kill cut off has made, and nothing that was there before it.

        Raises HostError where the source holds more than that; it is left as it is.
        """

    def mount(self) -> None:
        """Make the pool usable after a start of the daemon or the machine; does nothing when it is.

        What a kill left in the making or on its way out goes.
        """

    def unmount(self) -> None:
        """Undo `mount`, and unmount what is below; does nothing when it is not mounted."""

    def usage(self) -> Usage: ...

    def configure(self, config: Mapping[str, str]) -> bool:
        """The pool's config has changed, in keys that are not fixed at its creation.

        Whether images would be brought onto the pool in another form from now on.
        """


class VolumeDriver(Protocol):
    """The volumes of one pool."""

    def create_volume(self, volume: Volume, idmap: IdMap, fill: Fill | None) -> None:
        """Make a volume, not mounted. Without `fill` its rootfs is an empty folder.

        Raises HostError where there is one of that name.
        """

    def delete_volume(self, volume: Volume) -> None:
        """Unmount and remove a volume; does nothing where it is not there."""

    def rename_volume(self, volume: Volume, new: Volume) -> None:
        """Rename a volume, unmounting it first; this needs no space. Does nothing where that is done.

        Raises HostError where there is one of the new name.
        """

    def mount_volume(self, volume: Volume, idmap: IdMap) -> Path:
        """Mount the rootfs through the id map and give its path; does nothing when mounted so already."""

    def unmount_volume(self, volume: Volume) -> None:
        """Unmount the rootfs, and what is shown beside it; does nothing when it is not mounted."""

    def volume_folder(self, volume: Volume) -> Path: ...

    def volume_usage(self, volume: Volume) -> int | None:
        """Bytes that the volume takes for itself, its image not counted; None where that costs too much."""

    def volumes(self, kind: VolumeKind) -> list[str]:
        """The storage names of all volumes of a kind on the pool: what the sweep at start-up looks at."""


class Driver(PoolDriver, VolumeDriver, Protocol):
    """What every driver can do."""


@runtime_checkable
class ImageDriver(Protocol):
    """Images that instances share as long as they live. Without it each instance is a whole copy."""

    def ensure_image(self, image: ImageSource, stopper: Stopper, *, ahead: bool) -> None:
        """Bring an image onto the pool, once; safe to repeat after a kill.

        With `ahead` it is done before anybody asked for it: at most half of the space that is left is taken.
        Raises ProcessFailed where `stopper` ends it.
        """

    def create_from_image(self, volume: Volume, idmap: IdMap, image: ImageSource, stopper: Stopper) -> None:
        """`create_volume` with what is in an image for which `ensure_image` has run."""

    def image_of(self, volume: Volume) -> str | None:
        """The fingerprint of the image that a volume cannot be without on the pool, if any."""

    def trim_image(self, fingerprint: str) -> None:
        """Of an image in several forms, remove those that new instances do not get and no instance needs."""

    def sync_images(self) -> None:
        """Have the images on the disk that were brought onto the pool of late."""

    def delete_image(self, fingerprint: str) -> None:
        """Take an image off the pool; does nothing where it is not there."""

    def images(self) -> list[str]:
        """The fingerprints of the images that the pool keeps."""

    def image_users(self, fingerprint: str) -> list[str]:
        """The storage names of the instances that cannot be without this image on the pool."""


@runtime_checkable
class FolderDriver(Protocol):
    """Folders beside an instance's rootfs. Without it they are refused."""

    def mount_folder(self, volume: Volume, idmap: IdMap, name: str) -> Path:
        """Show the folder `name` beside a rootfs that is mounted through the id map, and give its path.

        It is made where it is not there, lies on the pool itself and not on a layer, goes where the
        volume goes, and is unmounted with the rootfs.
        """


@runtime_checkable
class QuotaDriver(Protocol):
    """Sizes that are enforced. Without it they are stored, and a warning says that they have no effect."""

    def set_quota(self, volume: Volume, size: int | None) -> None:
        """Let a volume take so many bytes for itself; None lifts the limit.

        Raises InvalidConfig for a size that it is beyond already.
        """


@dataclass(frozen=True)
class DriverType:
    """What a driver is: nothing else in the daemon names one."""

    name: str
    make: Callable[[Path, Mapping[str, str]], Driver]
    """The driver of the pool whose folder in the state folder, and config, are given."""
    keys: tuple[ConfigKey, ...] = ()
    """Config keys of its pools beyond those of all; what is not `live` is fixed at creation."""
    volume_keys: tuple[ConfigKey, ...] = ()
    """The same of its volumes; `volume.<key>` of a pool is the default of new volumes."""
    remote: bool = False
    """Whether several servers can use one pool."""
    version: str = "1"
    """Of what it puts on disk, and of the tools that it needs."""

    @cached_property
    def pool_keys(self) -> KeyTable:
        """All config keys of its pools."""
        defaults = map(default_of_volumes, (*VOLUME_KEYS, *self.volume_keys))
        return KeyTable(f"storage pools of the driver {self.name!r}", (*POOL_KEYS, *self.keys, *defaults))

    @cached_property
    def fixed(self) -> Mapping[str, str]:
        """The config keys that cannot be changed once the pool is there, with their defaults."""
        return {key.name: key.default for key in self.pool_keys.keys if not key.live}
