"""Mounts: idmapped bind mounts, overlays of idmapped layers, unmounting, and the mount table.

All functions block and run in worker threads. Failures raise OSError (with errno, so that callers can
recognize a full disk) or HostError with a message.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host import syscalls
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts.userns import user_namespace

log = logging.getLogger(__name__)

UNMOUNT_PATIENCE = 2.0
"""Seconds to retry unmounting a busy mount before it is detached lazily."""

BUSY_PATIENCE = 3.0
"""Seconds to wait for layers that are still in use by mounts of a container that has just stopped."""

_PROBE_RANGES = (IdRange(0, 100_000, 65_536),)
_PROBE_MAP = IdMap(_PROBE_RANGES, _PROBE_RANGES)
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo."""

    id: int
    parent: int
    root: str
    """The directory within the file system that is mounted at `target`."""
    target: Path
    fstype: str
    source: str
    options: str
    super_options: str


def mounts_below(folder: Path) -> list[Mount]:
    """Return the mounts at or below a directory, in mount order."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    # The name is found even if parts of the path are escaped, so only few lines need to be parsed.
    name = os.fsencode(folder.name)
    if not re.search(rb"[\s\\#]", name):
        lines = [line for line in lines if name in line]
    return [m for m in parse_mountinfo(b"\n".join(lines)) if m.target == folder or folder in m.target.parents]


def parse_mountinfo(text: bytes) -> list[Mount]:
    """Parse a `mountinfo` file; truncated lines are skipped."""
    mounts = []
    for line in text.splitlines():
        before, found, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if not found or len(fields) < 6 or len(rest) < 3:
            continue
        mounts.append(
            Mount(
                id=int(fields[0]),
                parent=int(fields[1]),
                root=_unescape(fields[3]),
                target=Path(_unescape(fields[4])),
                options=_unescape(fields[5]),
                fstype=_unescape(rest[0]),
                source=_unescape(rest[1]),
                super_options=_unescape(rest[2]),
            )
        )
    return mounts


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda m: bytes([int(m[1], 8) & 0xFF]), field))


def mounted(path: Path) -> bool:
    """Return whether `path` is a mount point; False if it does not exist."""
    try:
        return syscalls.is_mount_root(path)
    except FileNotFoundError:
        return False


def unmount(target: Path, patience: float = UNMOUNT_PATIENCE) -> bool:
    """Unmount the topmost mount at `target`; return whether there was one.

    A busy mount is retried for `patience` seconds, then detached lazily with a warning.
    """
    deadline = time.monotonic() + patience
    pause = 0.01
    while mounted(target):
        try:
            syscalls.umount2(target, syscalls.UMOUNT_NOFOLLOW)
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        if time.monotonic() > deadline:
            log.warning("%s is still in use: unmounting it lazily", target)
            syscalls.umount2(target, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
            return True
        time.sleep(pause)
        pause = min(pause * 2, 0.25)
    return False


def unmount_below(folder: Path) -> None:
    """Unmount everything at and below a directory, last mounted first."""
    for mount in reversed(mounts_below(folder)):
        unmount(mount.target)


def unmount_places(folder: Path, places: Iterable[Path]) -> None:
    """Unmount what is mounted at some places below a directory, in their order.

    The mount table is read only if one of them is busy, to unmount what is below it first: with thousands
    of mounts that takes milliseconds.
    """
    for place in places:
        while mounted(place):
            try:
                syscalls.umount2(place, syscalls.UMOUNT_NOFOLLOW)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                unmount_below(folder)
                return


def bind(source: Path, target: Path) -> None:
    """Bind-mount `source` at `target`; later mounts below either do not propagate to the other."""
    tree = syscalls.open_tree(source)
    try:
        syscalls.mount_setattr(tree, propagation=syscalls.MS_PRIVATE)
        syscalls.mount_setattr(tree, propagation=syscalls.MS_SHARED)
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)


def bind_idmapped(source: Path, target: Path, idmap: IdMap) -> None:
    """Bind-mount `source` at `target` (which may be the same), mapping the container's ids to the host's."""
    with _tree(source, idmap) as tree:
        _without_devices(tree, idmap)
        syscalls.move_mount(tree, target)


def bind_without_devices(source: Path, target: Path) -> None:
    """Bind-mount `source` at `target` with `nodev`; the owners on disk are already shifted."""
    tree = syscalls.open_tree(source)
    try:
        syscalls.mount_setattr(tree, attr_set=syscalls.MOUNT_ATTR_NODEV)
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)


def _without_devices(mount: int, idmap: IdMap) -> None:
    """An unprivileged container cannot create device nodes, but its image may contain some.

    It has no device cgroup, so opening them is prevented by `nodev`; `/dev` is a separate file system.
    """
    if not idmap.privileged:
        syscalls.mount_setattr(mount, attr_set=syscalls.MOUNT_ATTR_NODEV)


@contextmanager
def _tree(source: Path, idmap: IdMap) -> Iterator[int]:
    """Create a detached copy of the mount at `source`, with its ids mapped unless privileged."""
    tree = syscalls.open_tree(source)
    try:
        if not idmap.privileged:
            with user_namespace(idmap) as userns:
                syscalls.mount_setattr(tree, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns)
        yield tree
    finally:
        os.close(tree)


def idmapping_disabled() -> bool:
    """Return whether `UTSUWA_IDMAPPED_MOUNTS_DISABLE` is set."""
    try:
        return parse_bool(os.environ.get("UTSUWA_IDMAPPED_MOUNTS_DISABLE", ""))
    except InvalidConfig:
        return True


def can_idmap(path: Path) -> bool:
    """Return whether the file system at `path` supports idmapped mounts (not cached: it costs 20 µs)."""
    if idmapping_disabled():
        return False
    try:
        with _tree(path, _PROBE_MAP):
            return True
    except (OSError, HostError) as error:
        log.info("idmapped mounts are not possible at %s: %s", path, error)
        return False


@dataclass(frozen=True)
class OverlayFolder:
    """An instance's directory, as needed by `mount_overlay`.

    `layer/` contains `upper/` and `work/` and is owned by id 0 on disk; `lower/` is an empty directory to
    which the image is briefly attached; `rootfs/` is the mount point of the overlay.
    """

    path: Path

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    @property
    def lower(self) -> Path:
        return self.path / "lower"

    @property
    def layer(self) -> Path:
        return self.path / "layer"

    @property
    def upper(self) -> Path:
        return self.layer / "upper"

    @property
    def work(self) -> Path:
        return self.layer / "work"

    def make(self) -> None:
        """Create the directories, with their modes, below an existing `path`."""
        for folder, mode in (
            (self.rootfs, 0o755),
            (self.lower, 0o700),
            (self.layer, 0o700),
            (self.upper, 0o755),
            (self.work, 0o700),
        ):
            folder.mkdir(mode=mode)


def mount_overlay(folder: OverlayFolder, image: Path, idmap: IdMap, options: Mapping[str, str]) -> None:
    """Mount an overlay of `image` (lower) and `folder.upper` at `folder.rootfs`.

    Both layers are idmapped mounts (unmapped if privileged), which are attached only until the overlay holds
    its own copies of them. The layers are named relative to the working directory of the mounting thread, so
    no path needs escaping in the options.
    """

    with _tree(image, idmap) as lower, _tree(folder.layer, idmap) as layer:

        def work() -> None:
            os.chdir(folder.path)
            overlay = _attached_for_a_moment({folder.lower: lower, folder.layer: layer}, options)
            try:
                _without_devices(overlay, idmap)
                syscalls.move_mount(overlay, folder.rootfs)
            finally:
                os.close(overlay)

        as_container_root(idmap, work)


def _attached_for_a_moment(trees: Mapping[Path, int], options: Mapping[str, str]) -> int:
    """Attach the layers, create the overlay, which makes its own copies of their mounts, and detach them."""
    attached: list[Path] = []
    try:
        for target, tree in trees.items():
            syscalls.move_mount(tree, target)
            attached.append(target)
        return _overlay_tree(options)
    finally:
        for target in attached:
            syscalls.umount2(target, syscalls.MNT_DETACH)


def _overlay_tree(options: Mapping[str, str]) -> int:
    """Create a detached overlay of the layers in the working directory.

    The kernel removes a stopped container's mounts after its processes: until then its upper layer is busy.
    """
    deadline = time.monotonic() + BUSY_PATIENCE
    while True:
        fs = syscalls.fsopen("overlay")
        try:
            layers = {"lowerdir": "lower", "upperdir": "layer/upper", "workdir": "layer/work"}
            for key, value in {"source": "utsuwa", **layers, **options}.items():
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
        return HostError("Cannot mount the overlay: its lower layer is not the image that it was created on")
    said = "; ".join(messages) or os.strerror(error.errno or 0)
    return HostError(f"Cannot mount the overlay: {said}")


def can_overlay(folder: Path, options: Mapping[str, str]) -> bool:
    """Test whether the file system of `folder` can hold the upper layer of an overlay.

    `folder` is an empty directory of the caller; the directories of the test are left in it.
    """
    return _trial(folder, IdMap(), options) == 0


def can_overlay_idmapped(folder: Path, options: Mapping[str, str]) -> bool:
    """Test whether an overlay of idmapped layers works on the file system of `folder`; as `can_overlay`."""
    return can_idmap(folder) and _trial(folder, _PROBE_MAP, options) == _PROBE_MAP.host_uid(0)


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
        mount_overlay(trial, image, idmap, options)
        as_container_root(idmap, lambda: _try_out(trial.rootfs))
        return trial.rootfs.stat().st_uid
    except (OSError, HostError) as error:
        log.info("overlays do not work at %s: %s", folder, error)
        return None
    finally:
        unmount(trial.rootfs)
