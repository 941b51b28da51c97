"""The location of an image's files, as the image manager passes it to the storage layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageSource:
    """The files of one image, as kept by the image manager.

    `metadata` is a tar archive of any compression (or a squashfs); in unified images it also contains
    the rootfs. Split images have their root file system in `rootfs` (squashfs or tar). `trusted` says
    whether the kernel may mount its squashfs; if not, a confined process unpacks it.
    """

    fingerprint: str
    metadata: Path
    rootfs: Path | None
    trusted: bool = True


@dataclass(frozen=True)
class ImageOrigin:
    """Where an image was downloaded from by an alias, whose newer versions replace it.

    `protocol` is `simplestreams` or `lxd`. `certificate` is the PEM of the server's certificate, empty for
    one that a public authority has signed.
    """

    server: str
    protocol: str
    certificate: str
    alias: str
