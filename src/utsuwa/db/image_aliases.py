"""Aliases of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from utsuwa.core.errors import NotFound
from utsuwa.db import codes, rows
from utsuwa.db.schema import images, images_aliases, projects
from utsuwa.db.transaction import Prepared, Transaction

_SOURCE = images_aliases.join(images, images.c.id == images_aliases.c.image_id).join(
    projects, projects.c.id == images_aliases.c.project_id
)
_READY = Prepared(
    sa.select(
        images_aliases.c.name,
        images_aliases.c.description,
        images.c.fingerprint,
        images.c.type,
        images.c.public,
    )
    .select_from(_SOURCE)
    .where(
        projects.c.name == sa.bindparam("project", type_=sa.Text),
        images.c.state == codes.STATES["ready"],
    )
    .order_by(images_aliases.c.name)
)


@dataclass(frozen=True)
class AliasRow:
    """`fingerprint` is the full fingerprint; `type` is that of the image (`container`)."""

    project: str
    name: str
    description: str
    fingerprint: str
    type: str = "container"


def missing(name: str) -> str:
    """Return the message for an alias that does not exist, or that the caller may not see."""
    return f"Image alias {name!r} not found: `utsuwa image list` shows the images that this server has"


def get(tx: Transaction, project: str, name: str) -> AliasRow:
    """Return an alias. Raises NotFound, UnknownCode."""
    found = _load(tx, sa.and_(projects.c.name == project, images_aliases.c.name == name))
    if not found:
        raise NotFound(missing(name))
    if found[0].type == codes.UNKNOWN:
        raise codes.unreadable(f"Image alias {name!r}")
    return found[0]


def get_all(tx: Transaction, project: str | None) -> list[AliasRow]:
    """Return the aliases of a project, or of all (None), sorted by project and name, in one query."""
    found = _load(tx, sa.true() if project is None else projects.c.name == project)
    return [row for row in found if row.type != codes.UNKNOWN]


def of_image(tx: Transaction, project: str, fingerprint: str) -> list[AliasRow]:
    """Return the aliases of one image, by name."""
    of_it = sa.and_(projects.c.name == project, images.c.fingerprint == fingerprint)
    return [row for row in _load(tx, of_it) if row.type != codes.UNKNOWN]


def get_ready(tx: Transaction, project: str, *, public: bool = False) -> list[AliasRow]:
    """Return the aliases of a project's images that are not just being created, by name.

    With `public`, only those of public images. There may be tens of thousands, so no images are loaded.
    """
    found = []
    for name, description, fingerprint, kind, is_public in tx.fetch(_READY, project=project):
        if is_public or not public:
            row = AliasRow(project, name, description, fingerprint, _type(project, name, kind))
            found.append(row)
    return [row for row in found if row.type != codes.UNKNOWN]


def insert(tx: Transaction, row: AliasRow) -> None:
    """Insert an alias. Raises AlreadyExists, NotFound (project, image)."""
    values = {
        "project_id": rows.project_id(tx, row.project),
        "name": row.name,
        "description": row.description,
        "image_id": _image_id(tx, row),
    }
    with rows.unique(f"Image alias {row.name!r} already exists"):
        tx.insert(images_aliases, values)


def update(tx: Transaction, row: AliasRow) -> None:
    """Update the target and description of an alias. Raises NotFound."""
    values = {"description": row.description, "image_id": _image_id(tx, row)}
    _change(tx, row.project, row.name, values)


def rename(tx: Transaction, project: str, name: str, new: str) -> None:
    """Rename an alias. Raises AlreadyExists, NotFound."""
    with rows.unique(f"Image alias {new!r} already exists"):
        _change(tx, project, name, {"name": new})


def delete(tx: Transaction, project: str, name: str) -> None:
    """Delete an alias. Raises NotFound."""
    result = tx.execute(images_aliases.delete().where(_is(project, name)))
    rows.one_changed(result, missing(name))


def _is(project: str, name: str) -> sa.ColumnElement[bool]:
    owner = sa.select(projects.c.id).where(projects.c.name == project).scalar_subquery()
    return sa.and_(images_aliases.c.project_id == owner, images_aliases.c.name == name)


def _change(tx: Transaction, project: str, name: str, values: dict[str, object]) -> None:
    result = tx.execute(images_aliases.update().where(_is(project, name)).values(**values))
    rows.one_changed(result, missing(name))


def _image_id(tx: Transaction, row: AliasRow) -> int:
    query = (
        sa.select(images.c.id)
        .join(projects, projects.c.id == images.c.project_id)
        .where(projects.c.name == row.project, images.c.fingerprint == row.fingerprint)
    )
    found = tx.execute(query).scalar_one_or_none()
    if found is None:
        raise NotFound(f"Image {row.fingerprint[:12]!r} not found")
    return int(found)


def _load(tx: Transaction, where: sa.ColumnElement[bool]) -> list[AliasRow]:
    query = (
        sa.select(
            projects.c.name.label("project"),
            images_aliases.c.name,
            images_aliases.c.description,
            images.c.fingerprint,
            images.c.type,
        )
        .select_from(_SOURCE)
        .where(where)
        .order_by(projects.c.name, images_aliases.c.name)
    )
    return [_row(r) for r in tx.execute(query)]


def _row(r: sa.Row[Any]) -> AliasRow:
    return AliasRow(r.project, r.name, r.description, r.fingerprint, _type(r.project, r.name, r.type))


def _type(project: str, name: str, stored: int) -> str:
    return codes.Reader(f"Image alias {name!r} of project {project!r}").word(codes.INSTANCE_TYPES, stored)
