"""Device nodes that every container has: separate nodes, not the host's.

A container's udev sets owners and modes in `/dev`. If the host's nodes were bound, that of a privileged
container would change them, and an unprivileged container would depend on the modes that the host's
administrator chose.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from utsuwa.core.idmap import IdMap
from utsuwa.host.mounts.device_folder import DeviceFolder, DeviceNumber, Node

_SHARED = ("dev/fuse", "dev/net/tun")
"""Devices whose drivers isolate containers from each other and from the host."""


def make(folder: DeviceFolder, idmap: IdMap, root: Path = Path("/")) -> list[tuple[Path, str]]:
    """Create the nodes for a start in `folder`; return each with its path inside. Blocking.

    Nodes that the host lacks are omitted. If nodes cannot be created or opened, as in a user namespace, the
    host's nodes are returned.
    """
    nodes = [(root / name, name) for name in _SHARED if _is_node(root / name)]
    try:
        return [(_copy(source, folder, idmap), name) for source, name in nodes]
    except PermissionError:
        return nodes


def _copy(source: Path, folder: DeviceFolder, idmap: IdMap) -> Path:
    number = source.stat().st_rdev
    device = DeviceNumber("char", os.major(number), os.minor(number))
    node = Node(device, 0o666, idmap.host_uid(0), idmap.host_gid(0))
    return folder.make_node(f"{source.parent.name}-{source.name}", node)


def _is_node(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False
