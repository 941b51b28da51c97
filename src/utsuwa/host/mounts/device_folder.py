"""The folder `devices/<storage name>` of a container: device nodes and mounts, to be bound into it.

It is flat: what is in it is removed entry by entry, never recursively, as an entry may be a mount of the
host's files. All methods block.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap
from utsuwa.host import syscalls
from utsuwa.host.mounts.mounts import mounted


@dataclass(frozen=True)
class DeviceNumber:
    """The device that a node stands for."""

    kind: Literal["char", "block"]
    major: int
    minor: int

    @classmethod
    def of(cls, status: os.stat_result) -> DeviceNumber | None:
        """Return the device of a node; None for another type of file."""
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        if stat.S_ISCHR(status.st_mode):
            return cls("char", major, minor)
        return cls("block", major, minor) if stat.S_ISBLK(status.st_mode) else None

    @property
    def rule(self) -> str:
        """The rule that lets a cgroup use it."""
        return f"{self.kind[0]} {self.major}:{self.minor} rwm"


@dataclass(frozen=True)
class Node:
    """A device node."""

    device: DeviceNumber
    mode: int
    uid: int
    """The host's ids of its owner."""
    gid: int


_TYPES = {"char": stat.S_IFCHR, "block": stat.S_IFBLK}


@dataclass(frozen=True)
class DeviceFolder:
    path: Path

    def make(self, idmap: IdMap) -> None:
        """Create the folder for a start, without what an earlier container has left.

        Only the container's root may pass it. Nodes in it can be opened, even if the state directory is on a
        file system mounted with `nodev`. Raises HostError or OSError.
        """
        self.remove()
        self.path.mkdir(mode=0o700)
        if os.statvfs(self.path).f_flag & os.ST_NODEV:
            with contextlib.suppress(PermissionError):  # in a user namespace no nodes open anyway
                syscalls.mount("utsuwa", self.path, "tmpfs", 0, "size=16m,mode=0700")
        os.chown(self.path, idmap.host_uid(0), idmap.host_gid(0))
        self.path.chmod(0o100)

    def remove(self) -> None:
        """Remove everything when the container has ended; safe to repeat. Raises HostError."""
        try:
            with contextlib.suppress(FileNotFoundError):
                for entry in sorted(self.path.iterdir()):
                    self.discard(entry.name)
                if mounted(self.path):
                    syscalls.umount2(self.path, syscalls.UMOUNT_NOFOLLOW)
                self.path.rmdir()
        except OSError as error:
            raise HostError(f"Cannot remove {self.path}: {error.strerror}") from error

    def attach(self, name: str, tree: int, *, private: bool) -> Path:
        """Attach a detached mount in the folder and return where.

        With `private`, no mounts below it propagate in either direction.
        """
        place = self.path / name
        self.discard(name)
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            place.mkdir(mode=0o700)
        else:
            place.touch(mode=0o600)
        syscalls.move_mount(tree, place)
        if private:
            syscalls.mount_setattr(tree, propagation=syscalls.MS_PRIVATE, recursive=True)
        return place

    def mark(self, name: str) -> None:
        """Create an empty entry, which tells that the container may have a mount of this name."""
        (self.path / name).touch(mode=0o600)

    def has(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def unmount(self, name: str) -> None:
        """Unmount an entry, which stays; does nothing if it is not mounted. Raises OSError."""
        while mounted(self.path / name):
            syscalls.umount2(self.path / name, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)

    def make_node(self, name: str, node: Node) -> Path:
        """Create a device node. Raises OSError, PermissionError where none can be made or opened."""
        place = self.path / name
        self.discard(name)
        number = os.makedev(node.device.major, node.device.minor)
        os.mknod(place, _TYPES[node.device.kind] | 0o600, number)
        os.chown(place, node.uid, node.gid)
        place.chmod(node.mode)
        return place

    def number(self, name: str) -> DeviceNumber | None:
        """Return the device of an entry; None if there is none."""
        try:
            return DeviceNumber.of((self.path / name).lstat())
        except FileNotFoundError:
            return None

    def discard(self, name: str) -> None:
        """Remove an entry, which may be mounted; does nothing if it does not exist. Raises OSError."""
        place = self.path / name
        self.unmount(name)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(place.lstat().st_mode):
                place.rmdir()
            else:
                place.unlink()
