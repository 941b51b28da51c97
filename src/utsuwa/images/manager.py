"""All images of the daemon: importing, finding, changing and deleting them. Aliases: `images.aliases`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import BinaryIO, Protocol

from msgspec import UnsetType

from utsuwa.core import clock
from utsuwa.core.errors import (
    AlreadyExists,
    Conflict,
    InvalidName,
    InvalidRequest,
    NotFound,
    OtherMember,
    UtsuwaError,
)
from utsuwa.core.image_source import ImageSource
from utsuwa.core.locks import NamedLocks
from utsuwa.core.paths import StatePaths
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import EVERYTHING, NOTHING, Scope
from utsuwa.core.threads import Threads
from utsuwa.db import image_aliases as alias_rows
from utsuwa.db import images as image_rows
from utsuwa.db.codes import HALF_MADE
from utsuwa.db.database import Database
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.db.projects import effective
from utsuwa.db.transaction import Transaction
from utsuwa.host.archives import unpack
from utsuwa.host.processes.run import Stopper
from utsuwa.images.aliases import ImageAliases
from utsuwa.images.metadata import ImageMetadata, parse_metadata
from utsuwa.images.records import (
    check_alias_name,
    check_properties,
    editable,
    expiry,
    image_record,
    image_records,
    image_url,
)
from utsuwa.images.store import ImageStore
from utsuwa.images.upload import Upload
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Operations
from utsuwa.projects import scope as scopes
from utsuwa.wire import images as wire
from utsuwa.wire.edits import Change, IfMatch, edited

log = logging.getLogger(__name__)


class ImagePools(Protocol):
    """The part of the storage manager that images need."""

    async def delete(self, fingerprint: str) -> None:
        """Remove a deleted image from every pool on which no instance uses it."""

    def prepare(self, image: ImageSource) -> None:
        """Start prefetching a new image to the pools on which it is likely to be used."""


@dataclass(frozen=True)
class NewImage:
    """The parameters of an upload."""

    filename: str = ""
    fingerprint: str = ""
    """The fingerprint expected by the client, or empty."""
    public: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)
    """These override those of the image's metadata."""
    profiles: Sequence[str] = ("default",)
    aliases: Sequence[str] = ()
    trusted: bool = False
    """Whether the kernel may mount its squashfs."""


@dataclass(frozen=True)
class ExportedFile:
    """An open file of an image, to be closed by the caller, and its name."""

    part: str
    file: BinaryIO
    name: str


