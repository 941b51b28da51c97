"""Device nodes that every container gets: of its own, not the host's.

A container's udev sets owners and modes in `/dev`. Bound from the host, a privileged container's would set
them on the host's nodes, and an unprivileged one would have whatever mode the host's administrator chose.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from utsuwa.core.idmap import IdMap
from utsuwa.host.files.filetree import remove_tree

_SHARED = ("dev/fuse", "dev/net/tun")
"""Drivers that keep what one container does apart from others and the host."""


def make(folder: Path, idmap: IdMap, root: Path = Path("/")) -> list[tuple[Path, str]]:
    """Make the nodes for a start below `folder`: which file is to be bound where inside. Blocking.

    Only those that the host has. Where no nodes can be made or opened, as in a user namespace, the host's
    own are given.
    """
    remove(folder)
    nodes = [(root / name, name) for name in _SHARED if _is_node(root / name)]
    if not nodes:
        return []
    # As with root file systems: open to the container's root, who may pass and nothing else.
    folder.mkdir(mode=0o700)
    os.chown(folder, idmap.host_uid(0), idmap.host_gid(0))
    folder.chmod(0o100)
    if os.statvfs(folder).f_flag & os.ST_NODEV:
        return nodes
    try:
        return list(_copies(nodes, folder, idmap))
    except PermissionError:
        return nodes


def _copies(nodes: list[tuple[Path, str]], folder: Path, idmap: IdMap) -> Iterator[tuple[Path, str]]:
    for source, name in nodes:
        node = folder / name.replace("/", "-")
        os.mknod(node, stat.S_IFCHR | 0o600, source.stat().st_rdev)
        os.chown(node, idmap.host_uid(0), idmap.host_gid(0))
        node.chmod(0o666)
        yield node, name


def _is_node(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False


def remove(folder: Path) -> None:
    """Take the nodes away when the container has ended; safe to repeat. Blocking."""
    if folder.is_dir():
        remove_tree(folder)
