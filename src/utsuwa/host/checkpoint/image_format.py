"""The form of CRIU's images: a magic number, and messages of protobuf, each after its size."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from utsuwa.core.protobuf import InvalidMessage

_MAGIC = 8
_SIZE = struct.Struct("<I")


def messages(image: bytes) -> Iterator[bytes]:
    """Yield the messages of an image. Raises InvalidMessage."""
    at = _MAGIC
    while at < len(image):
        if at + _SIZE.size > len(image):
            raise InvalidMessage("the image is cut off")
        (size,) = _SIZE.unpack_from(image, at)
        at += _SIZE.size
        yield image[at : at + size]
        at += size


def with_messages(image: bytes, found: Iterable[bytes]) -> bytes:
    """Return an image of the same kind with other messages."""
    return image[:_MAGIC] + b"".join(_SIZE.pack(len(message)) + message for message in found)
