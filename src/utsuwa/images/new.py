"""What is asked of a new image, and what its files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from utsuwa.core import clock
from utsuwa.core.image_source import ImageOrigin
from utsuwa.db.images import ImageRow
from utsuwa.images.metadata import ImageMetadata
from utsuwa.images.records import check_alias_name, check_properties
from utsuwa.images.upload import Upload


@dataclass(frozen=True)
class NewAlias:
    """An alias that a new image gets."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class NewImage:
    """The parameters of an upload or a download."""

    filename: str = ""
    fingerprint: str = ""
    """The fingerprint expected by the client, or empty."""
    public: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)
    """These override those of the image's metadata."""
    profiles: Sequence[str] = ("default",)
    aliases: Sequence[NewAlias] = ()
    trusted: bool = False
    """Whether the kernel may mount its squashfs."""
    expires_at: datetime | None = None
    """None for that of the image's metadata."""
    created_at: datetime | None = None
    """None for that of the image's metadata."""
    auto_update: bool = False
    source: ImageOrigin | None = None
    cached: bool = False
    """Whether it is only there because an instance needed it."""


def check_new(request: NewImage) -> None:
    """Raise InvalidRequest or InvalidName for invalid properties or aliases of a new image."""
    check_properties(request.properties)
    for alias in request.aliases:
        check_alias_name(alias.name)


def first_row(project: str, upload: Upload, request: NewImage, metadata: ImageMetadata) -> ImageRow:
    """Return the row of an image whose files have been received."""
    properties = {**metadata.properties, **request.properties}
    stated = datetime.fromtimestamp(metadata.expiry_date, UTC) if metadata.expiry_date else None
    now = clock.now()
    return ImageRow(
        id=0,
        project=project,
        fingerprint=upload.fingerprint,
        filename=request.filename,
        size=upload.size,
        architecture=metadata.architecture,
        created_at=request.created_at or datetime.fromtimestamp(metadata.creation_date, UTC),
        expires_at=request.expires_at or stated,
        uploaded_at=now,
        last_used_at=now if request.cached else None,
        public=request.public,
        auto_update=request.auto_update,
        cached=request.cached,
        properties={name: value for name, value in properties.items() if value},
        split=upload.rootfs is not None,
        trusted=request.trusted,
        profiles=list(request.profiles),
        source=request.source,
    )
