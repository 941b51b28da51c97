"""Images as bodies of requests and replies: a single file, or two as a multipart form."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import BinaryIO

from utsuwa.core.errors import InvalidRequest, NotSupportedYet
from utsuwa.images.multipart import MultipartForm
from utsuwa.images.records import check_filename
from utsuwa.images.upload import Part, Upload

_CHUNK = 256 * 1024
_MAX_PARTS = 16


@dataclass(frozen=True)
class ExportedFile:
    """An open file of an image, to be closed by the caller, and its name."""

    part: str
    file: BinaryIO
    name: str


class Form:
    """The body with an image's open files: a single file unchanged, two as a form."""

    def __init__(self, files: Sequence[ExportedFile]) -> None:
        self._end = b""
        self.content_type = "application/octet-stream"
        self._pieces = [(b"", file.file) for file in files]
        if len(files) > 1:
            boundary = secrets.token_hex(16)
            self.content_type = f"multipart/form-data; boundary={boundary}"
            self._pieces = [(_part_head(boundary, file), file.file) for file in files]
            self._end = f"\r\n--{boundary}--\r\n".encode()
        self.size = len(self._end) + sum(len(head) + _size(file) for head, file in self._pieces)
        """In bytes."""

    async def chunks(self) -> AsyncIterator[bytes]:
        for head, file in self._pieces:
            yield head
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                yield chunk
        yield self._end


def _part_head(boundary: str, file: ExportedFile) -> bytes:
    """Return the lines before a part; names are fingerprints with a suffix, so they need no quoting."""
    return (
        f"\r\n--{boundary}\r\n"
        f'Content-Disposition: form-data; name="{file.part}"; filename="{file.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()


def _size(file: BinaryIO) -> int:
    size = file.seek(0, 2)
    file.seek(0)
    return size


async def receive_form(
    form: MultipartForm, upload: Upload, note: Callable[[int], object] = lambda _: None
) -> str:
    """Receive the parts metadata and rootfs; return the file name, or ''.

    `note` is called with the size of each piece. Raises InvalidRequest, TooLarge, OutOfSpace.
    """
    filename = ""
    for _ in range(_MAX_PARTS):
        headers = await form.next_part()
        if headers is None:
            break
        if headers.get("content-type", "").lower().startswith("multipart/"):
            raise InvalidRequest("The upload contains a nested form")
        name, given = disposition(headers.get("content-disposition", ""))
        # The name of a split image is that of its root file system, as with LXD.
        filename = check_filename(given) or filename
        _check_part(name, upload.parts)
        await upload.receive("metadata" if name == "metadata" else "rootfs", _noted(form.content(), note))
    if upload.parts != ("metadata", "rootfs"):
        raise InvalidRequest("The upload needs the parts metadata and rootfs, in this order")
    return filename


def _check_part(name: str, parts: Sequence[Part]) -> None:
    if name == "rootfs.img":
        raise NotSupportedYet("Images of virtual machines are not supported: containers only")
    if name not in ("metadata", "rootfs"):
        raise InvalidRequest(f"Unknown part {name[:40]!r} in the upload: use metadata and rootfs")
    if name in parts or (name == "rootfs" and not parts):
        raise InvalidRequest("The upload needs the parts metadata and rootfs, in this order")


async def _noted(pieces: AsyncIterator[bytes], note: Callable[[int], object]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        note(len(piece))
        yield piece


def disposition(header: str) -> tuple[str, str]:
    """Return the names of a field and of its file, parsed leniently by the standard library."""
    message = Message()
    message["Content-Disposition"] = header
    name = message.get_param("name", "", "Content-Disposition")
    return (name if isinstance(name, str) else ""), message.get_filename("")