class ImageManager:
    def __init__(
        self, database: Database, paths: StatePaths, operations: Operations, pools: ImagePools
    ) -> None:
        self.aliases = ImageAliases(database, operations.events)
        self._database = database
        self._store = ImageStore(paths.images)
        self._operations = operations
        self._events = operations.events
        self._pools = pools
        self._locks = NamedLocks()
        self._archives = Threads(4, "images")
        """The threads in which uploads are read and written to disk."""

    async def start(self) -> None:
        """Reconcile files and rows after an interruption: remove what is incomplete."""
        everywhere = await self._database.read("all images", image_rows.get_all, None)
        rows = [row for row in everywhere if row.here]
        known = {row.fingerprint: row.split for row in rows if row.state not in HALF_MADE}
        missing = await asyncio.to_thread(self._store.sweep, known)
        stale = [
            row
            for row in rows
            if row.state in HALF_MADE or (row.state == "ready" and row.fingerprint in missing)
        ]
        if not stale:
            return
        for row in stale:
            log.warning("removing an image without its files", extra={"fingerprint": row.fingerprint})
        await self._database.write("sweep images", _remove_files, stale)

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
            return await self._database.read("image by alias", _aliased, project, alias)
        if fingerprint:
            return await self._database.read("image", _named, project, fingerprint)
        if not properties:
            raise InvalidRequest("Specify an image by alias, fingerprint or properties")
        holder = await scopes.effective(self._database, project, "images")
        rows = await self._database.read("images", image_rows.get_all, holder)
        matching = [row for row in rows if row.state == "ready" and _has(row, properties)]
        if not matching:
            raise NotFound("No image has these properties")
        return max(matching, key=lambda row: (row.created_at or _NEVER, row.uploaded_at))

    def source(self, row: ImageRow) -> ImageSource:
        """Return the location of the image's files."""
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
            return await self._get_public(project, prefix)
        return await self._database.read("image", _named, project, prefix)

    async def _get_public(self, project: str, prefix: str) -> ImageRow:
        found = [row for row in await self.all(NOTHING, project) if row.fingerprint.startswith(prefix)]
        if not prefix or not found:
            raise NotFound("Image not found")
        if len(found) > 1:
            raise InvalidRequest("More than one image matches this fingerprint prefix: use a longer one")
        return found[0]

    async def all(self, scope: Scope, project: str) -> list[ImageRow]:
        return await self._database.read("images", _visible, scope, project)

    async def record(self, row: ImageRow) -> wire.Image:
        """Return the image's record for the API."""
        aliases = await self._database.read("image aliases", alias_rows.get_all, row.project)
        return image_record(row, (alias for alias in aliases if alias.fingerprint == row.fingerprint))

    async def records(self, scope: Scope, project: str) -> list[wire.Image]:
        def fetch(tx: Transaction) -> tuple[list[ImageRow], list[AliasRow]]:
            rows = _visible(tx, scope, project)
            holders = {row.project for row in rows}
            return rows, [alias for holder in holders for alias in alias_rows.get_all(tx, holder)]

        return image_records(*await self._database.read("images with aliases", fetch))

    # ---- importing

    def upload(self) -> Upload:
        """Create an empty upload for receiving an image's files."""
        return Upload(self._store.folder)

    def create(self, project: str, upload: Upload, request: NewImage) -> Operation:
        """Run `add` in the background. The operation owns the upload from now on. Raises Unavailable."""

        async def run(operation: Operation) -> None:
            async with upload:
                operation.set_progress("create_image", "Examining the image")
                row = await self.add(project, upload, request)
            operation.update_metadata({"fingerprint": row.fingerprint, "size": str(row.size)})

        return self._operations.start(kinds.IMAGE_DOWNLOAD, project, run)

    async def add(self, project: str, upload: Upload, request: NewImage) -> ImageRow:
        """Create an image from a received upload, whose files are moved, or left to be discarded.

        If other members have the image, its files are added to this member.
        Raises InvalidImage, InvalidRequest, AlreadyExists, NotFound (profile, project).
        """
        fingerprint = upload.fingerprint
        if request.fingerprint and request.fingerprint != fingerprint:
            raise InvalidRequest(
                f"The upload has the fingerprint {fingerprint}, but {request.fingerprint[:64]} was announced"
            )
        check_properties(request.properties)
        names = [check_alias_name(name) for name in request.aliases]
        stopper = Stopper()
        metadata = await self._archives.stopped_by(stopper.stop).run(_examine, upload, stopper)
        holder = await scopes.effective(self._database, project, "images")
        row = _first_row(holder, upload, request, metadata)
        async with self._locks.hold(fingerprint), Rollback() as undo:
            known = await self._database.read("image", _on_others_only, holder, fingerprint)
            if known is not None:
                await self._place(known, upload, undo)
                row = await self._database.write("image is here, too", _add_files, known, names)
            else:
                row = await self._reserve(row, names)
                undo.push(self._forget, row)
                await self._place(row, upload, undo)
                await self._database.write("image is ready", image_rows.set_ready, row.id)
            undo.keep()
        self._tell("created", row, {"type": row.type})
        self._pools.prepare(self.source(row))
        return replace(row, state="ready")

    async def _reserve(self, row: ImageRow, aliases: Sequence[str]) -> ImageRow:
        def insert(tx: Transaction) -> int:
            row_id = image_rows.insert(tx, row)
            for name in aliases:
                alias_rows.insert(tx, AliasRow(row.project, name, "", row.fingerprint))
            return row_id

        return replace(row, id=await self._database.begin("reserve image", insert))

    async def _forget(self, row: ImageRow) -> None:
        await self._database.write("discard image", image_rows.delete, row.id)

    async def _place(self, row: ImageRow, upload: Upload, undo: Rollback) -> None:
        """Move the upload's files to their final place, unless another project has the same ones."""
        found = await self._database.read("projects with image", image_rows.projects_with, row.fingerprint)
        if any(project != row.project for project in found):
            await asyncio.to_thread(_check_same, self.source(row), upload)
            return
        undo.push(asyncio.to_thread, self._store.remove, row.fingerprint)
        await self._archives.run(self._store.put, row.fingerprint, upload.metadata, upload.rootfs)

    # ---- changing

    async def edit(self, project: str, prefix: str, change: Change[wire.ImagePut], if_match: IfMatch) -> None:
        """Change the editable part of an image. Raises InvalidRequest, NotFound, PreconditionFailed."""

        def update(tx: Transaction) -> ImageRow:
            row = _named(tx, project, prefix)
            new = _with(row, edited(editable(row), change, if_match))
            image_rows.update(tx, new)
            return new

        self._tell("updated", await self._database.write("update image", update))

    async def delete(self, project: str, prefix: str) -> Operation:
        """Remove an image in the background. Raises NotFound, InvalidRequest."""
        row = await self.get(EVERYTHING, project, prefix)

        async def run(_: Operation) -> None:
            await self.remove(row)

        return self._operations.start(kinds.IMAGE_DELETE, project, run, names=[row.fingerprint])

    async def remove(self, row: ImageRow) -> None:
        """Remove an image with its aliases, and its files unless another project has it.

        The row is removed first: if the daemon is killed after that, its next start sweeps the rest.
        """
        async with self._locks.hold(row.fingerprint):
            row = await self._database.read("image", image_rows.get, row.project, row.fingerprint)
            await self._forget(row)
            shared = await self._database.read(
                "projects with image", image_rows.projects_with, row.fingerprint
            )
            if not shared:
                await asyncio.to_thread(self._store.remove, row.fingerprint)
                await self._take_off_pools(row.fingerprint)
        self._tell("deleted", row)

    async def _take_off_pools(self, fingerprint: str) -> None:
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
            found = await asyncio.to_thread(_exported, source)
        except FileNotFoundError:
            raise NotFound("Image not found: it has been deleted meanwhile") from None
        self._tell("retrieved", row)
        return found

    def _tell(
        self,
        action: str,
        row: ImageRow,
        context: Mapping[str, object] | None = None,
    ) -> None:
        url = image_url(row)
        self._events.publish_lifecycle(f"image-{action}", url, row.project, context)


