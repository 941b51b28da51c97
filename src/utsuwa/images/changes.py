"""Changes of stored images. Run in transactions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msgspec import UnsetType

from utsuwa.db import image_aliases as alias_rows
from utsuwa.db import images as image_rows
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.db.transaction import Transaction
from utsuwa.images import finding
from utsuwa.images.new import NewAlias, NewImage
from utsuwa.images.records import check_properties, expiry
from utsuwa.wire import images as wire


def remove_files(tx: Transaction, rows: Sequence[ImageRow]) -> None:
    """Note that this member does not have the files of these images."""
    for row in rows:
        image_rows.remove_files(tx, row.id)


def add_files(tx: Transaction, row: ImageRow, aliases: Sequence[NewAlias]) -> ImageRow:
    """Note that this member has an image's files, too; return the updated row."""
    image_rows.add_files(tx, row.id)
    _insert_aliases(tx, row, aliases)
    return image_rows.get(tx, row.project, row.fingerprint)


def _insert_aliases(tx: Transaction, row: ImageRow, aliases: Sequence[NewAlias]) -> None:
    """Add aliases; those that already refer to the image are kept."""
    known = {alias.name for alias in alias_rows.of_image(tx, row.project, row.fingerprint)}
    for alias in aliases:
        if alias.name not in known:
            alias_rows.insert(tx, AliasRow(row.project, alias.name, alias.description, row.fingerprint))


def kept(tx: Transaction, row: ImageRow, request: NewImage) -> ImageRow:
    """Apply a request for an image that is there already; it is no longer only cached."""
    row = finding.ready(image_rows.get(tx, row.project, row.fingerprint))
    new = replace(
        row,
        filename=request.filename or row.filename,
        public=row.public or request.public,
        auto_update=row.auto_update or request.auto_update,
        cached=False,
        expires_at=request.expires_at or row.expires_at,
        properties={**row.properties, **request.properties},
        source=request.source or row.source,
    )
    image_rows.update(tx, new)
    if new.source is not None and new.source != row.source:
        image_rows.set_source(tx, row.id, new.source)
    _insert_aliases(tx, row, request.aliases)
    return new


def supersede(tx: Transaction, old: ImageRow, new: ImageRow) -> None:
    """Replace an image by a newer version. Raises NotFound."""
    image_rows.supersede(
        tx,
        image_rows.get(tx, old.project, old.fingerprint),
        image_rows.get(tx, new.project, new.fingerprint),
    )


def with_settings(row: ImageRow, wanted: wire.ImagePut) -> ImageRow:
    """Return the row with the editable part of an image. Raises InvalidRequest."""
    check_properties(wanted.properties)
    return replace(
        row,
        auto_update=wanted.auto_update,
        public=wanted.public,
        properties=wanted.properties,
        expires_at=expiry(wanted.expires_at),
        profiles=row.profiles if isinstance(wanted.profiles, UnsetType) else wanted.profiles,
    )
