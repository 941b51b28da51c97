"""The records of images and aliases in the API, and validation of their editable parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from msgspec import UNSET, UnsetType

from utsuwa.core import clock
from utsuwa.core.errors import InvalidName, InvalidRequest
from utsuwa.core.urls import object_url
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.wire import images as wire

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""The expiry time in the API of images that never expire."""
NEVER = clock.to_wire(EPOCH)

MAX_PROPERTIES = 500
MAX_VALUE = 64 * 1024


def image_url(row: ImageRow) -> str:
    return object_url("images", row.fingerprint, project=row.project)


def alias_url(row: AliasRow) -> str:
    return object_url("images", "aliases", row.name, project=row.project)


def image_record(row: ImageRow, aliases: Iterable[AliasRow]) -> wire.Image:
    return wire.Image(
        auto_update=row.auto_update,
        properties=row.properties,
        public=row.public,
        expires_at=clock.to_wire(row.expires_at or EPOCH),
        profiles=row.profiles,
        aliases=[wire.ImageAlias(name=a.name, description=a.description) for a in aliases],
        architecture=row.architecture,
        cached=row.cached,
        filename=row.filename,
        fingerprint=row.fingerprint,
        size=row.size,
        type=row.type,
        created_at=clock.to_wire(row.created_at),
        last_used_at=clock.to_wire(row.last_used_at),
        uploaded_at=clock.to_wire(row.uploaded_at),
        project=row.project,
        update_source=_source_record(row),
    )


def _source_record(row: ImageRow) -> wire.ImageSource | UnsetType:
    source = row.source
    if source is None:
        return UNSET
    return wire.ImageSource(
        server=source.server,
        protocol=source.protocol,
        certificate=source.certificate,
        alias=source.alias,
        image_type=row.type,
    )


def editable(row: ImageRow) -> wire.ImagePut:
    return wire.ImagePut(
        auto_update=row.auto_update,
        properties=row.properties,
        public=row.public,
        expires_at=row.expires_at,
        profiles=row.profiles,
    )


def alias_record(row: AliasRow) -> wire.ImageAliasesEntry:
    return wire.ImageAliasesEntry(
        description=row.description, target=row.fingerprint, name=row.name, type=row.type
    )


def editable_alias(row: AliasRow) -> wire.ImageAliasesEntryPut:
    return wire.ImageAliasesEntryPut(description=row.description, target=row.fingerprint)


def expiry(moment: datetime | None) -> datetime | None:
    """Normalize an expiry time of a request: everything up to 1970 means never."""
    if moment is None:
        return None
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return aware if aware > EPOCH else None


def check_properties(properties: Mapping[str, str]) -> None:
    """Raise InvalidRequest for invalid properties, which become config keys (`image.<name>`) of instances."""
    if len(properties) > MAX_PROPERTIES:
        raise InvalidRequest(f"An image can have at most {MAX_PROPERTIES} properties")
    for name, value in properties.items():
        if not name or len(name) > 255 or not name.isprintable():
            raise InvalidRequest(
                f"Invalid image property {name[:40]!r}: use 1 to 255 characters, no control characters"
            )
        if len(value) > MAX_VALUE or "\0" in value:
            raise InvalidRequest(f"Invalid value of the image property {name!r}: too long, or with a NUL")


def check_alias_name(name: str) -> str:
    """Accept 1 to 255 printable characters; slashes are usual (`debian/12`). Raises InvalidName."""
    if not name:
        raise InvalidName("Image alias name cannot be empty")
    if len(name) > 255 or not name.isprintable() or name != name.strip():
        raise InvalidName(
            f"Invalid image alias {name[:40]!r}: use up to 255 printable characters, no spaces around them"
        )
    return name


def check_filename(name: str) -> str:
    """Return a client's file name without directories; empty if it is unusable."""
    base = name.replace("\\", "/").rpartition("/")[2]
    return base if len(base) <= 255 and base.isprintable() and base not in (".", "..") else ""
