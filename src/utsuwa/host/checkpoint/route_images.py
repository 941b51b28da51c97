"""Routes in the images of CRIU: those over interfaces that are down are made acceptable to the kernel again.

The kernel marks routes over a bridge without members, or over an interface whose other end is down. It
refuses to add a route with these marks, and sets them itself. The images are what `ip route save` writes.
"""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = struct.Struct("=I")
_HEADER = struct.Struct("=IHHII")
_FLAGS = struct.Struct("=I")
_FLAGS_AT = _HEADER.size + 8
"""Where the flags of a route are in a message: after the header and eight numbers of one byte."""
_DEAD, _LINKDOWN = 0x1, 0x10
_ALIGNMENT = 4


def heal(images: Path) -> None:
    """Take the marks from all routes in a directory of images. Blocking. Raises OSError."""
    for file in (*images.glob("route-*.img"), *images.glob("route6-*.img")):
        before = file.read_bytes()
        after = without_marks(before)
        if after != before:
            file.write_bytes(after)


def without_marks(image: bytes) -> bytes:
    """Return an image of routes without marks; what is not one is returned unchanged."""
    changed = bytearray(image)
    at = _MAGIC.size
    while at + _FLAGS_AT + _FLAGS.size <= len(changed):
        length = _HEADER.unpack_from(changed, at)[0]
        if length < _FLAGS_AT + _FLAGS.size or at + length > len(changed):
            break
        (flags,) = _FLAGS.unpack_from(changed, at + _FLAGS_AT)
        _FLAGS.pack_into(changed, at + _FLAGS_AT, flags & ~(_DEAD | _LINKDOWN))
        at += length + -length % _ALIGNMENT
    return bytes(changed)
