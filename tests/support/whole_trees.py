"""Whole trees of files as values, to compare one with another."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import astuple, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """All that a file or directory shows, but for its inode number."""

    mode: int
    owner: tuple[int, int]
    content: str
    """The hash of a file's content, the text of a symlink, the number of a device."""
    attributes: tuple[tuple[str, bytes], ...]
    links: int
    """The number of names; 1 for a directory."""
    same_as: str
    """The first name of the file, in order, in the tree."""
    has_holes: bool
    modified: int


def tree(root: Path, *, times: bool = True) -> dict[str, Entry]:
    """Everything below a directory, and itself as `.`; without `times`, their times are 0."""
    paths = [root, *sorted(root.rglob("*"))]
    first: dict[tuple[int, int], str] = {}
    found = {}
    for path in paths:
        status = path.lstat()
        name = str(path.relative_to(root))
        folder = stat.S_ISDIR(status.st_mode)
        found[name] = Entry(
            mode=status.st_mode,
            owner=(status.st_uid, status.st_gid),
            content=_content(path, status),
            attributes=_attributes(path),
            links=1 if folder else status.st_nlink,
            same_as=name if folder else first.setdefault((status.st_dev, status.st_ino), name),
            has_holes=stat.S_ISREG(status.st_mode) and status.st_blocks * 512 + 4096 < status.st_size,
            modified=status.st_mtime_ns if times else 0,
        )
    return found


def differences(first: dict[str, Entry], second: dict[str, Entry]) -> list[str]:
    """What is different, in a form to be read."""
    return [
        f"{name!r}: {_distinct(first.get(name), second.get(name))}"
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]


def _distinct(first: Entry | None, second: Entry | None) -> str:
    if first is None or second is None:
        return f"{first} != {second}"
    pairs = zip(fields(Entry), astuple(first), astuple(second), strict=True)
    return ", ".join(f"{field.name} {one!r} != {other!r}" for field, one, other in pairs if one != other)


def _content(path: Path, status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)  # noqa: PTH115 - exactly as it is written
    return str(status.st_rdev) if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else ""


def _attributes(path: Path) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
