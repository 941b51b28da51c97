"""The links `containers/<name>` in the state folder, by which liblxc and users find an instance's folder.

Everything here blocks and must run in worker threads.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path


class Links:
    """The folder `containers`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, name: str, target: Path) -> None:
        """Point the link of an instance to its folder; does nothing if it does already."""
        link = self._folder / name
        if link.is_symlink():
            if link.readlink() == target:
                return
            link.unlink()
        link.symlink_to(target)

    def remove(self, name: str) -> None:
        """Remove the link of an instance, if there is one."""
        (self._folder / name).unlink(missing_ok=True)

    def sweep(self, known: Container[str]) -> None:
        """Remove links whose name belongs to no instance."""
        for link in self._folder.iterdir():
            if link.is_symlink() and link.name not in known:
                link.unlink()
