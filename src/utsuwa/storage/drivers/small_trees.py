"""Copies of small trees in this process: starting a program takes longer than copying some dozen files."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.drivers.copy_entry import EntryCopier, copy_times

_MOST_ENTRIES = 400
_MOST_BYTES = 64 << 20
"""On disk; more is left to a program, whose progress can be seen."""
_LONGEST_PATH = 2000
"""Below the root; the kernel takes 4095 bytes with what is above."""

_Entry = tuple[str, os.stat_result]
"""A path below the root, and its status."""


def copy_small_tree(source: Path, target: Path, stopper: Stopper | None) -> bool:
    """Copy a tree with all attributes and hard links, if it is small, and part of one file system.

    Blocks of zeros take no space in the copy.

    Returns False, with nothing done, if it is not, or if `target` exists. If it raises OSError, or
    ProcessFailed because `stopper` was stopped, nothing is left of the copy.
    """
    entries = _entries(source)
    if entries is None or os.path.lexists(target):
        return False
    try:
        _copy(source, target, entries, stopper)
    except BaseException:
        with suppress(OSError, ProcessFailed):
            remove_tree(target)
        raise
    return True


def _entries(root: Path) -> list[_Entry] | None:
    """Return what is in a small tree, each directory before its content; None if the tree is not small."""
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return None
    found: list[_Entry] = [("", status)]
    waiting = [""]
    blocks = 0
    while waiting:
        below = waiting.pop()
        with os.scandir(root / below) as entries:
            for entry in entries:
                one = entry.stat(follow_symlinks=False)
                path = f"{below}/{entry.name}" if below else entry.name
                blocks += one.st_blocks
                found.append((path, one))
                if (
                    len(found) > _MOST_ENTRIES
                    or blocks * 512 > _MOST_BYTES
                    or len(path) > _LONGEST_PATH
                    or one.st_dev != status.st_dev
                ):
                    return None
                if stat.S_ISDIR(one.st_mode):
                    waiting.append(path)
    return found


def _copy(source: Path, target: Path, entries: list[_Entry], stopper: Stopper | None) -> None:
    copier = EntryCopier(zeros_as_holes=True)
    folders = []
    for path, status in entries:
        if stopper is not None and stopper.stopped:
            raise ProcessFailed(["copy files"], None, "was stopped before its end")
        old, new = source / path, target / path
        if stat.S_ISDIR(status.st_mode):
            new.mkdir(mode=0o700)
            copier.copy_attributes(old, new, status)
            folders.append((new, status))
        else:
            copier.copy(old, new, status)
    for folder, status in folders:
        copy_times(folder, status)
