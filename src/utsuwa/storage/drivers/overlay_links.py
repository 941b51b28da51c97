"""Hard links in overlays: link counts that are right, and names that stay together in frozen layers.

If a file of a lower layer that has several names is changed, overlayfs copies it to the upper layer under
the name that was used, and knows by its index that the other names are the same file. A frozen layer has no
index: the other names would show the old content. Touching each of them links it into the upper layer.

With `nfs_export=on` the index has a link to every file that was changed. The next mount would count it as a
name if the file had a single one in the lower layer, for which the kernel does not read its own note of the
number of names; and programs such as cron refuse files with several names.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from utsuwa.core.idmap import IdMap
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts.overlays import OverlayFolder, attribute_prefix, is_whiteout
from utsuwa.host.processes.run import run_blocking

_LINKS = "nlink"
"""The attribute with the number of names of a file that was copied up, relative to that in the upper or the
lower layer."""
_COMPLETE = b"U-1"
"""All names are in the upper layer, which has one more link, in the index."""
_HANDLE_OF_32_BITS = 1


def has_incomplete_links(layers: OverlayFolder) -> bool:
    """Return whether files may have names that are not in the upper layer."""
    return any(_links(entry) not in (b"", _COMPLETE) for entry in _index(layers))


def forget_complete_links(layers: OverlayFolder) -> None:
    """Remove files from the index of an overlay that is not mounted, if the upper layer has all their names.

    Nothing is left in the lower layer for which the index would be needed.
    """
    for entry in _index(layers):
        links = _links(entry)
        if links in (b"", _COMPLETE) and entry.lstat().st_nlink > 1:  # one of them is the entry
            if links:  # first: without the entry, one name would be missing from the count
                os.removexattr(entry, attribute_prefix() + _LINKS, follow_symlinks=False)
            entry.unlink()


def _index(layers: OverlayFolder) -> Iterator[Path]:
    """Return the entries of files that were copied up."""
    try:
        entries = list(os.scandir(layers.work / "index"))
    except FileNotFoundError:
        return
    for entry in entries:
        # Directories have entries of another kind, and whiteouts stand for what was deleted.
        unfinished = entry.name.startswith("#")
        if unfinished or entry.is_dir(follow_symlinks=False):
            continue
        plain = entry.is_file(follow_symlinks=False) or entry.is_symlink()
        if plain or not is_whiteout(entry.stat(follow_symlinks=False)):
            yield Path(entry.path)


def _links(path: Path) -> bytes:
    """Return what is noted of the file's names, if anything is."""
    try:
        return os.getxattr(path, attribute_prefix() + _LINKS, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return b""


def complete_links(layers: OverlayFolder, idmap: IdMap) -> None:
    """Have all names of each file of the upper layer in it; the overlay is mounted with this map."""
    inodes = {_inode(entry.name) for entry in _index(layers) if _links(entry) not in (b"", _COMPLETE)}
    found = run_blocking(["find", str(layers.rootfs), "!", "-type", "d", "-printf", r"%i\t%P\0"], timeout=600)
    missing = []
    for line in found.stdout.split(b"\0")[:-1]:
        inode, _, name = line.partition(b"\t")
        path = os.fsdecode(name)
        if int(inode) in inodes and not os.path.lexists(layers.upper / path):
            missing.append(layers.rootfs / path)
    if missing:
        as_container_root(idmap, lambda: _touch(missing))


def _inode(entry: str) -> int:
    """Return the inode number of a file of a lower layer, which an overlay shows, from its file handle.

    The name of an entry of the index is a handle: a head of 21 bytes, the fifth of which is the type, and
    the part of the file system. That starts with the inode number, in 32 bits or, on xfs and btrfs, in 64.
    """
    handle = bytes.fromhex(entry)
    size = 4 if handle[4] == _HANDLE_OF_32_BITS else 8
    return int.from_bytes(handle[21 : 21 + size], "little")


def _touch(paths: list[Path]) -> None:
    for path in paths:
        status = path.lstat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
