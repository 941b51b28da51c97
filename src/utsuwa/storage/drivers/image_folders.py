"""The folders below a pool's `images/`: an image has one or more, each a form that instances were made on.

A layer stays on the inodes that it was made on, so a form stays as long as an instance needs it, while new
instances may get another one. The first is named as the image, later ones `<fingerprint>.2`, `.3` ...

Files are not written to the disk one by one when an image is unpacked. Until the whole file system has been
synced, the folder says in which boot that was: should the machine go down before, the files may be there
without their content.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from utsuwa.core.image_source import ImageSource
from utsuwa.host import syscalls
from utsuwa.host.archives.sandbox import DEFAULT_LIMITS
from utsuwa.host.archives.unpack import unpack_image
from utsuwa.host.processes.stopper import Stopper
from utsuwa.host.system import facts

_UNSYNCED = "unsynced"
"""In an image's folder: the id of the boot in which it was unpacked."""


class ImageFolders:
    """All images of one pool; `folder` is its `images/`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def images(self) -> list[str]:
        """The fingerprints of all images."""
        return sorted(set(map(fingerprint_of, self.all())))

    def all(self) -> Iterator[Path]:
        """Every form of every image."""
        return (entry for entry in self._folder.iterdir() if not entry.name.startswith("."))

    def forms(self, fingerprint: str) -> list[Path]:
        """Every form of one image, the oldest first."""
        found = [folder for folder in self.all() if fingerprint_of(folder) == fingerprint]
        return sorted(found, key=_number)

    def place(self, fingerprint: str) -> Path:
        """Where the next form of an image is to come."""
        names = itertools.chain([fingerprint], (f"{fingerprint}.{number}" for number in itertools.count(2)))
        return next(path for name in names if not os.path.lexists(path := self._folder / name))


def fingerprint_of(form: Path) -> str:
    """The image of which the folder is a form."""
    return form.name.partition(".")[0]


def _number(folder: Path) -> int:
    suffix = folder.name.partition(".")[2]
    return int(suffix) if suffix.isdecimal() else 1


def note_unsynced(folder: Path) -> None:
    """The folder holds an image that is being written."""
    (folder / _UNSYNCED).write_text(facts.boot_id())


def _synced(folder: Path) -> bool:
    return not (folder / _UNSYNCED).exists()


def sound(folder: Path) -> bool:
    """Whether the files are whole: on the disk, or written since the machine came up."""
    try:
        return (folder / _UNSYNCED).read_text() == facts.boot_id()
    except FileNotFoundError:
        return True


def sync(folders: Iterable[Path]) -> None:
    """Write to the disk what was unpacked into these folders of one pool, where that was not done yet."""
    waiting = [folder for folder in folders if not _synced(folder) and sound(folder)]
    if not waiting:
        return
    handle = os.open(waiting[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(handle)
    finally:
        os.close(handle)
    for folder in waiting:
        (folder / _UNSYNCED).unlink(missing_ok=True)


def unpack(image: ImageSource, folder: Path, *, stopper: Stopper, ahead: bool) -> None:
    """Lay out an image from its archives; ahead of its use it may have half of the space that is left."""
    limits = DEFAULT_LIMITS
    if ahead:
        disk = os.statvfs(folder)
        limits = replace(limits, size=disk.f_bavail * disk.f_frsize // 2)
    unpack_image(image.metadata, image.rootfs, folder, limits=limits, stopper=stopper)
    note_unsynced(folder)
