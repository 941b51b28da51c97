"""Finding images: in a project or all, by alias, fingerprint, prefix or properties. Run in transactions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from utsuwa.core.errors import InvalidName, InvalidRequest, NotFound
from utsuwa.core.scope import NOTHING
from utsuwa.db import image_aliases as alias_rows
from utsuwa.db import images as image_rows
from utsuwa.db.images import ImageRow
from utsuwa.db.projects import effective
from utsuwa.db.transaction import Transaction
from utsuwa.images import listing

_NEVER = datetime.min.replace(tzinfo=UTC)


def public(tx: Transaction, project: str, prefix: str) -> ImageRow:
    """Return a public image of a project by fingerprint or unique prefix. Raises NotFound, InvalidRequest."""
    found = [name for name in listing.names(tx, NOTHING, project) if name[1].startswith(prefix)]
    if not prefix or not found:
        raise NotFound("Image not found")
    if len(found) > 1:
        raise InvalidRequest("More than one image matches this fingerprint prefix: use a longer one")
    return image_rows.get(tx, *found[0], viewer=project)


def on_others_only(tx: Transaction, project: str, fingerprint: str) -> ImageRow | None:
    """Return the image if only other members have its files."""
    try:
        row = image_rows.get(tx, project, fingerprint)
    except NotFound:
        return None
    return row if row.state == "ready" and not row.here else None


def aliased(tx: Transaction, project: str, alias: str) -> ImageRow:
    """Raises NotFound."""
    holder = effective(tx, project, "images")
    target = alias_rows.get(tx, holder, alias).fingerprint
    return ready(image_rows.get(tx, holder, target, viewer=project))


def named(tx: Transaction, project: str, text: str) -> ImageRow:
    """Find by fingerprint or prefix. Clients send anything that is not an alias, which is not invalid."""
    try:
        return ready(image_rows.find_by_prefix(tx, effective(tx, project, "images"), text, viewer=project))
    except (InvalidName, NotFound):
        raise NotFound(f"Image not found: {text[:70]!r} is neither an alias nor a fingerprint") from None


def ready(row: ImageRow) -> ImageRow:
    """Return the image. Raises NotFound while it is created."""
    if row.state != "ready":
        raise NotFound("Image not found")
    return row


def newest_with(rows: Iterable[ImageRow], properties: Mapping[str, str]) -> ImageRow:
    """Return the newest of the images that have the properties. Raises NotFound."""
    wanted = properties.items()
    matching = [row for row in rows if row.state == "ready" and wanted <= row.properties.items()]
    if not matching:
        raise NotFound("No image has these properties")
    return max(matching, key=lambda row: (row.created_at or _NEVER, row.uploaded_at))
