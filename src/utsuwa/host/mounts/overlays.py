"""Overlays of idmapped layers.

All functions block and run in worker threads. Failures raise OSError (with errno, so that callers can
recognize a full disk) or HostError with a message.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap
from utsuwa.host import syscalls
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts.mounts import (
    PROBE_MAP,
    bind_idmapped,
    bind_without_devices,
    can_idmap,
    idmapped_tree,
    unmount,
    without_devices,
)
from utsuwa.host.mounts.userns import in_user_namespace

log = logging.getLogger(__name__)

BUSY_PATIENCE = 3.0
"""Seconds to wait for layers that are still in use by mounts of a container that has just stopped."""

_LITTLE = 64 * 1024
"""Bytes: with less space, that is why the working directory cannot be used."""

USERXATTR = "userxattr"
"""The option with which overlayfs keeps its attributes as `user.overlay.*`: only those can be set in a user
namespace."""

_FS_IOC_GETFSUUID = 0x80111500
_UUID_SIZE = 16


@dataclass(frozen=True)
class OverlayFolder:
    """A directory with the parts that `mount_overlay` needs.

    `layer/` contains `upper/` and `work/` and is owned by id 0 on disk; it may be elsewhere, then `layer` in
    `path` is just the place to which it is briefly attached, as are the lower layers to `lower`. `rootfs/` is
    the mount point of the overlay.
    """

    path: Path
    elsewhere: Path | None = None
    """Where the upper layer is, unless it is in `path`."""

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    @property
    def lower(self) -> Path:
        return self.path / "lower"

    @property
    def attached_layer(self) -> Path:
        return self.path / "layer"

    @property
    def layer(self) -> Path:
        return self.elsewhere or self.attached_layer

    @property
    def upper(self) -> Path:
        return self.layer / "upper"

    @property
    def work(self) -> Path:
        return self.layer / "work"

    def make(self) -> None:
        """Create the directories, with their modes, below an existing `path`."""
        self.make_mount_points()
        for folder, mode in ((self.layer, 0o700), (self.upper, 0o755), (self.work, 0o700)):
            folder.mkdir(mode=mode, exist_ok=folder == self.layer)

    def make_mount_points(self, lowers: int = 1) -> None:
        """Create what is missing of the directories to which an overlay and its layers are attached."""
        self.rootfs.mkdir(mode=0o755, exist_ok=True)
        for folder in (self.attached_layer, self.lower, *self.places(lowers)):
            folder.mkdir(mode=0o700, exist_ok=True)

    def places(self, lowers: int) -> list[Path]:
        """Return where that many lower layers are attached."""
        return [self.lower] if lowers == 1 else [self.lower / str(number) for number in range(lowers)]

    def detach(self) -> None:
        """Unmount layers that an interrupted mount left attached."""
        unmount(self.attached_layer)
        unmount(self.lower)
        if self.lower.is_dir():
            for place in self.lower.iterdir():
                unmount(place)


def default_options() -> dict[str, str]:
    """Return the options of the overlays of new pools: those that this user namespace allows."""
    if in_user_namespace():
        return {"index": "on", "metacopy": "off", USERXATTR: "on"}
    return {"redirect_dir": "on", "index": "on", "nfs_export": "on", "metacopy": "off"}


def is_whiteout(status: os.stat_result) -> bool:
    """Return whether a file of a layer stands for one that was deleted."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def attribute_prefix() -> str:
    """Return how the names of overlayfs' own attributes begin."""
    return "user.overlay." if in_user_namespace() else "trusted.overlay."


def mount_overlay(
    folder: OverlayFolder,
    lowers: Sequence[Path],
    idmap: IdMap,
    options: Mapping[str, str],
    *,
    shifted: bool = False,
) -> None:
    """Mount an overlay of `lowers`, the newest first, and `folder.upper` at `folder.rootfs`.

    All layers are idmapped mounts (unmapped if privileged, or if their owners on disk are `shifted`), which
    are attached only until the overlay holds its own copies of them. The layers are named relative to the
    working directory of the mounting thread, so no path needs escaping in the options.
    """
    upper = {"upperdir": "layer/upper", "workdir": "layer/work"}
    _mount(folder, lowers, idmap, {**upper, **options}, shifted=shifted)


def mount_readonly(
    folder: OverlayFolder,
    lowers: Sequence[Path],
    idmap: IdMap,
    options: Mapping[str, str],
    *,
    shifted: bool = False,
) -> None:
    """Mount `lowers`, the newest first, read-only at `folder.rootfs`, with no upper layer.

    The options are those with which the layers were written; `shifted` as for `mount_overlay`.
    """
    if len(lowers) == 1:  # overlayfs wants two
        if shifted:
            bind_without_devices(lowers[0], folder.rootfs, readonly=True)
        else:
            bind_idmapped(lowers[0], folder.rootfs, idmap, readonly=True)
        return
    reading = {name: value for name, value in options.items() if name in ("metacopy", "xino", USERXATTR)}
    if options.get("redirect_dir") in ("on", "follow"):
        reading["redirect_dir"] = "follow"
    _mount(folder, lowers, idmap, reading, shifted=shifted)


