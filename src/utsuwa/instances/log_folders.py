"""The directories of the instances' logs, which may be on a custom volume (`storage.logs_volume`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from utsuwa.core.errors import Busy, InUse, Unavailable
from utsuwa.instances.model import RuntimeTable


class LogFolders:
    """Keeps instances from starting while the directories are moved, and moves from beginning while any runs.

    Running instances have files open there.
    """

    def __init__(self, path: Path, runtime: RuntimeTable) -> None:
        self._path = path
        self._runtime = runtime
        self._starting = 0
        self._paused = False

    def check_available(self) -> None:
        """Raise Unavailable if the directory is a symlink to a volume that is not mounted."""
        if not self._path.is_dir():
            raise Unavailable(
                "The logs are on a volume that is not available: see storage.logs_volume and the warnings"
            )

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Start an instance within the block. Raises Busy, Unavailable."""
        if self._paused:
            raise Busy("The logs of instances are being moved to another volume: try again")
        self.check_available()
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Start no instance within the block. Raises InUse if any runs, Busy if one is being started."""
        if self._starting:
            raise Busy("An instance is being started: its logs cannot be moved now")
        if running := self._runtime.all():
            raise InUse(
                f"The instance {running[0].ref.name!r} is running, and writes logs: stop all instances first"
            )
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
