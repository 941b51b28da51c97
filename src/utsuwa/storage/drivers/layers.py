"""The layers of a pool with the driver `overlay` that are outside of a volume's directory, and their users.

`layers/<name>/` contains `upper/`, and `work/` while it is the upper layer of a volume; one that came from
another server also `identity`, the name that it has there. What is not an upper layer any more is frozen: it
never changes, and is a lower layer of any number of volumes and snapshots. Their records are the only place
that says who uses which layer; the number of users is counted from them when the pool is mounted, and kept in
memory after that. Operations that are about to store a record count as users as well.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import HostError
from utsuwa.host.files.filetree import remove_tree
from utsuwa.storage.drivers import records
from utsuwa.storage.drivers.records import layers_of
from utsuwa.storage.drivers.trees import bytes_below

log = logging.getLogger(__name__)

_IDENTITY = "identity"


class Claim:
    """The layers that an operation uses until records say so: until it ends, none of them is removed."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._held: Counter[str] = Counter()

    def hold(self, names: Iterable[str]) -> None:
        names = list(names)
        self._layers.hold(names)
        self._held.update(names)

    def name(self) -> str:
        """Choose and hold the name of a new layer."""
        name = secrets.token_hex(8)
        self.hold([name])
        return name

    def new(self) -> str:
        """Create the directory of a new layer (0700), without content, and hold it; return its name."""
        name = self.name()
        self._layers.folder(name).mkdir(mode=0o700)
        return name

    def hand_over(self, names: Iterable[str]) -> None:
        """Have a record that was stored hold the layers instead."""
        self._held.subtract(names)

    def end(self) -> None:
        held = list(self._held.elements())
        self._held.clear()
        self._layers.release(held)


class Layers:
    """The directory `layers` of a pool. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}
        self._all_known = True
        """Whether every record could be read; layers are never removed otherwise."""

    def count(self, volumes: Iterable[Path]) -> None:
        """Count the users of all layers: the records in the directories of all volumes and snapshots.

        Removes layers without users, and what frozen ones still have of an upper layer.
        """
        there = [path.name for path in self._folder.iterdir() if not path.name.startswith(".")]
        if not there:
            return
        with self._lock:
            self._users.clear()
            self._all_known = True
        uppers = set()
        for volume in volumes:
            try:
                record = records.load_volume(volume)
            except (OSError, HostError) as error:
                log.warning("no layers are removed, as the record of %s cannot be read: %s", volume, error)
                self._all_known = False
                continue
            self.hold(layers_of(record))
            uppers.add(record.top)
        for name in there:
            if not self._users[name]:
                self._remove([name])
            elif name not in uppers and self._all_known:
                self.seal(name)

    def folder(self, name: str) -> Path:
        return self._folder / name

    def tree(self, name: str) -> Path:
        """Return the content of a layer."""
        return self._folder / name / "upper"

    def identity(self, name: str) -> str:
        """Return the id of a frozen layer, which is that of the layer of which it is a copy, if it is one."""
        try:
            return (self.folder(name) / _IDENTITY).read_text()
        except FileNotFoundError:
            return name

    def note_identity(self, name: str, identity: str) -> None:
        """Store that a new layer is the copy of another one."""
        (self.folder(name) / _IDENTITY).write_text(identity)

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """Yield a claim that ends with the block."""
        claim = Claim(self)
        try:
            yield claim
        finally:
            claim.end()

    def seal(self, name: str) -> None:
        """Remove the working directory of a layer that is frozen.

        The kernel keeps links to the layer's files there, which would show in their link counts.
        """
        work = self.folder(name) / "work"
        if work.exists():
            gone = self._folder / f".gone-{secrets.token_hex(8)}"
            work.rename(gone)
            remove_tree(gone)

    def size(self, name: str) -> int:
        """Return the bytes of a frozen layer on disk."""
        if name not in self._sizes:
            self._sizes[name] = bytes_below(self.tree(name))
        return self._sizes[name]

    def hold(self, names: Iterable[str]) -> None:
        """Count one more user of each layer."""
        with self._lock:
            self._users.update(names)

    def release(self, names: Iterable[str]) -> None:
        """Count one user less of each layer, and remove those that have none any more."""
        unused = []
        with self._lock:
            for name in names:
                self._users[name] -= 1
                if self._users[name] <= 0:
                    del self._users[name]
                    unused.append(name)
        self._remove(unused)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._sizes.pop(name, None)
            folder = self.folder(name)
            if self._all_known and folder.exists():
                faults.point("layer is unused")
                gone = self._folder / f".gone-{secrets.token_hex(8)}"
                folder.rename(gone)
                remove_tree(gone)
