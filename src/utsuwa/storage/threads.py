"""The thread pools of the storage, by how long their work may take."""

from __future__ import annotations

from dataclasses import dataclass, field

from utsuwa.core.threads import Threads


def _own(count: int, name: str) -> Threads:
    return field(default_factory=lambda: Threads(count, f"storage-{name}"))


@dataclass(frozen=True)
class StorageThreads:
    """Starting, stopping and listing instances never wait for volumes being filled, removed or measured."""

    quick: Threads = field(default_factory=Threads)
    """Short work: links, records, unmounting."""
    mount: Threads = _own(4, "mount")
    """Mounting, and creating volumes on images that the pool has; slow only without idmapped mounts."""
    fill: Threads = _own(6, "fill")
    """Unpacking and copying, which may take up to an hour."""
    remove: Threads = _own(4, "remove")
    """Removing trees, and syncing new ones to disk."""
    count: Threads = _own(4, "count")
    """Measuring the disk usage of volumes."""
