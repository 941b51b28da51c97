"""The formats of image archives, and the programs that read them."""

from __future__ import annotations

from pathlib import Path

from utsuwa.core.errors import InvalidImage

START = 512
"""Bytes at the beginning of an archive by which its format is known."""

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"hsqs", "squashfs"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (0, b"\x5d\0\0", "lzma"),
    (257, b"ustar", "tar"),
)

DECOMPRESSORS: dict[str, tuple[str, ...]] = {
    "tar": ("cat",),
    "xz": ("xz", "-dc", "-T0", "--memlimit-decompress=1GiB"),
    "gzip": ("gzip", "-dc"),
    "zstd": ("zstd", "-dcq", "--memory=1024MB"),
    "bzip2": ("bzip2", "-dc"),
    "lz4": ("lz4", "-dcq"),
    "lzma": ("xz", "-dc", "--format=lzma", "--memlimit-decompress=1GiB"),
}

_SUFFIXES = {
    "squashfs": ".squashfs",
    "tar": ".tar",
    "xz": ".tar.xz",
    "gzip": ".tar.gz",
    "zstd": ".tar.zst",
    "bzip2": ".tar.bz2",
    "lz4": ".tar.lz4",
    "lzma": ".tar.lzma",
}


def format_of(start: bytes) -> str | None:
    """As `archive_format`, by the beginning of an archive; None if the format is unknown."""
    for offset, magic, name in _MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return name
    return None


def archive_format(path: Path) -> str:
    """Return `squashfs`, `tar` (uncompressed) or the compression of a tar archive, by its magic number.

    Raises InvalidImage if the format is unknown.
    """
    with path.open("rb") as file:
        form = format_of(file.read(START))
    if form is not None:
        return form
    raise InvalidImage(
        "The image has an unknown format: it must be a squashfs or a tar archive, uncompressed "
        "or compressed with xz, gzip, zstd, bzip2, lz4 or lzma"
    )


def archive_suffix(path: Path) -> str:
    """Return the file name extension for this archive, such as `.tar.xz`."""
    return _SUFFIXES[archive_format(path)]
