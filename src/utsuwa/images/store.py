"""The files of images: `images/<fingerprint>` and, for split ones, `images/<fingerprint>.rootfs`.

All functions block and must run in worker threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from utsuwa.core.errors import Unavailable
from utsuwa.host.files.filetree import remove_tree

log = logging.getLogger(__name__)

TEMPORARY = ".upload-"
"""Prefix of incomplete files, and of directories that are needed to make them."""

_IMAGE_FILE = re.compile(r"(?P<fingerprint>[0-9a-f]{64})(?:\.rootfs)?\Z")


class ImageStore:
    """The directory `images` of the state directory, which only root may access."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check_available(self) -> None:
        """Raise Unavailable if the directory is a symlink to a volume that is not mounted."""
        if not self.directory.is_dir():
            raise Unavailable(
                "The images are on a volume that is not available: see storage.images_volume and the warnings"
            )

    def metadata(self, fingerprint: str) -> Path:
        return self.directory / fingerprint

    def rootfs(self, fingerprint: str) -> Path:
        return self.directory / f"{fingerprint}.rootfs"

    def complete(self, fingerprint: str, *, split: bool) -> bool:
        return self.metadata(fingerprint).is_file() and (not split or self.rootfs(fingerprint).is_file())

    def put(self, fingerprint: str, metadata: Path, rootfs: Path | None) -> None:
        """Rename an upload's files, whose content is on disk, to their final names, and sync these."""
        if rootfs is not None:
            rootfs.rename(self.rootfs(fingerprint))
        metadata.rename(self.metadata(fingerprint))
        handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def remove(self, fingerprint: str) -> None:
        """Remove an image's files; does nothing if there are none."""
        self.metadata(fingerprint).unlink(missing_ok=True)
        self.rootfs(fingerprint).unlink(missing_ok=True)

    def fingerprints(self) -> set[str]:
        """Return the fingerprints of all images with files. Raises Unavailable."""
        self.check_available()
        matches = (_IMAGE_FILE.match(path.name) for path in self.directory.iterdir())
        return {match["fingerprint"] for match in matches if match is not None}

    def sweep(self, known: Mapping[str, bool]) -> set[str]:
        """Remove what interrupted uploads and deletions have left behind.

        `known` maps the fingerprints of all images to whether they are split. Returns those without files.
        Raises Unavailable.
        """
        self.check_available()
        for path in self.directory.iterdir():
            match = _IMAGE_FILE.match(path.name)
            stale = match is not None and match["fingerprint"] not in known
            if stale or path.name.startswith(TEMPORARY):
                log.info("removing a left-over image file", extra={"path": str(path)})
                if path.name.startswith(TEMPORARY) and path.is_dir():
                    remove_tree(path)
                    continue
                with contextlib.suppress(IsADirectoryError):
                    path.unlink()
        return {
            fingerprint for fingerprint, split in known.items() if not self.complete(fingerprint, split=split)
        }
