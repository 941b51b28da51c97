"""What is copied to what, and how: one record for all steps of a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from utsuwa.core.idmap import IdMap
from utsuwa.core.volumes import Volume

Held = Callable[[], AbstractAsyncContextManager[None]]
"""What a caller does around the copying of files that may be in use."""

_UNMAPPED = IdMap()
"""The owner of a snapshot's directory is root."""


@dataclass(frozen=True)
class Copying:
    """A copy of a volume, with some of its snapshots, or of a snapshot."""

    source_pool: str
    source: Volume
    pool: str
    target: Volume
    idmap: IdMap = _UNMAPPED
    """That of the target, whose directory its root owns."""
    snapshots: Sequence[str] = ()
    """Snapshots of the source that are copied as well, oldest first."""
    mounted: IdMap | None = None
    """The id map of the source's mount, if it belongs to a running instance."""
    held: Held = contextlib.nullcontext
    """Entered while files of the source itself are copied."""
    like: Volume | None = None
    """An older copy on the pool of the target, which is about to be replaced."""

    def of_snapshot(self, name: str) -> Copying:
        """Return the copy of one of the snapshots, whose files are never in use."""
        source, target = self.source.snapshot_named(name), self.target.snapshot_named(name)
        return Copying(self.source_pool, source, self.pool, target)

    def from_snapshot(self, name: str) -> Copying:
        """Return what makes the target of one of the snapshots."""
        source = self.source.snapshot_named(name)
        return replace(self, source=source, snapshots=(), mounted=None, held=contextlib.nullcontext)
