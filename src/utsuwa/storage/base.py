"""The contract of storage drivers, and what a driver is told.

A driver acts on the host and knows no database, no events and no other driver. Every method is
blocking and runs in a worker thread; the manager holds the lock of the volume meanwhile. Failures
are HostError or OutOfSpace (ENOSPC, EDQUOT); a driver that fails leaves nothing of that call behind.

Layout below the pool's folder: `images/<fingerprint>/`, `containers/<storage name>/`. An instance's
folder holds `rootfs/` (the mount point, or the tree itself), `metadata.yaml`, `templates/`, `folders/`, and
what the driver keeps beside them. Names that begin with a dot are work in progress or on its way out, and
are removed by the next `mount` of the pool. The way to a rootfs is 0711; the instance's folder is 0100
and belongs to the host id of the container's root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.core.image_source import ImageSource
from utsuwa.host.processes.run import Stopper

__all__ = ["Capabilities", "Driver", "IdMap", "IdRange", "ImageSource", "InstanceVolume", "Usage"]


@dataclass(frozen=True)
class InstanceVolume:
    """One instance's root volume: its pool's folder, names, image, id map and root disk options."""

    name: str
    """The storage name, `<project>_<name>` or `<name>`."""
    idmap: IdMap
    image: str | None = None
    """The fingerprint of the image below it, where the driver keeps the two apart."""
    size: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Capabilities:
    """What a driver can do: callers branch on this, never on a driver's name."""

    name: str
    quota: bool = False
    copy_on_write_images: bool = False
    """Whether instances share their image's files (so an image in use stays on the pool)."""
    remote: bool = False


@dataclass(frozen=True)
class Usage:
    """Bytes of the file system below the pool, and its inodes."""

    space_used: int
    space_total: int
    inodes_used: int
    inodes_total: int


class Driver(Protocol):
    """One pool on the host."""

    capabilities: ClassVar[Capabilities]

    def create(self) -> None:
        """Make the pool's folders at its source; raises InvalidConfig where it is missing or not empty."""

    def delete(self) -> None:
        """Remove the pool; the manager has checked that nothing is on it."""

    def discard(self) -> None:
        """Take away what a `create` that a kill cut off has made, and nothing that was there before it.

        Raises HostError where the source holds more than that; it is left as it is.
        """

    def mount(self) -> None:
        """Make the pool usable after a start of the daemon or the machine; does nothing when it is."""

    def unmount(self) -> None:
        """Undo `mount`, images included; does nothing when it is not mounted."""

    def usage(self) -> Usage: ...

    def configure(self, config: Mapping[str, str]) -> None:
        """The pool's config has changed, in keys that are not fixed at its creation."""

    def ensure_image(self, image: ImageSource, ahead: Stopper | None = None) -> None:
        """Bring an image onto the pool (mounted or unpacked), once; safe to repeat after a kill.

        With `ahead` it is done before anybody asked for it: at most half of the space that is left is
        taken, and the work may be stopped, which raises ProcessFailed.
        """

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

    def create_instance(self, volume: InstanceVolume, image: ImageSource | None) -> None:
        """Make the instance's folder, with `metadata.yaml` and `templates/`, not mounted.

        `ensure_image` has run for the image. Without one the rootfs is an empty folder.
        """

    def delete_instance(self, name: str) -> str | None:
        """Unmount and remove an instance's folder; does nothing where it is not there.

        Gives the fingerprint of the image that it needed on the pool, if any.
        """

    def rename_instance(self, name: str, new: str) -> None:
        """Rename the folder of an instance that is not mounted."""

    def undo_rename(self, name: str, old: str) -> None:
        """Give the folder back the name that it had until it was renamed; this needs no space."""

    def renamed_from(self, name: str) -> str | None:
        """The name that an instance's folder had before its last renaming; None where it had no other."""

    def mount_instance(self, volume: InstanceVolume) -> Path:
        """Mount the rootfs through the id map and give its path; does nothing when mounted so already."""

    def unmount_instance(self, name: str) -> None:
        """Unmount the rootfs; does nothing when it is not mounted."""

    def mount_folder(self, volume: InstanceVolume, name: str) -> Path:
        """Show the folder `name` beside a rootfs that is mounted through the id map, and give its path.

        It is made where it is not there, lies on the pool itself and not on a layer, goes where the
        instance's folder goes, and is unmounted with the rootfs.
        """

    def instance_folder(self, name: str) -> Path: ...

    def instance_usage(self, name: str) -> int | None:
        """Bytes that the instance takes for itself, its image not counted; None where that costs too much."""

    def instances(self) -> list[str]:
        """The storage names of all instance folders on the pool: what the sweep at start-up looks at."""
