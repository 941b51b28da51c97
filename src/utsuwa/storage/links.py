"""The links `containers/<name>` in the state folder, where liblxc and people look for an instance's folder.

Everything here blocks and belongs into worker threads.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path


class Links:
    """The folder `containers`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, name: str, target: Path) -> None:
        """Have the link of an instance lead to its folder; does nothing where it does."""
        link = self._folder / name
        if link.is_symlink():
            if link.readlink() == target:
                return
            link.unlink()
        link.symlink_to(target)

    def remove(self, name: str) -> None:
        """Does nothing where there is none."""
        (self._folder / name).unlink(missing_ok=True)

    def sweep(self, known: Container[str]) -> None:
        """Remove those of names that no instance has (any more)."""
        for link in self._folder.iterdir():
            if link.is_symlink() and link.name not in known:
                link.unlink()
