"""Publishing: a new image from the files of an instance or of a snapshot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import msgspec
from msgspec import UNSET

from utsuwa.core import clock
from utsuwa.core.compression import Compression
from utsuwa.core.errors import AlreadyExists, InvalidRequest
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.scope import Scope
from utsuwa.core.volumes import Volume
from utsuwa.db.images import ImageRow
from utsuwa.host.processes.stopper import Stopper
from utsuwa.images.metadata import format_metadata
from utsuwa.images.new import NewAlias, NewImage, check_new
from utsuwa.images.packing import Content
from utsuwa.images.records import check_filename, expiry
from utsuwa.instances.context import Context, load
from utsuwa.instances.metadata import read_metadata
from utsuwa.instances.model import Loaded, not_found
from utsuwa.instances.snapshots import loading
from utsuwa.storage.progress import shown
from utsuwa.wire.images import ImagesPost
from utsuwa.wire.instance_metadata import InstanceMetadata

_PACK = ("create_image_from_container_pack", "Image pack")
"""The stage of the packing, in LXD's words, and what clients show of it."""

INSTANCES = ("instance", "container")
SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Source:
    """What is published."""

    ref: InstanceRef
    snapshot: SnapshotRef | None

    @property
    def volume(self) -> Volume:
        return self.ref.volume if self.snapshot is None else self.snapshot.volume


class Publisher:
    """Publishes one instance at a time, as each occupies all processors."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._one_at_a_time = asyncio.Semaphore(1)

    async def check(
        self, scope: Scope, project: str, request: ImagesPost
    ) -> tuple[Source, Compression, NewImage]:
        """Return what is requested.

        Raises what `publish` would raise now: NotFound, OtherMember, AlreadyExists (alias), InvalidName, and
        InvalidRequest, also for an instance that is running.
        """
        source = _source(project, request)
        new = _new_image(request)
        await _load(self._ctx, scope, source)
        check_new(replace(new, properties=_given(request) or {}))
        known = {alias.name for alias in await self._ctx.images.aliases.all(scope, project)}
        for alias in new.aliases:
            if alias.name in known:
                raise AlreadyExists(f"Image alias {alias.name!r} already exists")
        return source, await self._ctx.images.compression(project, request.compression_algorithm), new

    async def publish(self, scope: Scope, project: str, request: ImagesPost) -> ImageRow:
        """Raises as `check`, InvalidImage (metadata), AlreadyExists, Forbidden, OutOfSpace, HostError."""
        source, compression, new = await self.check(scope, project, request)
        async with self._one_at_a_time, self._opened(scope, source, request) as content:
            stopper = Stopper()
            async with shown(stopper.progress, _PACK):
                return await self._ctx.images.pack(project, content, compression, new, stopper)

    @contextlib.asynccontextmanager
    async def _opened(self, scope: Scope, source: Source, request: ImagesPost) -> AsyncIterator[Content]:
        """Have the files of the source mounted, and nothing change them, for the block."""
        ctx = self._ctx
        async with ctx.locks.hold("instance", source.ref):
            instance = await _load(ctx, scope, source)
            async with ctx.storage.volumes.opened(instance.pool, source.volume) as folder:
                metadata = _metadata(await asyncio.to_thread(read_metadata, folder), instance, request)
                data = await asyncio.to_thread(format_metadata, msgspec.to_builtins(metadata))
                yield Content(folder, data, metadata.creation_date)


def _source(project: str, request: ImagesPost) -> Source:
    kind, name = request.source.type, request.source.name
    instance, slash, snapshot = name.partition("/")
    if not instance:
        raise InvalidRequest("Specify the name of the instance to publish")
    ref = InstanceRef(project, instance)
    if kind == SNAPSHOT:
        if not snapshot:
            raise InvalidRequest(f"Not a snapshot: {name[:80]!r}, but <instance>/<snapshot> is needed")
        return Source(ref, SnapshotRef(ref, snapshot))
    if slash:
        raise InvalidRequest(f"This is a snapshot: {name[:80]!r} has the source type {SNAPSHOT}")
    return Source(ref, None)


def _new_image(request: ImagesPost) -> NewImage:
    """Return the settings of the new image; its properties are those in its metadata."""
    return NewImage(
        filename=check_filename(request.filename),
        public=request.public,
        profiles=request.profiles or ("default",),
        aliases=[NewAlias(alias.name, alias.description) for alias in request.aliases],
        expires_at=expiry(request.expires_at),
        created_at=clock.now(),
        auto_update=request.auto_update,
    )


async def _load(ctx: Context, scope: Scope, source: Source) -> Loaded:
    """Return the instance, which may be published. Raises NotFound, OtherMember, InvalidRequest."""
    if not scope.sees(source.ref.project):
        raise not_found(source.ref.name)
    instance = await load(ctx, source.ref)
    if source.snapshot is not None:
        await loading.find(ctx, source.snapshot)
    elif ctx.runtime.get(source.ref) is not None:
        raise InvalidRequest(
            f"Cannot export a running instance as an image: stop {source.ref.name!r} first, or publish one "
            "of its snapshots"
        )
    return instance


def _given(request: ImagesPost) -> dict[str, str] | None:
    return None if request.properties is UNSET else request.properties


def _metadata(old: InstanceMetadata, instance: Loaded, request: ImagesPost) -> InstanceMetadata:
    """Return the metadata of the image: that of the instance, with what the request replaces."""
    given, expires = _given(request), expiry(request.expires_at)
    return msgspec.structs.replace(
        old,
        architecture=old.architecture or instance.data.architecture,
        creation_date=old.creation_date or int(instance.row.created_at.timestamp()),
        expiry_date=old.expiry_date if expires is None else int(expires.timestamp()),
        properties=old.properties if given is None else given,
    )
