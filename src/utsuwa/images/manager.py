"""All images of the daemon: importing, finding, changing and deleting them. Aliases: `images.aliases`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from utsuwa.core import faults
from utsuwa.core.compression import Compression, parse_compression
from utsuwa.core.errors import (
    Busy,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    OtherMember,
    Unavailable,
    UtsuwaError,
)
from utsuwa.core.filters import Filter
from utsuwa.core.image_source import ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.paths import StatePaths
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import EVERYTHING, Scope
from utsuwa.core.tasks import finish
from utsuwa.core.threads import Threads
from utsuwa.db import image_aliases as alias_rows
from utsuwa.db import images as image_rows
from utsuwa.db import projects as project_rows
from utsuwa.db.codes import HALF_MADE
from utsuwa.db.database import Database
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.db.projects import effective
from utsuwa.db.transaction import Transaction
from utsuwa.host.archives import check
from utsuwa.host.archives.check import SplitCheck
from utsuwa.host.archives.compress import check_installed
from utsuwa.host.archives.formats import format_of
from utsuwa.host.processes.stopper import Stopper
from utsuwa.images import changes, files, finding, listing, packing
from utsuwa.images.aliases import ImageAliases
from utsuwa.images.forms import ExportedFile
from utsuwa.images.metadata import ImageMetadata, parse_metadata
from utsuwa.images.new import NewAlias, NewImage, check_new, first_row
from utsuwa.images.records import (
    editable,
    image_record,
    image_url,
)
from utsuwa.images.secrets import ImageSecrets
from utsuwa.images.store import ImageStore
from utsuwa.images.upload import Upload
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Operations, forbid_cancellation
from utsuwa.projects import limits
from utsuwa.projects import scope as scopes
from utsuwa.security.server_config import ServerConfig
from utsuwa.wire import images as wire
from utsuwa.wire.edits import Change, IfMatch, edited

_COMPRESSION = "images.compression_algorithm"
"""A config key of the server and of projects."""
_AHEAD = 4
"""Number of uploads that are checked while they are received; others afterwards."""

log = logging.getLogger(__name__)


class ImagePools(Protocol):
    """The part of the storage manager that images need."""

    async def delete(self, fingerprint: str) -> None:
        """Remove a deleted image from every pool on which no instance uses it."""

    def prepare(self, image: ImageSource) -> None:
        """Start prefetching a new image to the pools on which it is likely to be used."""


class ImageManager:
    def __init__(
        self,
        database: Database,
        paths: StatePaths,
        operations: Operations,
        pools: ImagePools,
        server: ServerConfig,
    ) -> None:
        self.aliases = ImageAliases(database, operations.events)
        self.secrets = ImageSecrets(operations)
        self._database = database
        self._store = ImageStore(paths.images)
        self._operations = operations
        self._events = operations.events
        self._pools = pools
        self._server = server
        self._locks = NamedLocks()
        self._archives = Threads(4, "images")
        """The threads in which uploads are read and written to disk."""
        self._ahead: list[SplitCheck] = []
        self._uploads: WeakSet[Upload] = WeakSet()
        self._paused = False

    async def start(self) -> None:
        """Reconcile files and rows after an interruption: remove what is incomplete."""
        everywhere = await self._database.read("all images", image_rows.get_all, None)
        rows = [row for row in everywhere if row.here]
        known = {row.fingerprint: row.split for row in rows if row.state not in HALF_MADE}
        try:
            missing = await asyncio.to_thread(self._store.sweep, known)
        except Unavailable:  # there is a warning of that already
            missing = set()
        stale = [
            row
            for row in rows
            if row.state in HALF_MADE or (row.state == "ready" and row.fingerprint in missing)
        ]
        if not stale:
            return
        for row in stale:
            log.warning("removing an image without its files", extra={"fingerprint": row.fingerprint})
        await self._database.write("sweep images", changes.remove_files, stale)

    async def follow_others(self) -> None:
        """Remove the files of images that other members have deleted."""
        try:
            stored = await asyncio.to_thread(self._store.fingerprints)
        except Unavailable:
            return
        for fingerprint in stored - await self._database.read("images here", image_rows.fingerprints_here):
            async with self._locks.hold(fingerprint):
                await self._remove_unused(fingerprint)

    # ---- finding

    async def resolve(
        self,
        project: str,
        *,
        alias: str | None = None,
        fingerprint: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> ImageRow:
        """Find the image for an instance by the first of the three that is given.

        A fingerprint may be a prefix; of several images with the properties, the newest is used.
        Raises NotFound, InvalidRequest.
        """
        if alias:
            return await self._database.read("image by alias", finding.aliased, project, alias)
        if fingerprint:
            return await self._database.read("image", finding.named, project, fingerprint)
        if not properties:
            raise InvalidRequest("Specify an image by alias, fingerprint or properties")
        holder = await scopes.effective(self._database, project, "images")
        rows = await self._database.read("images", image_rows.get_all, holder)
        return finding.newest_with(rows, properties)

    def source(self, row: ImageRow) -> ImageSource:
        """Return the location of the image's files. Raises Unavailable (the volume of the images)."""
        self._store.check_available()
        rootfs = self._store.rootfs(row.fingerprint) if row.split else None
        return ImageSource(row.fingerprint, self._store.metadata(row.fingerprint), rootfs, row.trusted)

    def check_here(self, row: ImageRow) -> ImageRow:
        """Return the image, or raise OtherMember if this member does not have its files."""
        if not row.here:
            raise OtherMember(
                f"The files of image {row.fingerprint[:12]} are on {' and '.join(row.locations)} only: "
                "import it on this member, too"
            )
        return row

    async def get(self, scope: Scope, project: str, prefix: str) -> ImageRow:
        """Return an image by fingerprint or unique prefix. Raises NotFound, InvalidRequest.

        Outside the scope, only public images are found.
        """
        if not scope.sees(project):
            return await self._database.read("public image", finding.public, project, prefix)
        return await self._database.read("image", finding.named, project, prefix)

    async def get_by_secret(self, project: str, prefix: str, secret: str, *, last: bool = False) -> ImageRow:
        """Return an image that a secret was made for, whose `last` use this may be. Raises NotFound."""
        try:
            row = await self.get(EVERYTHING, project, prefix)
        except (NotFound, InvalidRequest):
            raise NotFound("Image not found") from None
        if not self.secrets.opens((row.project, row.fingerprint), secret, last=last):
            raise NotFound("Image not found")
        return row

    async def make_secret(self, project: str, prefix: str) -> Operation:
        """Return the operation of a new secret for an image. Raises NotFound, InvalidRequest, Unavailable."""
        row = await self.get(EVERYTHING, project, prefix)
        operation = self.secrets.issue(project, (row.project, row.fingerprint))
        self._publish("secret-created", row)
        return operation

    async def record(self, row: ImageRow) -> wire.Image:
        """Return the image's record for the API."""
        aliases = await self._database.read(
            "aliases of image", alias_rows.of_image, row.project, row.fingerprint
        )
        return image_record(row, aliases)

    async def names(self, scope: Scope, project: str | None) -> list[listing.Name]:
        """Return project and fingerprint of the visible images of a project, or of all (None)."""
        return await self._database.read("names of images", listing.names, scope, project)

    async def records(
        self, scope: Scope, project: str | None, wanted: Filter | None = None
    ) -> list[wire.Image]:
        """As `names`, the records for the API of those that match the filter."""
        return await self._database.read("images", listing.records, scope, project, wanted)

    # ---- importing

    def upload(self) -> Upload:
        """Create an empty upload for receiving an image's files. Raises Busy, Unavailable."""
        if self._paused:
            raise Busy("The images are being moved to another volume: try again")
        self._store.check_available()
        upload = Upload(self._store.directory, begin_check=self._begin_check)
        self._uploads.add(upload)
        return upload

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Receive no images within the block. Raises Busy if some are being received."""
        if any(not upload.ended for upload in self._uploads):
            raise Busy("An image is being received or published: try again when that is complete")
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _begin_check(self, metadata: Path, rootfs: Path, start: bytes) -> SplitCheck | None:
        self._ahead = [check for check in self._ahead if not check.ended]
        form = format_of(start)
        if form is None or len(self._ahead) >= _AHEAD:
            return None
        self._ahead.append(SplitCheck(metadata, rootfs, form))
        return self._ahead[-1]

    def create(self, project: str, upload: Upload, request: NewImage, secret: str = "") -> Operation:
        """Run `add` in the background. The operation owns the upload from now on. Raises Unavailable.

        Callers who know the `secret` may wait for it.
        """

        async def run(operation: Operation) -> None:
            async with upload:
                operation.set_progress("create_image", "Examining the image")
                row = await self.add(project, upload, request)
            operation.update_metadata({"fingerprint": row.fingerprint, "size": str(row.size)})

        return self._operations.start(kinds.IMAGE_DOWNLOAD, project, run, secret=secret)

    async def add(self, project: str, upload: Upload, request: NewImage) -> ImageRow:
        """Create an image from a received upload, whose files are moved, or left to be discarded.

        If other members have the image, its files are added to this member.
        Raises InvalidImage, InvalidRequest, AlreadyExists, NotFound (profile, project), Forbidden (limits).
        """
        if request.fingerprint and request.fingerprint != upload.fingerprint:
            raise InvalidRequest(
                f"The upload has the fingerprint {upload.fingerprint}, but {request.fingerprint[:64]} was "
                "announced"
            )
        check_new(request)
        # The check reads little and computes, and the disk has to write meanwhile.
        synced = self._archives.begin(upload.sync)
        try:
            content = await self._checked(upload)
        finally:
            await synced
        metadata = await self._archives.run(parse_metadata, content)
        forbid_cancellation()
        return await self._store_new(project, upload, request, metadata)

    async def _checked(self, upload: Upload) -> bytes:
        """Return metadata.yaml, after checking that the files are complete and can be unpacked."""
        if upload.check is not None:
            return await finish(upload.check.result(), upload.check.interrupt)
        stopper = Stopper()
        run = self._archives.stopped_by(stopper.stop).run
        return await run(check.check_image, upload.metadata, upload.rootfs, stopper=stopper)

    async def compression(self, project: str, wanted: str) -> Compression:
        """Return the compression of a new image: the one that is wanted, or that of the project or server.

        Raises InvalidRequest if it is unknown or not installed.
        """
        if not wanted:
            config = await self._database.read("project config", project_rows.get_config, project)
            wanted = config.get(_COMPRESSION, "") or self._server.value(_COMPRESSION)
        try:
            compression = parse_compression(wanted)
        except InvalidConfig as error:
            raise InvalidRequest(f"The compression algorithm {error.message}") from error
        await asyncio.to_thread(check_installed, compression)
        return compression

    async def pack(
        self,
        project: str,
        content: packing.Content,
        compression: Compression,
        request: NewImage,
        stopper: Stopper,
    ) -> ImageRow:
        """Create an image from files of this host. Cancelling it stops the packing.

        Raises as `add`, OutOfSpace, HostError.
        """
        check_new(request)
        async with self.upload() as upload:
            pack = self._archives.stopped_by(stopper.stop).run
            await pack(packing.pack, content, compression, upload, stopper)
            faults.point("image packed")
            await self._archives.run(upload.sync)
            metadata = await self._archives.run(parse_metadata, content.metadata)
            return await self._store_new(project, upload, request, metadata)

    async def _store_new(
        self, project: str, upload: Upload, request: NewImage, metadata: ImageMetadata
    ) -> ImageRow:
        forbid_cancellation()
        fingerprint = upload.fingerprint
        holder = await scopes.effective(self._database, project, "images")
        profiles_of = await scopes.effective(self._database, project, "profiles")
        row = replace(first_row(holder, upload, request, metadata), profiles_of=profiles_of)
        async with self._locks.hold(fingerprint), Rollback() as undo:
            known = await self._database.read("image", finding.on_others_only, holder, fingerprint)
            if known is not None:
                await self._place(known, upload, undo)
                row = await self._database.write(
                    "image is here, too", changes.add_files, known, request.aliases
                )
            else:
                row = await self._reserve(row, request.aliases)
                undo.push(self._forget, row)
                await self._place(row, upload, undo)
                await self._database.write("image is ready", image_rows.set_ready, row.id)
            undo.keep()
        self._publish("created", row, {"type": row.type})
        self._pools.prepare(self.source(row))
        return replace(row, state="ready")

    async def keep(self, row: ImageRow, request: NewImage) -> ImageRow:
        """Apply a request for an image that is already there; it is no longer only cached.

        Raises NotFound, AlreadyExists (alias), InvalidName.
        """
        check_new(request)
        return await self._database.write("keep image", changes.kept, row, request)

    async def supersede(self, old: ImageRow, new: ImageRow) -> None:
        """Replace an image by a newer version, which gets its aliases and profiles. Raises NotFound.

        If the daemon is killed after the rows are changed, its next start sweeps the rest.
        """
        async with self._locks.hold(old.fingerprint):
            await self._database.write("supersede image", changes.supersede, old, new)
            await self._remove_unused(old.fingerprint)
        self._publish("refreshed", old)
        self._publish("deleted", old)

    async def _reserve(self, row: ImageRow, aliases: Sequence[NewAlias]) -> ImageRow:
        def insert(tx: Transaction) -> int:
            if effective(tx, row.project, "images") != row.project:
                raise Busy("The features of the project have been changed meanwhile: try again")
            limits.check_image(tx, row.project, row.size)
            row_id = image_rows.insert(tx, row)
            for alias in aliases:
                alias_rows.insert(tx, AliasRow(row.project, alias.name, alias.description, row.fingerprint))
            return row_id

        # Without the row, the next start removes the files: it is on disk with the one that makes it ready.
        return replace(row, id=await self._database.note("reserve image", insert))

    async def _forget(self, row: ImageRow) -> None:
        await self._database.write("discard image", image_rows.delete, row.id)

    async def _place(self, row: ImageRow, upload: Upload, undo: Rollback) -> None:
        """Move the upload's files to their final place, unless another project has the same ones."""
        found = await self._database.read("projects with image", image_rows.projects_with, row.fingerprint)
        if any(project != row.project for project in found):
            await asyncio.to_thread(files.check_same, self.source(row), upload)
            return
        undo.push(asyncio.to_thread, self._store.remove, row.fingerprint)
        await self._archives.run(self._store.put, row.fingerprint, upload.metadata, upload.rootfs)

    # ---- changing

    async def edit(self, project: str, prefix: str, change: Change[wire.ImagePut], if_match: IfMatch) -> None:
        """Change the editable part of an image. Raises InvalidRequest, NotFound, PreconditionFailed."""

        def update(tx: Transaction) -> ImageRow:
            row = finding.named(tx, project, prefix)
            new = changes.with_settings(row, edited(editable(row), change, if_match))
            image_rows.update(tx, new)
            return new

        self._publish("updated", await self._database.write("update image", update))

    async def delete(self, project: str, prefix: str) -> Operation:
        """Remove an image in the background. Raises NotFound, InvalidRequest."""
        row = await self.get(EVERYTHING, project, prefix)

        async def run(_: Operation) -> None:
            await self.remove(row)

        return self._operations.start(kinds.IMAGE_DELETE, project, run, names=[row.fingerprint])

    async def drop_cached(self, project: str) -> None:
        """Remove the images of a project that were only downloaded on demand."""
        rows = await self._database.read("images", image_rows.get_all, project)
        for row in rows:
            if row.cached and row.state == "ready":
                with contextlib.suppress(NotFound):
                    await self.remove(row)

    async def remove(self, row: ImageRow) -> None:
        """Remove an image with its aliases, and its files unless another project has it.

        The row is removed first: if the daemon is killed after that, its next start sweeps the rest.
        """
        async with self._locks.hold(row.fingerprint):
            row = await self._database.read("image", image_rows.get, row.project, row.fingerprint)
            await self._forget(row)
            await self._remove_unused(row.fingerprint)
        self._publish("deleted", row)

    async def _remove_unused(self, fingerprint: str) -> None:
        """Remove an image's files and its copies on pools, unless a project has it."""
        if await self._database.read("projects with image", image_rows.projects_with, fingerprint):
            return
        await asyncio.to_thread(self._store.remove, fingerprint)
        await self._remove_from_pools(fingerprint)

    async def _remove_from_pools(self, fingerprint: str) -> None:
        """Remove copies on pools; errors are only logged, as the image itself is deleted."""
        try:
            await self._pools.delete(fingerprint)
        except UtsuwaError:
            log.exception("a deleted image is still on a pool", extra={"fingerprint": fingerprint})

    # ---- exporting

    async def files(self, row: ImageRow) -> list[ExportedFile]:
        """Return the files for an export: one, or two for a split image.

        They are open, so that a later deletion does not matter. Raises NotFound, OtherMember.
        """
        source = self.source(self.check_here(row))
        try:
            found = await asyncio.to_thread(files.exported, source)
        except FileNotFoundError:
            raise NotFound("Image not found: it has been deleted meanwhile") from None
        self._publish("retrieved", row)
        return found

    def _publish(
        self,
        action: str,
        row: ImageRow,
        context: Mapping[str, object] | None = None,
    ) -> None:
        url = image_url(row)
        self._events.publish_lifecycle(f"image-{action}", url, row.project, context)
