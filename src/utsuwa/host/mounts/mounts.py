"""Mounts: idmapped bind mounts, unmounting, and the mount table.

All functions block and run in worker threads. Failures raise OSError (with errno, so that callers can
recognize a full disk) or HostError with a message.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host import syscalls
from utsuwa.host.mounts.userns import user_namespace

log = logging.getLogger(__name__)

UNMOUNT_PATIENCE = 2.0
"""Seconds to retry unmounting a busy mount before it is detached lazily."""

_PROBE_RANGES = (IdRange(0, 100_000, 65_536),)
PROBE_MAP = IdMap(_PROBE_RANGES, _PROBE_RANGES)
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo."""

    id: int
    parent: int
    device: str
    """The major and minor number of the file system, as `0:48`."""
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
                device=fields[2].decode(),
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


def bind_idmapped(source: Path, target: Path, idmap: IdMap, *, readonly: bool = False) -> None:
    """Bind-mount `source` at `target` (which may be the same), mapping the container's ids to the host's."""
    with idmapped_tree(source, idmap) as tree:
        without_devices(tree, idmap)
        if readonly:
            syscalls.mount_setattr(tree, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        syscalls.move_mount(tree, target)


def bind_without_devices(source: Path, target: Path, *, readonly: bool = False) -> None:
    """Bind-mount `source` at `target` with `nodev`; the owners on disk are already shifted."""
    attributes = syscalls.MOUNT_ATTR_NODEV | (syscalls.MOUNT_ATTR_RDONLY if readonly else 0)
    tree = syscalls.open_tree(source)
    try:
        syscalls.mount_setattr(tree, attr_set=attributes)
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)


@contextmanager
def uncovered(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield a path to the content of `folder` without the mounts below it, and the descriptor behind it.

    The path is valid within the block, in this process and in programs that inherit the descriptor.
    """
    tree = syscalls.open_tree(folder)
    try:
        yield Path(f"/proc/self/fd/{tree}"), tree
    finally:
        os.close(tree)


def without_devices(mount: int, idmap: IdMap) -> None:
    """An unprivileged container cannot create device nodes, but its image may contain some.

    It has no device cgroup (but see `with_devices`), so opening them is prevented by `nodev`; `/dev` is a
    separate file system.
    """
    if not idmap.privileged:
        syscalls.mount_setattr(mount, attr_set=syscalls.MOUNT_ATTR_NODEV)


def with_devices(target: Path) -> None:
    """Let device nodes on a mount be opened, for an unprivileged container that has a device cgroup."""
    syscalls.mount_setattr(target, attr_clr=syscalls.MOUNT_ATTR_NODEV)


def read_only(target: Path) -> None:
    """Protect a mount from being changed, also by the root of an unprivileged container that gets it.

    The kernel does not let that one make it writable again, as it would if the mount were made read-only
    in the container.
    """
    syscalls.mount_setattr(target, attr_set=syscalls.MOUNT_ATTR_RDONLY)


@contextmanager
def idmapped_tree(source: Path, idmap: IdMap) -> Iterator[int]:
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
        with idmapped_tree(path, PROBE_MAP):
            return True
    except (OSError, HostError) as error:
        log.info("idmapped mounts are not possible at %s: %s", path, error)
        return False
