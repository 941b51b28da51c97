"""Merges frozen layers into one with the same effect on the layers below, which are not needed for that.

It is done as the kernel combines the layers of an overlay: a directory is looked up in one layer after the
other, by its name or where its redirection points to, until one is opaque or something else.

Layers with nothing below them become a plain tree: a snapshot of a single layer is shown as it is on disk,
not by an overlay.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.mounts.overlays import attribute_prefix, is_whiteout
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.drivers.copy_entry import EntryCopier, copy_times

_OPAQUE, _REDIRECT = "opaque", "redirect"
_OF_OVERLAYFS = (_OPAQUE, _REDIRECT, "origin", "impure", "nlink", "uuid")
"""Attributes, without their prefix, that are not the file's own; escaped ones (`overlay.*`) are."""


@dataclass(frozen=True)
class _Folder:
    """A directory of the merged layer."""

    parts: tuple[tuple[int, Path], ...]
    """The directories of which it consists, each with the number of its layer, the newest first."""
    target: Path
    redirect: bytes = b""
    """Where lower layers have it, if not at the same place."""
    stopped: bool = False
    """Whether it hides what lower layers have."""
    opaque: bool = False
    """Whether that has to be said: its parent does not hide it already."""


def merge(sources: Sequence[Path], target: Path, stopper: Stopper, *, lowest: bool) -> None:
    """Create the tree `target` from layers, the newest first; `lowest` if there is none below them.

    Raises OSError, ProcessFailed when stopped.
    """
    _Merging(sources, stopper, lowest=lowest).run(target)


class _Merging:
    def __init__(self, roots: Sequence[Path], stopper: Stopper, *, lowest: bool) -> None:
        self._roots = roots
        self._lowest = lowest
        self._stopper = stopper
        self._copier = EntryCopier(frozenset(map(_full, _OF_OVERLAYFS)))

    def run(self, target: Path) -> None:
        waiting = [_Folder(tuple(enumerate(self._roots)), target, stopped=self._lowest)]
        made: list[tuple[Path, os.stat_result]] = []
        while waiting:
            folder = waiting.pop()
            newest = folder.parts[0][1]
            status = newest.lstat()
            folder.target.mkdir(mode=0o700)
            self._copier.copy_attributes(newest, folder.target, status)
            if folder.opaque:
                os.setxattr(folder.target, _full(_OPAQUE), b"y")
            elif folder.redirect:
                os.setxattr(folder.target, _full(_REDIRECT), folder.redirect)
            made.append((folder.target, status))
            waiting += self._merge_entries(folder)
        for path, status in made:
            copy_times(path, status)

    def _merge_entries(self, folder: _Folder) -> list[_Folder]:
        """Copy the files of a directory; return the directories in it."""
        folders = []
        for name in {entry.name for _, part in folder.parts for entry in os.scandir(part)}:
            if self._stopper.stopped:
                raise ProcessFailed(["merge layers"], None, "was stopped before its end")
            source, status = _newest(folder, name)
            if stat.S_ISDIR(status.st_mode):
                folders.append(self._child(folder, name))
            elif not (folder.stopped and is_whiteout(status)):
                self._copier.copy(source, folder.target / name, status)
        return folders

    def _child(self, folder: _Folder, name: str) -> _Folder:
        """Find the parts of a directory in a directory."""
        search = _Search(name)
        parts = []
        layers = list(folder.parts)
        while layers and not search.stopped:
            number, above = layers.pop(0)
            was_absolute = search.absolute
            found = search.look_up(above)
            if found is not None:
                parts.append((number, found))
            if search.absolute and not was_absolute:
                layers = list(enumerate(self._roots))[number + 1 :]
        stopped = self._lowest or search.stopped or (folder.stopped and not search.absolute)
        redirected = not self._lowest and search.wanted != os.fsencode(name)
        return _Folder(
            tuple(parts),
            folder.target / name,
            redirect=search.wanted if redirected else b"",
            stopped=stopped,
            opaque=stopped and not folder.stopped,
        )


class _Search:
    """The search for a directory in one layer after the other."""

    def __init__(self, name: str) -> None:
        self.wanted = os.fsencode(name)
        """Its name, or its path from the root of the layer, in the next layer."""
        self.stopped = False

    @property
    def absolute(self) -> bool:
        return self.wanted.startswith(b"/")

    def look_up(self, above: Path) -> Path | None:
        """Look in the next layer, below the parent or the root; return the directory if it is there."""
        names = self.wanted.lstrip(b"/").split(b"/")
        path = above
        for number, name in enumerate(names):
            path /= os.fsdecode(name)
            rest = b"".join(b"/" + later for later in names[number + 1 :])
            try:
                status = path.lstat()
            except FileNotFoundError:
                return None
            if not stat.S_ISDIR(status.st_mode):  # also whiteouts
                self.stopped = True
                return None
            if _attribute(path, _OPAQUE) == b"y":
                self.stopped = True
            else:
                self._follow(_attribute(path, _REDIRECT), name, rest)
        return path

    def _follow(self, redirect: bytes, name: bytes, rest: bytes) -> None:
        if redirect.startswith(b"/"):
            self.stopped = False  # it leads out of an opaque directory
            self.wanted = redirect + rest
        elif redirect:
            before = self.wanted[: len(self.wanted) - len(name + rest)]
            self.wanted = before + redirect + rest


def _newest(folder: _Folder, name: str) -> tuple[Path, os.stat_result]:
    for _, part in folder.parts:
        path = part / name
        with suppress(FileNotFoundError):
            return path, path.lstat()
    raise FileNotFoundError(errno.ENOENT, "a frozen layer has changed", name)


def _full(name: str) -> str:
    return attribute_prefix() + name


def _attribute(path: Path, name: str) -> bytes:
    try:
        return os.getxattr(path, _full(name), follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return b""
