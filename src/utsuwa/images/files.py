"""The files of stored images."""

from __future__ import annotations

import contextlib

from utsuwa.core.errors import AlreadyExists, Conflict
from utsuwa.core.image_source import ImageSource
from utsuwa.host.archives.formats import archive_suffix
from utsuwa.images.forms import ExportedFile
from utsuwa.images.upload import Upload


def check_same(source: ImageSource, upload: Upload) -> None:
    """Raise AlreadyExists unless an upload with the image's fingerprint has the same files. Blocking.

    A hash over two files does not determine where the first one ends, so their sizes are compared.
    """
    ours, theirs = [source.metadata, source.rootfs], [upload.metadata, upload.rootfs]
    for mine, other in zip(ours, theirs, strict=True):
        if (mine is None) != (other is None):
            raise _cut_elsewhere()
        if mine and other and (not mine.is_file() or mine.stat().st_size != other.stat().st_size):
            raise _cut_elsewhere()


def _cut_elsewhere() -> Conflict:
    return AlreadyExists("An image with the same fingerprint, but other files, exists in another project")


def exported(source: ImageSource) -> list[ExportedFile]:
    """Open the files of an image for an export. Blocking. Raises FileNotFoundError."""
    parts = [("image", source.metadata, "")]
    if source.rootfs is not None:
        parts = [("metadata", source.metadata, "meta-"), ("rootfs", source.rootfs, "")]
    with contextlib.ExitStack() as opened:
        found = []
        for part, path, start in parts:
            name = f"{start}{source.fingerprint}{archive_suffix(path)}"
            found.append(ExportedFile(part, opened.enter_context(path.open("rb")), name))
        opened.pop_all()
        return found
