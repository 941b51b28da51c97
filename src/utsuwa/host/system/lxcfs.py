"""lxcfs, whose files show a container its own resources."""

from __future__ import annotations

import os
from pathlib import Path

FILESYSTEM = "fuse.lxcfs"


def folder() -> Path:
    """Return its mount point on the host: `UTSUWA_LXCFS`, or that of the distributions' packages."""
    return Path(os.environ.get("UTSUWA_LXCFS") or "/var/lib/lxcfs")
