"""Detached mounts: copies of a part of the host's file systems, and new mounts of block devices.

They are attached later, on the host or in a container; closing the descriptor of one that is not attached
removes it. All functions block. Sources are open descriptors, so nothing is looked up twice.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.host import syscalls
from utsuwa.host.mounts.mounts import idmapping_disabled
from utsuwa.host.mounts.userns import user_namespace
from utsuwa.host.processes.run import run_blocking

_ATIME = syscalls.MOUNT_ATTR_NOATIME | syscalls.MOUNT_ATTR_STRICTATIME

_OPTIONS = {
    "defaults": (0, 0),
    "ro": (syscalls.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, syscalls.MOUNT_ATTR_RDONLY),
    "nosuid": (syscalls.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, syscalls.MOUNT_ATTR_NOSUID),
    "nodev": (syscalls.MOUNT_ATTR_NODEV, 0),
    "dev": (0, syscalls.MOUNT_ATTR_NODEV),
    "noexec": (syscalls.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, syscalls.MOUNT_ATTR_NOEXEC),
    "nodiratime": (syscalls.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, syscalls.MOUNT_ATTR_NODIRATIME),
    "noatime": (syscalls.MOUNT_ATTR_NOATIME, _ATIME),
    "strictatime": (syscalls.MOUNT_ATTR_STRICTATIME, _ATIME),
    "relatime": (0, _ATIME),
    "atime": (0, _ATIME),
}
"""What the options of every mount set and clear."""
PROPAGATIONS = {
    prefix + name: flag | recursive
    for name, flag in (
        ("private", syscalls.MS_PRIVATE),
        ("shared", syscalls.MS_SHARED),
        ("slave", syscalls.MS_SLAVE),
        ("unbindable", syscalls.MS_UNBINDABLE),
    )
    for prefix, recursive in (("", 0), ("r", syscalls.MS_REC))
}
"""Flags of mount(2) by name."""


@dataclass(frozen=True)
class Options:
    """How a source is mounted."""

    read_only: bool = False
    recursive: bool = False
    """Whether mounts below a directory are copied too."""
    idmap: IdMap | None = None
    """The map from the source's ids to the host's, None for no mapping."""
    others: tuple[str, ...] = ()
    """Options of mount(8), in order; the last of contradicting ones applies."""

    @property
    def attributes(self) -> int:
        """Flags `MOUNT_ATTR_*`."""
        found = 0
        for option in self.others:
            added, removed = _OPTIONS.get(option, (0, 0))
            found = found & ~removed | added
        return found | syscalls.MOUNT_ATTR_RDONLY if self.read_only else found

    @property
    def of_filesystem(self) -> Iterable[str]:
        """The options that the file system itself takes."""
        return [option for option in self.others if option not in _OPTIONS]


DEFAULTS = Options()


def open_source(path: str, *, below: Sequence[str] = ()) -> int:
    """Open a file of any type without accessing its content; symlinks are followed. Raises OSError.

    With `below`, it must be at or below one of these directories, out of which no symlink may lead.
    """
    if not below:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    for folder in below:
        inside = PurePath(path)
        if inside.is_relative_to(folder) and ".." not in inside.parts:
            base = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            try:
                resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
                return syscalls.openat2(base, str(inside.relative_to(folder)), os.O_PATH, resolve=resolve)
            finally:
                os.close(base)
    raise PermissionError(errno.EPERM, "not below a path that the project allows", path)


def lies_below(descriptor: int, folders: Iterable[Path]) -> bool:
    """Return whether an open file is at or below one of the directories, by whatever path it was opened."""
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    above = {_identity(parent) for parent in (path, *path.parents)} - {None}
    return any(_identity(folder) in above for folder in folders)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def copied(source: int, options: Options) -> int:
    """Return a copy of the mount at a file or directory.

    Raises InvalidConfig for options that only file systems take, HostError if the ids cannot be mapped.
    """
    for option in options.of_filesystem:
        raise InvalidConfig(f"{option!r} is an option of file systems, which applies to block devices only")
    recursive = syscalls.AT_RECURSIVE if options.recursive else 0
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | recursive
    return _with_options(syscalls.open_tree(source, flags), options)


def copy_of(path: Path, options: Options = DEFAULTS) -> int:
    """Return a copy of the mount at a path of the daemon's own, as `copied`."""
    source = open_source(str(path))
    try:
        return copied(source, options)
    finally:
        os.close(source)


def mounted_device(device: int, options: Options) -> int:
    """Return a new mount of the file system on a block device.

    Raises InvalidConfig, with the kernel's reason, if it has none or does not take the options, HostError if
    its ids cannot be mapped.
    """
    name = _device_name(device)
    return _with_options(_mount_device(name, _filesystem_type(device, name), options), options)


def _with_options(tree: int, options: Options) -> int:
    try:
        _set(tree, options)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _device_name(device: int) -> str:
    """Return a path by which the kernel finds this very device; only root can exchange what is in /dev."""
    opened = Path(f"/proc/self/fd/{device}")
    name = opened.readlink()
    if name.parts[:2] == ("/", "dev") and name.exists() and name.samefile(opened):
        return str(name)
    return str(opened)


def _filesystem_type(device: int, name: str) -> str:
    argv = ["blkid", "-p", "-o", "value", "-s", "TYPE", "--", f"/proc/self/fd/{device}"]
    found = run_blocking(argv, pass_fds=(device,), accept=(0, 2)).text.strip()
    if not found:
        raise InvalidConfig(f"no file system was found on {name}")
    return found


def _mount_device(name: str, kind: str, options: Options) -> int:
    try:
        fs = syscalls.fsopen(kind)
    except OSError as error:
        raise InvalidConfig(f"this kernel cannot mount file systems of the type {kind!r}") from error
    try:
        syscalls.fsconfig_string(fs, "source", name)
        if options.attributes & syscalls.MOUNT_ATTR_RDONLY:
            syscalls.fsconfig_flag(fs, "ro")
        for option in options.of_filesystem:
            key, has_value, value = option.partition("=")
            if has_value:
                syscalls.fsconfig_string(fs, key, value)
            else:
                syscalls.fsconfig_flag(fs, key)
        syscalls.fsconfig_create(fs)
        return syscalls.fsmount(fs)
    except OSError as error:
        reason = "; ".join(syscalls.fs_messages(fs)) or os.strerror(error.errno or 0)
        raise InvalidConfig(f"the {kind} file system on {name} cannot be mounted: {reason}") from error
    finally:
        os.close(fs)


def _set(tree: int, options: Options) -> None:
    if options.attributes:
        cleared = (
            syscalls.MOUNT_ATTR_ATIME if options.attributes & _ATIME else 0
        )  # the kernel wants all of them
        syscalls.mount_setattr(
            tree, attr_set=options.attributes, attr_clr=cleared, recursive=options.recursive
        )
    idmap = options.idmap
    if idmap is None or idmap.privileged:
        return
    if idmapping_disabled():
        raise HostError("idmapped mounts are switched off (UTSUWA_IDMAPPED_MOUNTS_DISABLE)")
    with user_namespace(idmap) as userns:
        try:
            syscalls.mount_setattr(
                tree, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns, recursive=options.recursive
            )
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            raise HostError("the ids of its file system cannot be mapped") from error
