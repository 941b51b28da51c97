"""Packing files of this host as a new image. Blocking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.compression import Compression
from utsuwa.host.archives import pack as archives
from utsuwa.host.processes.stopper import Stopper
from utsuwa.images.upload import Upload


@dataclass(frozen=True)
class Content:
    """What an image is made of."""

    folder: Path
    """With `rootfs/` and perhaps `templates/`, owned by the container's own ids."""
    metadata: bytes
    """metadata.yaml."""
    moment: int
    """The time of that file, in seconds since 1970: that it stays the same makes equal images equal."""


def pack(content: Content, compression: Compression, upload: Upload, stopper: Stopper) -> None:
    """Write an image to an empty upload. Raises OutOfSpace, TooLarge, and ProcessFailed, also if stopped."""
    folder, metadata, moment = content.folder, content.metadata, content.moment
    if compression.name == "squashfs":
        with upload.made("metadata") as target:
            archives.pack_squashfs(folder, metadata, moment, upload.directory, target, stopper)
        return
    with upload.writing("metadata") as take:
        archives.pack_tar(folder, metadata, moment, upload.directory, compression, take, stopper)
