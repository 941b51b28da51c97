"""Mounts in the images of CRIU: those of the host's files are found by path again, whatever became of these.

A file that was mounted may have been replaced on the host since, as editors do it: the mount shows the old
one. CRIU notes that as deleted, and would create it again where the new one is, which fails. What is mounted
in a restored container is determined by its configuration, as at each start.
"""

from __future__ import annotations

from pathlib import Path

from utsuwa.core import protobuf
from utsuwa.host.checkpoint.image_format import messages, with_messages

_DELETED, _EXTERNAL = 16, 18
"""The numbers of the fields of a mount: whether its file is gone, and the name of one that the host gives."""


def heal(images: Path) -> None:
    """Take the mark from all mounts of the host's files. Blocking. Raises OSError, InvalidMessage."""
    for file in images.glob("mountpoints-*.img"):
        before = file.read_bytes()
        after = with_messages(before, map(_without_mark, messages(before)))
        if after != before:
            file.write_bytes(after)


def _without_mark(mount: bytes) -> bytes:
    found = list(protobuf.fields(memoryview(mount)))
    if not any(number == _EXTERNAL for number, _, _ in found):
        return mount
    kept = [one for one in found if one[0] != _DELETED]
    return b"".join(
        protobuf.encoded(number, kind, value if isinstance(value, int) else bytes(value))
        for number, kind, value in kept
    )