_NEVER = datetime.min.replace(tzinfo=UTC)


def _visible(tx: Transaction, scope: Scope, project: str) -> list[ImageRow]:
    seen = scope.sees(project)
    try:
        rows = image_rows.get_all(tx, effective(tx, project, "images"))
    except NotFound:
        if seen:
            raise
        return []  # whether there is such a project is not told to everybody
    return [row for row in rows if row.state == "ready" and (row.public or seen)]


def _remove_files(tx: Transaction, rows: Sequence[ImageRow]) -> None:
    for row in rows:
        image_rows.remove_files(tx, row.id)


def _on_others_only(tx: Transaction, project: str, fingerprint: str) -> ImageRow | None:
    """Return the image if only other members have its files."""
    try:
        row = image_rows.get(tx, project, fingerprint)
    except NotFound:
        return None
    return row if row.state == "ready" and not row.here else None


def _add_files(tx: Transaction, row: ImageRow, aliases: Sequence[str]) -> ImageRow:
    """Return the updated row. Aliases that already refer to the image are kept."""
    image_rows.add_files(tx, row.id)
    of_project = alias_rows.get_all(tx, row.project)
    known = {alias.name for alias in of_project if alias.fingerprint == row.fingerprint}
    for name in aliases:
        if name not in known:
            alias_rows.insert(tx, AliasRow(row.project, name, "", row.fingerprint))
    return image_rows.get(tx, row.project, row.fingerprint)


