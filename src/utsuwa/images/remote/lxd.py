"""The client for other servers with the API of LXD, Incus and Utsuwa."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TypeVar
from urllib.parse import quote

import msgspec
from aiohttp import ClientResponse
from yarl import URL

from utsuwa.core.errors import InvalidImage, InvalidRequest, NotFound, Unavailable
from utsuwa.images import forms
from utsuwa.images.multipart import MultipartForm
from utsuwa.images.records import check_filename, expiry
from utsuwa.images.remote import bodies
from utsuwa.images.remote.records import Found, Progress, RemoteSource, is_full_fingerprint
from utsuwa.images.remote.web import Web, pieces
from utsuwa.images.upload import Upload
from utsuwa.wire.codec import InvalidBody, check_depth

MAX_REPLY = 4 * 2**20


class _Alias(msgspec.Struct):
    target: str = ""


class _Image(msgspec.Struct):
    fingerprint: str
    size: int = 0
    type: str = ""
    properties: dict[str, str] | None = None
    expires_at: datetime | None = None


T = TypeVar("T")


class LxdServer:
    """One request to a server: an image by alias or fingerprint, a private one with a secret."""

    def __init__(self, web: Web, source: RemoteSource) -> None:
        self._web = web
        self._source = source

    async def find(self) -> Found:
        """Find the image. Raises NotFound, InvalidImage, InvalidRequest, Unavailable."""
        wanted = self._source.wanted
        if not self._source.secret:
            wanted = await self._target(wanted)
        image = await self._get(_Image, "images", wanted)
        _check(image, wanted)

        async def download(upload: Upload, progress: Progress) -> str:
            return await self._download(image, upload, progress)

        return Found(
            image.fingerprint, image.size, download, image.properties or {}, expiry(image.expires_at)
        )

    async def _target(self, wanted: str) -> str:
        """Return the fingerprint of an alias, or else what was asked for."""
        if self._source.is_fingerprint:
            return wanted
        try:
            return (await self._get(_Alias, "images", "aliases", wanted)).target or wanted
        except NotFound:
            return wanted

    async def _get(self, record: type[T], *path: str) -> T:
        data = await self._web.document(self._url(*path), MAX_REPLY)
        return await asyncio.to_thread(_metadata, data, record)

    async def _download(self, image: _Image, upload: Upload, progress: Progress) -> str:
        url = self._url("images", image.fingerprint, "export")
        async with self._web.opened(url) as response:
            await upload.expect(image.size or response.content_length)
            progress.begin("image", image.size or response.content_length or 0)
            if response.content_type == "multipart/form-data":
                return await self._form(response, upload, progress)
            await bodies.store(response, upload, "metadata", progress)
            given = forms.disposition(response.headers.get("Content-Disposition", ""))[1]
            return check_filename(given)

    async def _form(self, response: ClientResponse, upload: Upload, progress: Progress) -> str:
        try:
            form = MultipartForm(response.headers["Content-Type"], pieces(response))
            return await forms.receive_form(form, upload, progress.add)
        except InvalidRequest as error:
            raise InvalidImage(f"The image server sent an invalid image: {error.message}") from error

    def _url(self, *path: str) -> URL:
        """Return a URL below /1.0, with the project and the secret."""
        parts = "/".join(quote(part, safe="") for part in path)
        query = {"project": self._source.project, "secret": self._source.secret}
        url = URL(f"{self._source.server.rstrip('/')}/1.0/{parts}", encoded=True)
        return url.with_query({name: value for name, value in query.items() if value})


def _check(image: _Image, wanted: str) -> None:
    """Raise InvalidRequest or InvalidImage, also for another image than that with the fingerprint `wanted`.

    Whoever names a fingerprint, or the prefix of one, relies on getting these files, even from a server that
    proves nothing.
    """
    if image.type not in ("", "container"):
        raise InvalidRequest(
            f"The image is for the type {image.type[:40]!r}: this server runs containers only"
        )
    if not is_full_fingerprint(image.fingerprint):
        raise InvalidImage(f"The image server states an invalid fingerprint {image.fingerprint[:80]!r}")
    if not image.fingerprint.startswith(wanted.lower()):
        raise InvalidImage(
            f"The image server describes another image, {image.fingerprint[:12]}, than {wanted[:64]!r}"
        )


def _metadata(data: bytes, record: type[T]) -> T:
    """Return the metadata of a reply; blocking. Raises Unavailable."""
    try:
        check_depth(data)
        envelope = msgspec.json.decode(data)
        return msgspec.convert(envelope["metadata"], record, strict=False)
    except (InvalidBody, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise Unavailable(f"The server is not an image server: {str(error)[:200]}") from error
