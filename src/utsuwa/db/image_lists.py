"""Lists of images, of which there may be tens of thousands: what the API shows of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from utsuwa.db import codes, rows
from utsuwa.db.projects import all_effective
from utsuwa.db.schema import (
    images,
    images_aliases,
    images_profiles,
    images_properties,
    images_source,
    profiles,
    projects,
)
from utsuwa.db.transaction import Prepared, Transaction

_COLUMNS = (
    "fingerprint",
    "public",
    "architecture",
    "type",
    "filename",
    "size",
    "creation_date",
    "expiry_date",
    "upload_date",
    "last_use_date",
    "auto_update",
    "cached",
)


class ListedImage(NamedTuple):
    """The columns of an image as the driver returns them."""

    id: int
    project: str
    fingerprint: str
    public: bool
    architecture: int
    type: int
    filename: str
    size: int
    created_at: Any
    expires_at: Any
    uploaded_at: Any
    last_used_at: Any
    auto_update: bool
    cached: bool
    server: str | None
    """Of its source; None without one."""
    protocol: int
    certificate: str
    alias: str
    properties: str | None
    """Names and values, for `rows.read_config`."""
    aliases: str | None
    """Names and descriptions, for `rows.read_config`."""


class ListedImages(NamedTuple):
    """Images, except those that are just being created, and the names of their profiles by their ids."""

    rows: list[ListedImage]
    profiles: Mapping[int, list[str]]


class _Queries:
    """The queries for the images that `where` selects."""

    def __init__(self, where: sa.ColumnElement[bool]) -> None:
        source = images.join(projects, projects.c.id == images.c.project_id).outerjoin(
            images_source, images_source.c.image_id == images.c.id
        )
        chosen = sa.and_(images.c.state == codes.STATES["ready"], where)
        order = projects.c.name, images.c.fingerprint
        self.names = Prepared(
            sa.select(projects.c.name, images.c.fingerprint, images.c.public)
            .select_from(source)
            .where(chosen, _readable())
            .order_by(*order)
        )
        # With its properties and aliases in one row, as the driver releases the GIL for every row; and as
        # subqueries, because an aggregate of all of them would be sorted once more.
        self.rows = Prepared(
            sa.select(
                images.c.id,
                projects.c.name,
                *(images.c[name] for name in _COLUMNS),
                *(images_source.c[name] for name in ("server", "protocol", "certificate", "alias")),
                _pairs(images_properties, images_properties.c.key, images_properties.c.value),
                _pairs(images_aliases, images_aliases.c.name, images_aliases.c.description),
            )
            .select_from(source)
            .where(chosen)
            .order_by(*order)
        )
        self.profiles = Prepared(
            sa.select(images_profiles.c.image_id, images_profiles.c.profile_id).where(
                images_profiles.c.image_id.in_(sa.select(images.c.id).select_from(source).where(chosen))
            )
        )


def _pairs(table: sa.Table, key: sa.ColumnElement[str], value: sa.ColumnElement[str]) -> Any:
    """Return the expression for what belongs to the image of a row."""
    found = sa.select(rows.json_object(key, value)).where(table.c.image_id == images.c.id)
    return found.correlate(images).scalar_subquery()


def _readable() -> sa.ColumnElement[bool]:
    """Return the condition that all codes of an image are known."""
    return sa.and_(
        rows.has_word(images.c.architecture, codes.ARCHITECTURES),
        rows.has_word(images.c.type, codes.INSTANCE_TYPES),
        sa.or_(
            images_source.c.protocol.is_(None), rows.has_word(images_source.c.protocol, codes.IMAGE_PROTOCOLS)
        ),
    )


_ALL = _Queries(sa.true())
_OF_PROJECT = _Queries(projects.c.name == sa.bindparam("project", type_=sa.Text))
_PROFILES = Prepared(
    sa.select(profiles.c.id, projects.c.name, profiles.c.name).join(
        projects, projects.c.id == profiles.c.project_id
    )
)


def names(tx: Transaction, project: str | None) -> list[tuple[str, str, bool]]:
    """Return project, fingerprint and `public` of the images of a project, or of all (None)."""
    queries, values = _chosen(project)
    found = tx.fetch(queries.names, **values)
    return [(holder, fingerprint, bool(public)) for holder, fingerprint, public in found]


def fetch(tx: Transaction, project: str | None, *, viewer: str = "") -> ListedImages:
    """Return the images of a project, or of all (None), by project and fingerprint.

    Their profiles are those for `viewer`, by default for each image's own project.
    """
    queries, values = _chosen(project)
    found = [ListedImage._make(columns) for columns in tx.fetch(queries.rows, **values)]
    holders = all_effective(tx, "profiles")
    wanted = {image.id: holders[viewer or image.project] for image in found}
    known = {profile_id: (holder, name) for profile_id, holder, name in tx.fetch(_PROFILES)}
    applied: dict[int, list[str]] = {}
    for image_id, profile_id in sorted(tx.fetch(queries.profiles, **values)):
        holder, name = known[profile_id]
        if wanted[image_id] == holder:
            applied.setdefault(image_id, []).append(name)
    return ListedImages(found, applied)


def _chosen(project: str | None) -> tuple[_Queries, dict[str, str]]:
    return (_ALL, {}) if project is None else (_OF_PROJECT, {"project": project})