def _aliased(tx: Transaction, project: str, alias: str) -> ImageRow:
    holder = effective(tx, project, "images")
    target = alias_rows.get(tx, holder, alias).fingerprint
    return _ready(image_rows.get(tx, holder, target))


def _named(tx: Transaction, project: str, text: str) -> ImageRow:
    """Find by fingerprint or prefix. Clients send anything that is not an alias, which is not invalid."""
    try:
        return _ready(image_rows.find_by_prefix(tx, effective(tx, project, "images"), text))
    except (InvalidName, NotFound):
        raise NotFound(f"Image not found: {text[:70]!r} is neither alias nor fingerprint of one") from None


def _ready(row: ImageRow) -> ImageRow:
    if row.state != "ready":
        raise NotFound("Image not found")
    return row


def _with(row: ImageRow, wanted: wire.ImagePut) -> ImageRow:
    check_properties(wanted.properties)
    return replace(
        row,
        auto_update=wanted.auto_update,
        public=wanted.public,
        properties=wanted.properties,
        expires_at=expiry(wanted.expires_at),
        profiles=row.profiles if isinstance(wanted.profiles, UnsetType) else wanted.profiles,
    )


def _has(row: ImageRow, properties: Mapping[str, str]) -> bool:
    return all(row.properties.get(name) == value for name, value in properties.items())


def _examine(upload: Upload, stopper: Stopper) -> ImageMetadata:
    """Return the upload's metadata, after checking that its files are complete and can be unpacked."""
    return parse_metadata(unpack.check_image(upload.metadata, upload.rootfs, stopper=stopper))


def _first_row(project: str, upload: Upload, request: NewImage, metadata: ImageMetadata) -> ImageRow:
    properties = {**metadata.properties, **request.properties}
    expires = datetime.fromtimestamp(metadata.expiry_date, UTC) if metadata.expiry_date else None
    return ImageRow(
        id=0,
        project=project,
        fingerprint=upload.fingerprint,
        filename=request.filename,
        size=upload.size,
        architecture=metadata.architecture,
        created_at=datetime.fromtimestamp(metadata.creation_date, UTC),
        expires_at=expires,
        uploaded_at=clock.now(),
        public=request.public,
        properties={name: value for name, value in properties.items() if value},
        split=upload.rootfs is not None,
        trusted=request.trusted,
        profiles=list(request.profiles),
    )


def _check_same(source: ImageSource, upload: Upload) -> None:
    """Check the sizes too, as a hash over two files does not determine where the first one ends."""
    ours, theirs = [source.metadata, source.rootfs], [upload.metadata, upload.rootfs]
    for mine, other in zip(ours, theirs, strict=True):
        if (mine is None) != (other is None):
            raise _cut_elsewhere()
        if mine and other and (not mine.is_file() or mine.stat().st_size != other.stat().st_size):
            raise _cut_elsewhere()


def _cut_elsewhere() -> Conflict:
    return AlreadyExists("An image with the same fingerprint, but other files, exists in another project")


def _exported(source: ImageSource) -> list[ExportedFile]:
    parts = [("image", source.metadata, "")]
    if source.rootfs is not None:
        parts = [("metadata", source.metadata, "meta-"), ("rootfs", source.rootfs, "")]
    with contextlib.ExitStack() as opened:
        found = []
        for part, path, start in parts:
            name = f"{start}{source.fingerprint}{unpack.archive_suffix(path)}"
            found.append(ExportedFile(part, opened.enter_context(path.open("rb")), name))
        opened.pop_all()
        return found
