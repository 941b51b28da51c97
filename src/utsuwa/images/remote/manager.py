"""Fetching images from other servers: for instances that need them, on request, and newer versions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import UnsetType

from utsuwa.core import clock
from utsuwa.core.architectures import runnable
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidImage, InvalidRequest, NotFound
from utsuwa.core.image_source import ImageOrigin, ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.paths import StatePaths
from utsuwa.core.proxies import Proxies
from utsuwa.core.scope import EVERYTHING
from utsuwa.core.threads import Threads
from utsuwa.db import images as image_rows
from utsuwa.db import projects as project_rows
from utsuwa.db.database import Database
from utsuwa.db.images import ImageRow
from utsuwa.db.transaction import Transaction
from utsuwa.images.manager import ImageManager
from utsuwa.images.new import NewAlias, NewImage, check_new
from utsuwa.images.pushed import PushedImages
from utsuwa.images.records import check_filename, expiry
from utsuwa.images.remote import direct
from utsuwa.images.remote.deltas import Deltas
from utsuwa.images.remote.direct import DirectFile
from utsuwa.images.remote.keyrings import Keyrings
from utsuwa.images.remote.lxd import LxdServer
from utsuwa.images.remote.progress import ShownProgress
from utsuwa.images.remote.push import check_target, push
from utsuwa.images.remote.records import (
    DIRECT,
    LXD,
    Found,
    RemoteSource,
    check_url,
    is_full_fingerprint,
    source_of,
)
from utsuwa.images.remote.simplestreams import SimpleStreams, StreamCache
from utsuwa.images.remote.web import Web
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Operations, cancellable, current
from utsuwa.projects import limits, restrictions
from utsuwa.projects import scope as scopes
from utsuwa.security.keypair import ServerCertificate
from utsuwa.security.remote_tls import client_context
from utsuwa.security.server_config import ServerConfig
from utsuwa.wire import images as wire

log = logging.getLogger(__name__)


class RemotePools(Protocol):
    """The part of the storage manager that newer versions of images need."""

    async def store_as(self, fingerprint: str, image: ImageSource) -> None:
        """Store an image on every pool that has another one, which it will replace."""


class RemoteImages:
    """Fetches images, each of which is downloaded once, however many requests ask for it."""

    def __init__(
        self,
        images: ImageManager,
        database: Database,
        paths: StatePaths,
        operations: Operations,
        server: ServerConfig,
        identity: ServerCertificate,
        pools: RemotePools,
    ) -> None:
        self._images = images
        self.pushed = PushedImages(operations)
        self._database = database
        self._operations = operations
        self._server = server
        self._identity = identity
        self._pools = pools
        self._cache = StreamCache(paths.cache)
        self._keyrings = Keyrings(paths.keyrings)
        self._locks = NamedLocks()
        self._patching = Threads(1, "deltas")
        """The thread in which deltas are applied."""

    async def sweep(self, *, at_start: bool = False) -> None:
        """Remove old documents of image servers."""
        await asyncio.to_thread(self._cache.sweep, at_start=at_start)

    # ---- settings, which projects may have of their own

    async def setting(self, project: str, key: str) -> str:
        """Return the value of a key `images.*` for a project."""
        config = await self._database.read("project config", project_rows.get_config, project)
        return config.get(key, "") or self._server.value(key)

    async def _architectures(self, project: str) -> list[str]:
        preferred = await self.setting(project, "images.default_architecture")
        return runnable(platform.machine(), preferred)

    async def check_allowed(self, project: str, server: str) -> None:
        """Raise Forbidden if a project may not fetch images from the server of a URL, or InvalidRequest.

        Where an allowed server leads to others, by redirects and the like, these are not checked.
        """
        url = check_url(server)
        rules = await self._database.read("restrictions", restrictions.get, project)
        rules.check_image_server(url.host or "", url.port)

    # ---- fetching

    async def for_instance(self, project: str, source: RemoteSource, *, trusted: bool) -> ImageRow:
        """Return the image for an instance: by an alias, a cached one that is kept up to date is preferred.

        Runs in an operation, which can be cancelled meanwhile. Raises NotFound, InvalidRequest, InvalidImage,
        Unavailable, TooLarge, OutOfSpace, Forbidden (limits, restrictions).
        """
        await self.check_allowed(project, source.server)
        updated = parse_bool(await self.setting(project, "images.auto_update_cached"))
        new = NewImage(cached=True, auto_update=updated, trusted=trusted)
        with cancellable():
            interval = int(await self.setting(project, "images.auto_update_interval"))
            if interval > 0 and not source.secret and not source.is_fingerprint:
                holder = await scopes.effective(self._database, project, "images")
                known = await self._database.read(
                    "cached images", image_rows.cached_here, holder, source.origin
                )
                for architecture in await self._architectures(project):
                    for row in known:
                        if row.architecture == architecture:
                            return await self._images.get(EVERYTHING, project, row.fingerprint)
            row, _ = await self._fetch(project, source, new)
        return row

    async def start_import(self, project: str, request: wire.ImagesPost, *, trusted: bool) -> Operation:
        """Fetch an image in the background, by the source of the request.

        Raises InvalidRequest, Forbidden (server).
        """
        new = _new_image(request, trusted=trusted)
        given = request.source
        if given.image_type not in ("", "container"):
            raise InvalidRequest("Only images of the type container are supported")
        if given.mode not in ("", "pull"):
            raise InvalidRequest(f"Unknown mode {given.mode[:20]!r} of an image source: use pull or push")
        source = None if given.type == "url" else source_of(given, given.fingerprint, given.alias)
        await self.check_allowed(project, given.url if source is None else source.server)

        async def run(operation: Operation) -> None:
            known = source or await self._locate(given.url)
            row, fetched = await self._fetch(project, known, new)
            if not fetched:
                row = await self._images.keep(row, _following(new, known, row.fingerprint))
            operation.update_metadata({"fingerprint": row.fingerprint, "size": str(row.size)})

        return self._operations.start(kinds.IMAGE_DOWNLOAD, project, run)

    async def push(self, project: str, row: ImageRow, request: wire.ImageExportPost) -> Operation:
        """Push an image to another server in the background.

        Raises InvalidRequest (target), OtherMember, NotFound.
        """
        check_target(request.target)
        self._images.check_here(row)
        proxies = Proxies.of(self._server.value)

        async def run(operation: Operation) -> None:
            files = await self._images.files(row)
            await push(row.fingerprint, row.filename, files, request, proxies, operation)

        return self._operations.start(kinds.IMAGE_PUSH, project, run, names=[row.fingerprint])

    async def expect_push(self, project: str, request: wire.ImagesPost) -> Operation:
        """Let another server upload an image once. Raises InvalidRequest, InvalidName."""
        fingerprint = request.source.fingerprint
        if not is_full_fingerprint(fingerprint):
            raise InvalidRequest("An image that is pushed is specified by its full fingerprint")
        new = _new_image(request, trusted=False)
        shown = {
            "aliases": [msgspec.to_builtins(alias) for alias in request.aliases],
            "expires_at": clock.to_wire(new.expires_at),
            "properties": dict(new.properties),
            "public": new.public,
        }
        return self.pushed.grant(project, fingerprint, new, shown)

    async def _locate(self, url: str) -> RemoteSource:
        context = await asyncio.to_thread(client_context, "", None)
        async with Web(Proxies.of(self._server.value), context) as web:
            return await direct.locate(web, url)

    async def _fetch(self, project: str, source: RemoteSource, new: NewImage) -> tuple[ImageRow, bool]:
        """Return the image, and whether it was downloaded."""
        holder = await scopes.effective(self._database, project, "images")
        if source.is_fingerprint and (known := await self._here(holder, project, source.wanted)):
            return known, False
        async with self._reached(project, source) as server:
            found = await server.find()
            async with self._locks.hold(holder, found.fingerprint):
                known = await self._here(holder, project, found.fingerprint)
                if known is not None:
                    return known, False
                return await self._download(project, source, found, new), True

    async def _root_of(self, project: str, fingerprint: str) -> Path | None:
        """Return the root file system of a split image that the project has."""
        holder = await scopes.effective(self._database, project, "images")
        row = await self._here(holder, project, fingerprint)
        return self._images.source(row).rootfs if row is not None else None

    async def _here(self, holder: str, project: str, fingerprint: str) -> ImageRow | None:
        """Return an image with files on this member."""

        def find(tx: Transaction) -> ImageRow | None:
            with contextlib.suppress(NotFound):
                row = image_rows.get(tx, holder, fingerprint, viewer=project)
                if row.state == "ready" and row.here:
                    return row
            return None

        return await self._database.read("image", find)

    async def _download(self, project: str, source: RemoteSource, found: Found, new: NewImage) -> ImageRow:
        holder = await scopes.effective(self._database, project, "images")
        await self._database.read("limits of images", limits.check_image, holder, found.size)
        log.info(
            "downloading an image", extra={"server": source.server, "fingerprint": found.fingerprint[:12]}
        )
        async with self._images.upload() as upload:
            filename = await found.download(upload, ShownProgress(current.get()))
            if upload.fingerprint != found.fingerprint:
                raise InvalidImage(
                    f"The image server sent files with the fingerprint {upload.fingerprint} "
                    f"instead of {found.fingerprint}: try again later"
                )
            request = replace(
                new,
                filename=new.filename or check_filename(filename),
                properties={**found.properties, **new.properties},
                expires_at=new.expires_at or found.expires_at,
            )
            if request.source is None:
                request = _following(request, source, found.fingerprint)
            return await self._images.add(project, upload, request)

    @contextlib.asynccontextmanager
    async def _reached(
        self, project: str, source: RemoteSource, *, fresh: bool = False
    ) -> AsyncIterator[SimpleStreams | LxdServer | DirectFile]:
        identity = self._identity if source.protocol == LXD else None
        context = await asyncio.to_thread(client_context, source.certificate, identity)
        web = Web(
            Proxies.of(self._server.value),
            context,
            plain_allowed=source.is_fingerprint,
            redirects=source.protocol != LXD,
        )
        async with web:
            if source.protocol == LXD:
                yield LxdServer(web, source)
            elif source.protocol == DIRECT:
                yield DirectFile(web, source)
            else:
                architectures = await self._architectures(project)
                keyring = await asyncio.to_thread(self._keyrings.find, source.server)
                deltas = Deltas(web, partial(self._root_of, project), self._patching)
                yield SimpleStreams(web, source, self._cache, architectures, keyring, deltas, fresh=fresh)

    # ---- newer versions

    async def start_refresh(self, project: str, prefix: str) -> Operation:
        """Replace an image by its newest version, in the background.

        Raises NotFound, InvalidRequest, Forbidden (server).
        """
        row = await self._images.get(EVERYTHING, project, prefix)
        await self.check_allowed(row.project, _source_of(row).server)

        async def run(operation: Operation) -> None:
            refreshed = await self.refresh(row, fresh=True)
            operation.update_metadata({"refreshed": refreshed})

        return self._operations.start(kinds.IMAGE_REFRESH, project, run, names=[row.fingerprint])

    async def refresh(self, row: ImageRow, *, fresh: bool = False) -> bool:
        """Replace an image by its newest version, if there is another one; return whether there was.

        The aliases and profiles of the old one are kept, and instances keep the image that they have.
        """
        origin = _source_of(row)
        await self.check_allowed(row.project, origin.server)
        source = RemoteSource(origin.server, origin.protocol, origin.alias, origin.certificate)
        new = NewImage(
            public=row.public,
            profiles=row.profiles,
            trusted=row.trusted,
            source=origin,
            auto_update=row.auto_update,
            cached=row.cached,
        )
        async with self._reached(row.project, source, fresh=fresh) as server:
            found = await server.find()
            if found.fingerprint == row.fingerprint:
                return False
            async with self._locks.hold(row.project, found.fingerprint):
                newer = await self._here(row.project, row.project, found.fingerprint)
                if newer is None:
                    newer = await self._download(row.project, source, found, new)
        await self._pools.store_as(row.fingerprint, self._images.source(newer))
        await self._images.supersede(row, newer)
        return True


def _source_of(row: ImageRow) -> ImageOrigin:
    if row.source is None:
        raise InvalidRequest(
            f"Image {row.fingerprint[:12]} was not downloaded by an alias, so that it has no newer versions"
        )
    return row.source


def _new_image(request: wire.ImagesPost, *, trusted: bool) -> NewImage:
    """Return the settings of a request. Raises InvalidRequest, InvalidName."""
    new = NewImage(
        filename=check_filename(request.filename),
        public=request.public,
        properties={} if isinstance(request.properties, UnsetType) else request.properties,
        profiles=request.profiles or ("default",),
        aliases=[NewAlias(alias.name, alias.description) for alias in request.aliases],
        expires_at=expiry(request.expires_at),
        auto_update=request.auto_update,
        trusted=trusted,
    )
    check_new(new)
    return new


def _following(new: NewImage, source: RemoteSource, fingerprint: str) -> NewImage:
    """Have an image follow its source, unless it was requested by its fingerprint, which never changes."""
    if source.follows(fingerprint):
        return replace(new, source=source.origin)
    return replace(new, source=None, auto_update=False)
