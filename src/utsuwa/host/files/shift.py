"""Shifting of owners on disk from one id map to another, where the kernel does not support idmapped mounts.

Shifts owner and group, the ids in POSIX ACLs, and the root id of file capabilities. Modes are kept
(changing the owner would clear the setuid bits).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from utsuwa.core.idmap import IdMap, IdRange

_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_CAPABILITY = "security.capability"
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_ACL_VERSION = 2
_CAP_REVISION_MASK = 0xFF000000
_CAP_REVISION_2, _CAP_REVISION_3 = 0x02000000, 0x03000000


@dataclass(frozen=True)
class Shift:
    """A shift from the on-disk ids of `old` to those of `new`; a privileged map means unshifted ids.

    `resumed` means that an earlier pass was interrupted: ids that already belong to `new` are left unchanged.
    """

    old: IdMap
    new: IdMap
    resumed: bool = False

    def uid(self, on_disk: int) -> int:
        return _moved(self.old.uids, self.new.uids, on_disk, self.resumed)

    def gid(self, on_disk: int) -> int:
        return _moved(self.old.gids, self.new.gids, on_disk, self.resumed)


def _moved(old: tuple[IdRange, ...], new: tuple[IdRange, ...], on_disk: int, resumed: bool) -> int:
    """Return the new id on disk; an id that is not in both maps is unchanged."""
    if resumed and new and _inside(new, on_disk) is not None:
        return on_disk
    inside = _inside(old, on_disk)
    if inside is None:
        return on_disk
    if not new:
        return inside
    for r in new:
        if r.container <= inside < r.container + r.count:
            return r.host + inside - r.container
    return on_disk


def _inside(ranges: tuple[IdRange, ...], host: int) -> int | None:
    """Return the container's id for a host's, or None if it is not mapped."""
    if not ranges:
        return host
    for r in ranges:
        if r.host <= host < r.host + r.count:
            return r.container + host - r.host
    return None


def shift_owners(root: str | os.PathLike[str], shift: Shift) -> None:
    """Shift the owners of a tree, which nothing else may change meanwhile, within its file system.

    Blocking. Symlinks are changed, never followed. After an interruption, another pass with `resumed` set
    completes the shift. Raises OSError.
    """
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        device = os.fstat(top).st_dev
        linked: set[int] = set()
        _shift_open(top, shift)
        for _, folders, files, folder in _walk(top):
            for name in (*folders, *files):
                status = os.lstat(name, dir_fd=folder)
                if status.st_dev == device and _first_sight(status, linked):
                    _shift_entry(folder, name, status, shift)
    finally:
        os.close(top)


def _walk(top: int) -> Iterator[tuple[str, list[str], list[str], int]]:
    return os.fwalk(".", dir_fd=top, follow_symlinks=False)


def _first_sight(status: os.stat_result, linked: set[int]) -> bool:
    """Return whether this inode is seen for the first time: shifted twice, an id would be wrong."""
    if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
        return True
    if status.st_ino in linked:
        return False
    linked.add(status.st_ino)
    return True


def _shift_entry(folder: int, name: str, status: os.stat_result, shift: Shift) -> None:
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            _shift_open(fd, shift)
        finally:
            os.close(fd)
        return
    uid, gid = shift.uid(status.st_uid), shift.gid(status.st_gid)
    if (uid, gid) != (status.st_uid, status.st_gid):
        os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)


def _shift_open(fd: int, shift: Shift) -> None:
    status = os.fstat(fd)
    uid, gid = shift.uid(status.st_uid), shift.gid(status.st_gid)
    names = os.listxattr(fd)
    changed = {
        name: shifted_attribute(name, os.getxattr(fd, name), shift)
        for name in (*_ACLS, _CAPABILITY)
        if name in names
    }
    if (uid, gid) != (status.st_uid, status.st_gid):
        os.fchown(fd, uid, gid)
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
    for name, value in changed.items():
        os.setxattr(fd, name, value)


def shifted_attribute(name: str, value: bytes, shift: Shift) -> bytes:
    """Return the value of an extended attribute with shifted ids, if it is one that contains some."""
    if name in _ACLS:
        return shifted_acl(value, shift)
    return shifted_capability(value, shift) if name == _CAPABILITY else value


def shifted_acl(value: bytes, shift: Shift) -> bytes:
    """Return a POSIX ACL attribute with shifted ids; an unknown format is returned unchanged."""
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != _ACL_VERSION:
        return value
    parts = [value[:4]]
    for tag, permissions, owner in struct.iter_unpack("<HHI", value[4:]):
        if tag == _ACL_USER:
            owner = shift.uid(owner)
        elif tag == _ACL_GROUP:
            owner = shift.gid(owner)
        parts.append(struct.pack("<HHI", tag, permissions, owner))
    return b"".join(parts)


def shifted_capability(value: bytes, shift: Shift) -> bytes:
    """Return a file capability for the container's root in the new map (revision 3, or 2 for the host's
    root)."""
    if len(value) not in (20, 24):
        return value
    (magic,) = struct.unpack_from("<I", value)
    if magic & _CAP_REVISION_MASK not in (_CAP_REVISION_2, _CAP_REVISION_3):
        return value
    root = struct.unpack_from("<I", value, 20)[0] if len(value) == 24 else 0
    root = shift.uid(root)
    flags = magic & ~_CAP_REVISION_MASK
    if root == 0:
        return struct.pack("<I", flags | _CAP_REVISION_2) + value[4:20]
    return struct.pack("<I", flags | _CAP_REVISION_3) + value[4:20] + struct.pack("<I", root)
