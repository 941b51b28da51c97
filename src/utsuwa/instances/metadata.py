"""The metadata and the templates of an instance, which it got from its image and which clients may change."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import msgspec

from utsuwa.core.errors import HostError, InvalidRequest, NotFound, OutOfSpace, TooLarge
from utsuwa.core.refs import InstanceRef
from utsuwa.host.files import atomic
from utsuwa.images.metadata import MAX_SIZE, format_metadata, is_template_name, parse_metadata
from utsuwa.instances.context import Context, load
from utsuwa.instances.templates.files import MAX_TEMPLATE
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.instance_metadata import InstanceMetadata, InstanceMetadataTemplate

MAX_TEMPLATES = 1000
"""As many as an image may contain."""
MAX_READ = 1 << 20
"""Maximum size of a template that came with an image, in bytes; one that is rendered is smaller."""

_FILE, _FOLDER = "metadata.yaml", "templates"


class MetadataManager:
    """Metadata and templates, by instance. What is changed takes effect at the instance's next start.

    All methods raise NotFound, OtherMember, Unavailable (pool), OutOfSpace and HostError.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def get(self, ref: InstanceRef) -> InstanceMetadata:
        """Return the metadata, empty if there is none. Raises InvalidImage if it cannot be parsed."""
        found = await asyncio.to_thread(read_metadata, await self._folder(ref))
        self._publish("retrieved", ref)
        return found

    async def edit(self, ref: InstanceRef, change: Change[InstanceMetadata], if_match: IfMatch) -> None:
        """Change the metadata. Raises PreconditionFailed, and InvalidImage for invalid values."""
        async with self._ctx.locks.hold("instance", ref):
            folder = await self._folder(ref)
            new = edited(await asyncio.to_thread(read_metadata, folder), change, if_match)
            await asyncio.to_thread(_write, folder, new)
        self._publish("updated", ref)

    async def template_names(self, ref: InstanceRef) -> list[str]:
        """Return the sorted names of the templates."""
        return await asyncio.to_thread(_names, await self._folder(ref))

    async def template(self, ref: InstanceRef, name: str) -> bytes:
        """Return the content of a template."""
        data = await asyncio.to_thread(_read_template, await self._folder(ref), name)
        self._publish("template-retrieved", ref, name)
        return data

    async def write_template(self, ref: InstanceRef, name: str, data: bytes) -> None:
        """Create or replace a template. Raises InvalidRequest (name, UTF-8, their number), TooLarge."""
        async with self._ctx.locks.hold("instance", ref):
            await asyncio.to_thread(_write_template, await self._folder(ref), name, data)
        self._publish("template-created", ref, name)

    async def delete_template(self, ref: InstanceRef, name: str) -> None:
        async with self._ctx.locks.hold("instance", ref):
            await asyncio.to_thread(_delete_template, await self._folder(ref), name)
        self._publish("template-deleted", ref, name)

    async def _folder(self, ref: InstanceRef) -> Path:
        """Return the directory of the instance's volume."""
        instance = await load(self._ctx, ref)
        await self._ctx.storage.pools.ensure_available(instance.pool)
        return self._ctx.storage.volumes.folder(instance.pool, ref.volume)

    def _publish(self, action: str, ref: InstanceRef, template: str | None = None) -> None:
        url = ref.url("metadata") if template is None else ref.url("metadata", "templates")
        context: dict[str, object] | None = None if template is None else {"path": template}
        self._ctx.operations.events.publish_lifecycle(
            f"instance-metadata-{action}", url, ref.project, context
        )


def read_metadata(folder: Path) -> InstanceMetadata:
    """Return the metadata in the directory of a volume, empty if there is none. Blocking.

    Raises InvalidImage, TooLarge, HostError.
    """
    with _translated():
        data = atomic.read_below(folder, _FILE, MAX_SIZE)
    if data is None:
        return InstanceMetadata()
    found = parse_metadata(data, complete=False)
    return InstanceMetadata(
        architecture=found.architecture,
        creation_date=found.creation_date,
        expiry_date=found.expiry_date,
        properties=dict(found.properties),
        templates={
            path: InstanceMetadataTemplate(
                when=list(template.when),
                create_only=template.create_only,
                template=template.template,
                properties=dict(template.properties),
            )
            for path, template in found.templates.items()
        },
    )


def _write(folder: Path, metadata: InstanceMetadata) -> None:
    data = format_metadata(msgspec.to_builtins(metadata))
    with _translated():
        atomic.replace_below(folder, _FILE, data)


def _names(folder: Path) -> list[str]:
    with _translated():
        return [name for name in atomic.names_below(folder, _FOLDER) if _is_valid(name)]


def _read_template(folder: Path, name: str) -> bytes:
    _check_exists(folder, name)
    with _translated():
        data = atomic.read_below(folder, f"{_FOLDER}/{name}", MAX_READ)
    if data is None:
        raise _not_found(name)
    return data


def _write_template(folder: Path, name: str, data: bytes) -> None:
    _check_name(name)
    if len(data) > MAX_TEMPLATE:
        raise TooLarge(f"The template is larger than {MAX_TEMPLATE // 1024} KiB")
    try:
        data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("The template is not UTF-8") from None
    with _translated():
        names = atomic.names_below(folder, _FOLDER)
        if len(names) >= MAX_TEMPLATES and name not in names:
            raise InvalidRequest(f"The instance already has {len(names)} templates: delete some")
        try:
            atomic.replace_below(folder, f"{_FOLDER}/{name}", data)
        except IsADirectoryError:
            raise InvalidRequest(f"The template {name!r} is a directory") from None


def _delete_template(folder: Path, name: str) -> None:
    _check_exists(folder, name)
    with _translated():
        atomic.remove_below(folder, f"{_FOLDER}/{name}")


def _check_exists(folder: Path, name: str) -> None:
    _check_name(name)
    with _translated():
        names = atomic.names_below(folder, _FOLDER)
    if name not in names:
        raise _not_found(name)


def _check_name(name: str) -> None:
    if not name:
        raise InvalidRequest("Missing path argument")
    if not _is_valid(name):
        raise InvalidRequest(f"Invalid template filename {name[:100]!r}")


def _is_valid(name: str) -> bool:
    """Return whether a template may have this name, and JSON and the file system can express it."""
    try:
        return is_template_name(name) and len(name.encode()) <= 255
    except UnicodeEncodeError:
        return False


def _not_found(name: str) -> NotFound:
    return NotFound(f'Template "{name}" not found')


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace("No space left on the storage pool for the instance's metadata") from error
        raise HostError(f"The instance's metadata cannot be accessed: {error.strerror}") from error
