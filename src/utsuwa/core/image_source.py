"""Where the files of an image lie: what the images' side tells the storage's side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageSource:
    """The files of one image, as the images manager keeps them.

    `metadata` is a tar archive of any compression (or a squashfs); for unified images it holds the
    rootfs too. Split images have their root file system in `rootfs` (squashfs or tar). `trusted` says
    whether the kernel may mount its squashfs; else it is unpacked by a confined process.
    """

    fingerprint: str
    metadata: Path
    rootfs: Path | None
    trusted: bool = True
