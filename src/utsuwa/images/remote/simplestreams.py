"""The client for simplestreams servers, whose documents are cached for an hour, as in LXD."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from yarl import URL

from utsuwa.core import signatures
from utsuwa.core.errors import InvalidImage, NotFound, Unavailable
from utsuwa.core.simplestreams import INDEX, StreamFile, StreamImage
from utsuwa.images.remote import streams
from utsuwa.images.remote.bodies import receive
from utsuwa.images.remote.deltas import Deltas
from utsuwa.images.remote.keyrings import Keyring
from utsuwa.images.remote.records import Found, Progress, RemoteSource
from utsuwa.images.remote.web import Web, shown
from utsuwa.images.upload import Upload

log = logging.getLogger(__name__)

_FRESH = ".new-"
"""Prefix of documents that are being written."""

MAX_INDEX = 8 * 2**20
MAX_PRODUCTS = 64 * 2**20
CACHE_SECONDS = 3600.0
KEEP_SECONDS = 7 * 86400.0
"""Age at which documents are removed, which until then are used while their server cannot be reached."""


class StreamCache:
    """Documents in a directory, by server and path; all methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, source: RemoteSource, path: str) -> tuple[bytes, float] | None:
        """Return a document and its age in seconds."""
        file = self._file(source, path)
        try:
            return file.read_bytes(), max(0.0, time.time() - file.stat().st_mtime)
        except FileNotFoundError:
            return None

    def write(self, source: RemoteSource, path: str, data: bytes) -> None:
        """Store a document; without space for it there is none."""
        fresh = self._directory / f"{_FRESH}{secrets.token_hex(8)}"
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            fresh.replace(self._file(source, path))
        except OSError as error:
            fresh.unlink(missing_ok=True)
            log.warning("cannot cache a document of an image server: %s", error)

    def sweep(self, *, at_start: bool = False) -> None:
        """Remove what is old, and what a killed daemon was writing."""
        for file in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                old = time.time() - file.stat().st_mtime > KEEP_SECONDS
                if old or (at_start and file.name.startswith(_FRESH)):
                    file.unlink()

    def _file(self, source: RemoteSource, path: str) -> Path:
        key = "\n".join((source.server, path, source.certificate))
        return self._directory / hashlib.sha256(key.encode()).hexdigest()


class SimpleStreams:
    """One request to a server. With `fresh`, cached documents are used only if it cannot be reached."""

    def __init__(
        self,
        web: Web,
        source: RemoteSource,
        cache: StreamCache,
        architectures: Sequence[str],
        keyring: Keyring | None = None,
        deltas: Deltas | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        """With a keyring, only signed documents are accepted."""
        self._web = web
        self._source = source
        self._cache = cache
        self._architectures = architectures
        self._keyring = keyring
        self._deltas = deltas
        self._fresh = fresh
        self._cached = False
        """Whether a document was taken from the cache."""

    async def find(self) -> Found:
        """Find the image. What the cache does not have may be new. Raises NotFound, InvalidImage, ..."""
        try:
            image = await self._choose()
        except NotFound:
            if not self._cached:
                raise
            self._fresh = True
            image = await self._choose()
        return self._found(image)

    def _found(self, image: StreamImage) -> Found:
        files = image.files()
        size = sum(file.size for file in files)

        async def download(upload: Upload, progress: Progress) -> str:
            for file in files:
                if not await self._by_delta(image, file, upload, progress):
                    url, size = self._url(file.path), file.size
                    await receive(self._web, url, upload, file.part, progress, size=size, sha256=file.sha256)
            return image.filename

        return Found(image.fingerprint, size, download, image.properties, _expiry(image))

    async def _by_delta(
        self, image: StreamImage, file: StreamFile, upload: Upload, progress: Progress
    ) -> bool:
        """Receive a file by its difference to one that is here; return whether there was such a delta."""
        if file.part != "rootfs" or self._deltas is None:
            return False
        return await self._deltas.receive(image, file, self._url, upload, progress)

    async def _choose(self) -> StreamImage:
        index = await self._index()
        found: list[StreamImage] = []
        for path in streams.product_paths(index):
            data = await self._document(path, MAX_PRODUCTS)
            found += await asyncio.to_thread(lambda listed: list(streams.images(listed)), data)
        server, wanted = self._source.server, self._source.wanted
        return await asyncio.to_thread(streams.choose, found, server, wanted, self._architectures)

    async def _index(self) -> bytes:
        try:
            return await self._document(INDEX, MAX_INDEX)
        except NotFound as error:
            if self._keyring is None:
                raise
            raise InvalidImage(
                f"The image server does not sign its index: {error.message}. "
                f"Remove {self._keyring.path} to rely on HTTPS, as with other servers"
            ) from error

    async def _document(self, path: str, limit: int) -> bytes:
        if self._keyring is not None:
            path = signatures.signed_path(path)
        known = await asyncio.to_thread(self._cache.read, self._source, path)
        if known is not None and not self._fresh and known[1] < CACHE_SECONDS:
            # The keys may be others now.
            with contextlib.suppress(InvalidImage):
                content = await self._content(path, known[0])
                self._cached = True
                return content
        try:
            data = await self._web.document(self._url(path), limit)
        except Unavailable as error:
            if known is None:
                raise
            log.warning("using an old document of an image server: %s", error)
            return await self._content(path, known[0])
        content = await self._content(path, data)
        await asyncio.to_thread(self._cache.write, self._source, path, data)
        return content

    async def _content(self, path: str, document: bytes) -> bytes:
        """Return the content of a document as received: the signed part, with a keyring."""
        if self._keyring is None:
            return document
        return await self._keyring.content(document, shown(self._url(path)))

    def _url(self, path: str) -> URL:
        return URL(f"{self._source.server.rstrip('/')}/{path}")


def _expiry(image: StreamImage) -> datetime | None:
    try:
        return datetime.strptime(image.support_end, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None
