"""Lists of images for the API: which a caller sees, and their records. Run in transactions."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import UNSET

from utsuwa.core.errors import NotFound
from utsuwa.core.filters import Filter
from utsuwa.core.scope import Scope
from utsuwa.db import codes, image_lists, rows
from utsuwa.db.image_lists import ListedImage
from utsuwa.db.projects import effective
from utsuwa.db.schema import time_text
from utsuwa.db.transaction import Transaction
from utsuwa.images.records import NEVER
from utsuwa.wire import images as wire

Name = tuple[str, str]
"""The project and the fingerprint of an image."""


def names(tx: Transaction, scope: Scope, project: str | None) -> list[Name]:
    """Return the images of a project, or of all (None), that a caller sees. Raises NotFound (project)."""
    holder, seen = _holder(tx, scope, project)
    if holder is None and project is not None:
        return []
    return [
        (owner, fingerprint)
        for owner, fingerprint, public in image_lists.names(tx, holder)
        if public or seen(owner)
    ]


def records(
    tx: Transaction, scope: Scope, project: str | None, wanted: Filter | None = None
) -> list[wire.Image]:
    """As `names`, the records of those that match the filter."""
    holder, seen = _holder(tx, scope, project)
    if holder is None and project is not None:
        return []
    found = image_lists.fetch(tx, holder, viewer=project or "")
    made = []
    for image in found.rows:
        if not (image.public or seen(image.project)):
            continue
        record = _record(image, found.profiles.get(image.id, []))
        if record is not None and (wanted is None or wanted.matches(msgspec.to_builtins(record))):
            made.append(record)
    return made


def _holder(tx: Transaction, scope: Scope, project: str | None) -> tuple[str | None, Callable[[str], bool]]:
    """Return the project that holds a project's images, and whether those of a project are seen.

    None for all projects, or for one that the caller does not see and that does not exist.
    """
    if project is None:
        return None, scope.sees
    seen = scope.sees(project)
    try:
        return effective(tx, project, "images"), lambda _: seen
    except NotFound:
        if seen:
            raise
        return None, lambda _: False  # do not reveal whether the project exists


def _record(image: ListedImage, profiles: list[str]) -> wire.Image | None:
    """Return the record of an image; None if it has a code that this version does not know."""
    reader = codes.Reader(f"Image {image.fingerprint[:12]} of project {image.project!r}")
    kind = reader.word(codes.INSTANCE_TYPES, image.type)
    architecture = reader.word(codes.ARCHITECTURES, image.architecture)
    source: wire.ImageSource | msgspec.UnsetType = UNSET
    if image.server is not None:
        source = wire.ImageSource(
            server=image.server,
            protocol=reader.word(codes.IMAGE_PROTOCOLS, image.protocol),
            certificate=image.certificate,
            alias=image.alias,
            image_type=kind,
        )
    if not reader.complete:
        return None
    aliases = sorted(rows.read_config(image.aliases).items())
    return wire.Image(
        auto_update=bool(image.auto_update),
        properties=rows.read_config(image.properties),
        public=bool(image.public),
        expires_at=NEVER if image.expires_at is None else time_text(image.expires_at),
        profiles=profiles,
        aliases=[wire.ImageAlias(name=name, description=description) for name, description in aliases],
        architecture=architecture,
        cached=bool(image.cached),
        filename=image.filename,
        fingerprint=image.fingerprint,
        size=image.size,
        type=kind,
        created_at=time_text(image.created_at),
        last_used_at=time_text(image.last_used_at),
        uploaded_at=time_text(image.uploaded_at),
        project=image.project,
        update_source=source,
    )
