"""Receiving the files of an image, each of which must be what its server stated before."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from aiohttp import ClientResponse
from yarl import URL

from utsuwa.core.errors import InvalidImage
from utsuwa.images.remote.records import Progress
from utsuwa.images.remote.web import LongBody, Web, pieces, shown
from utsuwa.images.upload import Part, Take, Upload, ignore


async def receive(
    web: Web,
    url: URL,
    upload: Upload,
    part: Part,
    progress: Progress,
    *,
    size: int = 0,
    sha256: str = "",
    label: str = "",
) -> None:
    """Receive a file; `size` and `sha256` are as stated, or 0 and empty. `label` names it in the progress.

    Raises as `Web.opened` and `Upload.receive`, and InvalidImage for a file that is another one than stated.
    """
    async with web.opened(url) as response:
        length = response.content_length
        if size and length is not None and length != size:
            raise InvalidImage(f"{shown(url)} has {length} bytes instead of {size}")
        await upload.expect(size or length)
        progress.begin(label or part, size or length or 0)
        found = hashlib.sha256()
        await store(response, upload, part, progress, size, found.update if sha256 else ignore)
    if sha256 and found.hexdigest() != sha256:
        raise InvalidImage(
            f"{shown(url)} has the hash {found.hexdigest()}, but the server states {sha256}: try again later"
        )


async def store(
    response: ClientResponse,
    upload: Upload,
    part: Part,
    progress: Progress,
    size: int = 0,
    also: Take = ignore,
) -> None:
    """Store the body of a reply, which must have `size` bytes if that is not 0.

    Raises as `Upload.receive`, InvalidImage, Unavailable.
    """
    long = LongBody.of(response, progress.add)
    if long is None:
        await upload.receive(part, _counted(response, progress, size), also)
    else:  # its length has been compared
        await upload.receive(part, long.first(), also, long.rest)


async def _counted(response: ClientResponse, progress: Progress, size: int) -> AsyncIterator[bytes]:
    received = 0
    async for chunk in pieces(response):
        received += len(chunk)
        if size and received > size:
            raise InvalidImage(f"{shown(response.url)} is larger than {size} bytes")
        progress.add(len(chunk))
        yield chunk
    if size and received < size:
        raise InvalidImage(f"{shown(response.url)} ended after {received} of {size} bytes")
