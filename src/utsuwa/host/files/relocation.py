"""Directories of the daemon whose files are in another directory, to which a symlink leads.

`relocate` moves the files of a directory, and can be interrupted at any time: the path leads to a complete
set of files throughout, and `settle` removes the other, incomplete one. All functions block.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from utsuwa.core import faults
from utsuwa.host import syscalls
from utsuwa.host.files.filetree import remove_tree, translated

_OF_FILE_SYSTEM = "lost+found"
"""An entry of the root of a new file system, which is neither moved nor in the way."""


def location(path: Path) -> Path | None:
    """Return the directory to which the symlink at `path` leads, or None if it is a directory itself."""
    return path.readlink() if path.is_symlink() else None


def content(directory: Path) -> list[Path]:
    """Return what is in a directory, except what belongs to its file system."""
    return [entry for entry in directory.iterdir() if entry.name != _OF_FILE_SYSTEM]


def relocate(path: Path, target: Path | None) -> None:
    """Move the files of `path` to `target`, an empty directory, or back to a directory at `path` (None).

    Raises OutOfSpace, HostError, in which case the files are where they were.
    """
    settle(path)
    other = _other(path)
    try:
        if target is None:
            other.mkdir(mode=0o700)
        else:
            os.chown(target, 0, 0)  # a volume may belong to somebody else
            target.chmod(0o700)
            other.symlink_to(target)
        faults.point("relocation begun")
        _copy_entries(path, other)
        faults.point("relocation copied")
        _exchange(path, other)
    except OSError as error:
        settle(path)
        raise translated(error, str(path)) from error
    faults.point("relocation exchanged")
    settle(path)


def settle(path: Path) -> None:
    """Remove the incomplete new files of an interrupted relocation, or the old ones of a complete one."""
    other = _other(path)
    if not other.is_symlink():
        remove_tree(other)
        return
    if other.is_dir():
        for entry in content(other):
            if entry.is_dir() and not entry.is_symlink():
                remove_tree(entry)
            else:
                entry.unlink()
    other.unlink()


def _other(path: Path) -> Path:
    """Where the new files are before `path` is exchanged with it, and the old ones after."""
    return path.with_name(f".{path.name}-moving")


def _copy_entries(source: Path, target: Path) -> None:
    for entry in content(source):
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, target / entry.name, follow_symlinks=False)
    handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(handle)
    finally:
        os.close(handle)


def _exchange(path: Path, other: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.exchange(folder, path.name, other.name)
        os.fsync(folder)
    finally:
        os.close(folder)