def _mount(
    folder: OverlayFolder, layers: Sequence[Path], idmap: IdMap, options: Mapping[str, str], *, shifted: bool
) -> None:
    folder.make_mount_points(len(layers))
    lowers = [*zip(folder.places(len(layers)), layers, strict=True)]
    names = ":".join(str(place.relative_to(folder.path)) for place, _ in lowers)
    mapped = IdMap() if shifted else idmap
    with ExitStack() as opened:
        trees = {place: opened.enter_context(idmapped_tree(lower, mapped)) for place, lower in lowers}
        if "upperdir" in options:
            trees[folder.attached_layer] = opened.enter_context(idmapped_tree(folder.layer, mapped))

        def work() -> None:
            os.chdir(folder.path)
            overlay = _attached_for_a_moment(trees, {"lowerdir": names, **options})
            try:
                if "upperdir" in options:
                    _check_writable(overlay, folder)
                without_devices(overlay, idmap)
                syscalls.move_mount(overlay, folder.rootfs)
            finally:
                os.close(overlay)

        as_container_root(mapped, work)


def _check_writable(overlay: int, folder: OverlayFolder) -> None:
    """Raise OSError if the kernel could not use the working directory, when it mounts read-only instead."""
    if not os.fstatvfs(overlay).f_flag & os.ST_RDONLY:
        return
    left = os.statvfs(folder.layer)
    if left.f_bavail * left.f_frsize < _LITTLE or (left.f_files and not left.f_favail):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.work))
    raise OSError(errno.EROFS, "The kernel cannot use the overlay's working directory", str(folder.work))


def _attached_for_a_moment(trees: Mapping[Path, int], options: Mapping[str, str]) -> int:
    """Attach the layers, create the overlay, which makes its own copies of their mounts, and detach them."""
    attached: list[Path] = []
    try:
        for target, tree in trees.items():
            syscalls.move_mount(tree, target)
            attached.append(target)
        return _overlay_tree(options)
    finally:
        for target in reversed(attached):
            syscalls.umount2(target, syscalls.MNT_DETACH)


def _overlay_tree(options: Mapping[str, str]) -> int:
    """Create a detached overlay of the layers in the working directory.

    The kernel removes a stopped container's mounts after its processes: until then its upper layer is busy.
    """
    deadline = time.monotonic() + BUSY_PATIENCE
    while True:
        fs = syscalls.fsopen("overlay")
        try:
            for key, value in {"source": "utsuwa", **options}.items():
                if key == USERXATTR:
                    syscalls.fsconfig_flag(fs, key)
                else:
                    syscalls.fsconfig_string(fs, key, value)
            syscalls.fsconfig_create(fs)
            return syscalls.fsmount(fs)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise _explained(error, syscalls.fs_messages(fs)) from error
        finally:
            os.close(fs)
        time.sleep(0.01)


def _explained(error: OSError, messages: list[str]) -> OSError | HostError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    if error.errno == errno.EBUSY:
        return HostError(
            "Cannot mount the overlay: its upper layer is still in use by another mount, "
            "possibly in the mount namespace of another program: try again when that has ended"
        )
    if error.errno == errno.ESTALE:
        return HostError("Cannot mount the overlay: its lower layer is not the one that it was created on")
    said = "; ".join(messages) or os.strerror(error.errno or 0)
    return HostError(f"Cannot mount the overlay: {said}")


def has_uuid(folder: Path) -> bool:
    """Return whether the file system of `folder` has a UUID; False if the kernel cannot tell (before 6.9).

    If there are lower layers of two file systems that have none, as a squashfs, overlayfs tacitly does
    without its index: the names of one file become different files when it is changed.
    """
    uuid = bytearray(1 + _UUID_SIZE)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _FS_IOC_GETFSUUID, uuid)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    finally:
        os.close(descriptor)
    return any(uuid[1:])


def can_overlay(folder: Path, options: Mapping[str, str]) -> bool:
    """Test whether the file system of `folder` can hold the upper layer of an overlay.

    `folder` is an empty directory of the caller; the directories of the test are left in it.
    """
    return _trial(folder, IdMap(), options) == 0


def can_overlay_idmapped(folder: Path, options: Mapping[str, str]) -> bool:
    """Test whether an overlay of idmapped layers works on the file system of `folder`; as `can_overlay`."""
    return can_idmap(folder) and _trial(folder, PROBE_MAP, options) == PROBE_MAP.host_uid(0)


def _try_out(rootfs: Path) -> None:
    """Write, and remove and recreate a directory of the lower layer: without support for extended attributes
    in the upper layer, where overlayfs records this, mounting succeeds but this fails."""
    (rootfs / "written").touch()
    (rootfs / "folder/file").unlink()
    (rootfs / "folder").rmdir()
    (rootfs / "folder").mkdir()
    if any((rootfs / "folder").iterdir()):
        raise HostError("a directory of the lower layer reappears after its removal")


def _trial(folder: Path, idmap: IdMap, options: Mapping[str, str]) -> int | None:
    """Return the owner of a test overlay's root; None if the overlay is not writable."""
    trial = OverlayFolder(folder)
    trial.make()
    image = folder / "image"
    (image / "folder").mkdir(parents=True)
    (image / "folder/file").touch()
    try:
        mount_overlay(trial, [image], idmap, options)
        as_container_root(idmap, lambda: _try_out(trial.rootfs))
        return trial.rootfs.stat().st_uid
    except (OSError, HostError) as error:
        log.info("overlays do not work at %s: %s", folder, error)
        return None
    finally:
        unmount(trial.rootfs)
