"""Transfer of images over HTTP: uploads (one file, or two as a form) and exports."""

from __future__ import annotations

import asyncio
import secrets
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from email.message import Message
from typing import BinaryIO
from urllib.parse import parse_qsl

from aiohttp import (
    BadContentDispositionHeader,
    BadContentDispositionParam,
    BodyPartReader,
    MultipartReader,
    web,
)

from utsuwa.api import cross_site
from utsuwa.api.http import BINARY, JSON, URL_ENCODED, Request
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidConfig, InvalidRequest, NotSupportedYet, UnsupportedMedia
from utsuwa.images.manager import ExportedFile, NewImage
from utsuwa.images.records import check_filename
from utsuwa.images.upload import Part, Upload

_CHUNK = 256 * 1024
_MAX_PARTS = 16
_MAX_FIELDS = 1000
_FORM = "multipart/form-data"

# aiohttp's reader warns about Content-Disposition, which clients may choose freely.
warnings.filterwarnings("ignore", category=BadContentDispositionHeader)
warnings.filterwarnings("ignore", category=BadContentDispositionParam)


def is_upload(request: Request) -> bool:
    """Return whether the body is an image instead of a JSON request. Raises UnsupportedMedia if neither."""
    kind = request.raw.content_type
    if kind in (BINARY, _FORM):
        return True
    if kind in (JSON, URL_ENCODED):
        return False
    raise UnsupportedMedia(
        f"An image cannot be uploaded as {kind[:60]!r}: send {BINARY}, or {_FORM} for an image of two files"
    )


async def receive(request: Request, upload: Upload) -> str:
    """Receive the complete body into `upload`; return the file name in the form, or ''.

    Raises InvalidRequest, TooLarge, OutOfSpace.
    """
    await upload.expect(request.raw.content_length)
    try:
        if request.raw.content_type == _FORM:
            return await _receive_form(request, upload)
        await upload.receive("metadata", request.raw.content.iter_any())
    except ConnectionError as error:
        raise InvalidRequest("The upload was cut off") from error
    if not upload.size:
        raise InvalidRequest("The upload is empty")
    return ""


async def _receive_form(request: Request, upload: Upload) -> str:
    filename = ""
    try:
        reader = await request.raw.multipart()
        for _ in range(_MAX_PARTS):
            part = await reader.next()
            if part is None:
                break
            if isinstance(part, MultipartReader):
                raise InvalidRequest("The upload has a form inside a form")
            name, given = _disposition(part)
            if name == "metadata":
                filename = check_filename(given)
            await _receive_part(upload, name, part)
    except (ValueError, AssertionError, LookupError) as error:
        # Raised by aiohttp's reader for a truncated form or malformed.
        raise InvalidRequest("The upload is not a whole multipart form") from error
    if upload.parts != ("metadata", "rootfs"):
        raise InvalidRequest("The upload needs the parts metadata and rootfs, in this order")
    return filename


async def _receive_part(upload: Upload, name: str, part: BodyPartReader) -> None:
    wanted: Part = "metadata" if name == "metadata" else "rootfs"
    if name == "rootfs.img":
        raise NotSupportedYet("Images of virtual machines are not supported: containers only")
    if name not in ("metadata", "rootfs"):
        raise InvalidRequest(f"Unknown part {name[:40]!r} in the upload: use metadata and rootfs")
    if wanted in upload.parts or (wanted == "rootfs" and not upload.parts):
        raise InvalidRequest("The upload needs the parts metadata and rootfs, in this order")
    await upload.receive(wanted, _chunks(part))


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(_CHUNK):
        yield chunk


def _disposition(part: BodyPartReader) -> tuple[str, str]:
    """The names of a part's field and file; the standard library forgives what clients write there."""
    message = Message()
    message["Content-Disposition"] = part.headers.get("Content-Disposition", "")
    name = message.get_param("name", "", "Content-Disposition")
    return (name if isinstance(name, str) else ""), message.get_filename("")


def new_image(request: Request) -> NewImage:
    """Return the settings in the headers of an upload. Raises InvalidRequest."""
    profiles = _values(_header(request, "profiles"), "profile")
    return NewImage(
        filename=check_filename(_header(request, "filename")),
        fingerprint=_header(request, "fingerprint"),
        public=_flag(request, "public"),
        properties=dict(_fields(_header(request, "properties"))),
        profiles=profiles or ("default",),
        aliases=_values(_header(request, "aliases"), "alias"),
        trusted=request.caller.root,
    )


def _header(request: Request, name: str) -> str:
    """Return the header `X-LXD-<name>`, or that of Incus' client."""
    headers = request.raw.headers
    return headers.get(f"X-LXD-{name}") or headers.get(f"X-Incus-{name}") or ""


def _flag(request: Request, name: str) -> bool:
    try:
        return parse_bool(_header(request, name))
    except InvalidConfig as error:
        raise InvalidRequest(f"Invalid header X-LXD-{name}: it {error.message}") from error


def _fields(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise InvalidRequest("A header of the upload is not URL-encoded, or has too many fields") from error


def _values(text: str, key: str) -> list[str]:
    return [value for name, value in _fields(text) if name == key]


async def send(request: Request, files: Sequence[ExportedFile]) -> web.StreamResponse:
    """Stream an image's files and close them: a single file unchanged, two as a form."""
    try:
        if len(files) == 1:
            headers = {"Content-Disposition": f"inline;filename={files[0].name}"}
            return await _send(request, BINARY, headers, [(b"", files[0].file)], b"")
        boundary = secrets.token_hex(16)
        pieces = [(_part_head(boundary, file), file.file) for file in files]
        end = f"\r\n--{boundary}--\r\n".encode()
        return await _send(request, f"{_FORM}; boundary={boundary}", {}, pieces, end)
    finally:
        for file in files:
            file.file.close()


def _part_head(boundary: str, file: ExportedFile) -> bytes:
    """Return the lines before a part; names are fingerprints with a suffix, so they need no quoting."""
    return (
        f"\r\n--{boundary}\r\n"
        f'Content-Disposition: form-data; name="{file.part}"; filename="{file.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()


async def _send(
    request: Request,
    content_type: str,
    headers: dict[str, str],
    pieces: Sequence[tuple[bytes, BinaryIO]],
    end: bytes,
) -> web.StreamResponse:
    sharing = cross_site.reply_headers(request.raw)
    response = web.StreamResponse(headers={**sharing, **headers, "Content-Type": content_type})
    response.content_length = len(end) + sum(len(head) + _size(file) for head, file in pieces)
    await response.prepare(request.raw)
    for head, file in pieces:
        await response.write(head)
        await _copy(file.read, response)
    await response.write(end)
    await response.write_eof()
    return response


async def _copy(read: Callable[[int], bytes], response: web.StreamResponse) -> None:
    while chunk := await asyncio.to_thread(read, _CHUNK):
        await response.write(chunk)


def _size(file: BinaryIO) -> int:
    size = file.seek(0, 2)
    file.seek(0)
    return size
