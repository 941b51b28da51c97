"""Mounts: idmapped binds, overlays of idmapped layers, unmounting, and what is mounted now.

All functions block and run in worker threads. Failures are OSError (with errno, so that callers can
tell a full disk) or HostError with a sentence.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
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
"""Seconds that a busy mount gets before it is taken from the tree lazily."""

BUSY_PATIENCE = 3.0
"""Seconds that the layers of a container that has just ended may still be held by its mounts."""

_PROBE_RANGES = (IdRange(0, 100_000, 65_536),)
_PROBE_MAP = IdMap(_PROBE_RANGES, _PROBE_RANGES)
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo."""

    id: int
    parent: int
    root: str
    """The folder of the file system that is shown at `target`."""
    target: Path
    fstype: str
    source: str
    options: str
    super_options: str


def mounts_below(folder: Path) -> list[Mount]:
    """What is mounted at or below a folder, in the order in which it was mounted."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    # The name occurs in its line whatever is escaped in the way to it, so few lines are looked at closely.
    name = os.fsencode(folder.name)
    if not re.search(rb"[\s\\#]", name):
        lines = [line for line in lines if name in line]
    return [m for m in parse_mountinfo(b"\n".join(lines)) if m.target == folder or folder in m.target.parents]


def parse_mountinfo(text: bytes) -> list[Mount]:
    """The mounts of a `mountinfo` file; lines that are cut off are left out."""
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
    """Whether something is mounted right at `path`; False where there is no such path."""
    try:
        return syscalls.is_mount_root(path)
    except FileNotFoundError:
        return False


def unmount(target: Path, patience: float = UNMOUNT_PATIENCE) -> bool:
    """Unmount what is on top at `target`; says whether there was anything.

    A busy mount is tried again for `patience` seconds, then taken away lazily with a warning.
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
            log.warning("%s is still in use: it is unmounted lazily", target)
            syscalls.umount2(target, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
            return True
        time.sleep(pause)
        pause = min(pause * 2, 0.25)
    return False


def unmount_below(folder: Path) -> None:
    """Unmount everything at and below a folder, last mounted first."""
    for mount in reversed(mounts_below(folder)):
        unmount(mount.target)


def bind(source: Path, target: Path) -> None:
    """Show `source` at `target` too; what is mounted below one later does not appear below the other."""
    tree = syscalls.open_tree(source)
    try:
        syscalls.mount_setattr(tree, propagation=syscalls.MS_PRIVATE)
        syscalls.mount_setattr(tree, propagation=syscalls.MS_SHARED)
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)


def bind_idmapped(source: Path, target: Path, idmap: IdMap) -> None:
    """Mount `source` at `target` (they may be the same) with the container's ids shown as the host's."""
    with _tree(source, idmap) as tree:
        _without_devices(tree, idmap)
        syscalls.move_mount(tree, target)


def bind_without_devices(source: Path, target: Path) -> None:
    """Show `source` at `target`, where the owners on disk are the container's already."""
    tree = syscalls.open_tree(source)
    try:
        syscalls.mount_setattr(tree, attr_set=syscalls.MOUNT_ATTR_NODEV)
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)


def _without_devices(mount: int, idmap: IdMap) -> None:
    """An unprivileged container cannot make device nodes, but its image may bring some.

    No device cgroup stands in its way, so the nodes must not open: `/dev` is a file system of its own.
    """
    if not idmap.privileged:
        syscalls.mount_setattr(mount, attr_set=syscalls.MOUNT_ATTR_NODEV)


@contextmanager
def _tree(source: Path, idmap: IdMap) -> Iterator[int]:
    """A detached copy of the mount at `source`, with its ids mapped where there is a map."""
    tree = syscalls.open_tree(source)
    try:
        if not idmap.privileged:
            with user_namespace(idmap) as userns:
                syscalls.mount_setattr(tree, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns)
        yield tree
    finally:
        os.close(tree)


def idmapping_disabled() -> bool:
    """Whether `UTSUWA_IDMAPPED_MOUNTS_DISABLE` forbids idmapped mounts."""
    try:
        return parse_bool(os.environ.get("UTSUWA_IDMAPPED_MOUNTS_DISABLE", ""))
    except InvalidConfig:
        return True


def can_idmap(path: Path) -> bool:
    """Whether the kernel maps ids on the file system at `path` (asked anew: it costs 20 µs)."""
    if idmapping_disabled():
        return False
    try:
        with _tree(path, _PROBE_MAP):
            return True
    except (OSError, HostError) as error:
        log.info("ids cannot be mapped at %s: %s", path, error)
        return False


@dataclass(frozen=True)
class OverlayFolder:
    """An instance's folder as `mount_overlay` needs it.

    `layer/` holds `upper/` and `work/` and is owned by id 0 on disk; `lower/` is an empty folder where
    the image is attached for a moment; `rootfs/` is where the overlay comes.
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
        """Make the folders, with their modes, below an existing `path`."""
        for folder, mode in (
            (self.rootfs, 0o755),
            (self.lower, 0o700),
            (self.layer, 0o700),
            (self.upper, 0o755),
            (self.work, 0o700),
        ):
            folder.mkdir(mode=mode)


def mount_overlay(folder: OverlayFolder, image: Path, idmap: IdMap, options: Mapping[str, str]) -> None:
    """Mount an overlay of `image` (below) and `folder.upper` at `folder.rootfs`.

    With a map both layers enter through idmapped mounts, attached only until the overlay holds its
    own copies of them; without one (privileged) the same way unmapped. The layers are named relative to
    the working directory of the mounting thread, so no path needs escaping in the options.
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
    """Attach the layers, make the overlay, which takes its own copies of their mounts, and detach them."""
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
    """A detached overlay of the layers in the working directory.

    The kernel takes the mounts of an ended container away after its processes: until then the upper
    layer is busy.
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
            "perhaps in the mount namespace of another program: try again when that has ended"
        )
    if error.errno == errno.ESTALE:
        return HostError("Cannot mount the overlay: the image below it is not the one that it was made on")
    said = "; ".join(messages) or os.strerror(error.errno or 0)
    return HostError(f"Cannot mount the overlay: {said}")


def can_overlay(folder: Path, options: Mapping[str, str]) -> bool:
    """Whether the file system of `folder` can hold the upper layer of an overlay; tried out in it.

    `folder` is an empty folder of the caller's and is left with the trial's folders in it.
    """
    return _trial(folder, IdMap(), options) == 0


def can_overlay_idmapped(folder: Path, options: Mapping[str, str]) -> bool:
    """Whether an overlay of idmapped layers works on the file system of `folder`; as `can_overlay`."""
    return can_idmap(folder) and _trial(folder, _PROBE_MAP, options) == _PROBE_MAP.host_uid(0)


def _try_out(rootfs: Path) -> None:
    """Write, and remove and make again a folder of the lower layer: without extended attributes on the
    upper one, in which overlayfs notes that, the mount succeeds and this fails."""
    (rootfs / "written").touch()
    (rootfs / "folder/file").unlink()
    (rootfs / "folder").rmdir()
    (rootfs / "folder").mkdir()
    if any((rootfs / "folder").iterdir()):
        raise HostError("a folder of the lower layer comes back after its removal")


def _trial(folder: Path, idmap: IdMap, options: Mapping[str, str]) -> int | None:
    """The owner that the top of a trial's overlay shows; None where the overlay does not take files."""
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
