"""Images with their properties and profiles. Aliases are in `image_aliases`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.names import LONE_MEMBER, check_fingerprint_prefix
from utsuwa.db import codes, rows
from utsuwa.db.projects import effective
from utsuwa.db.schema import (
    images,
    images_members,
    images_profiles,
    images_properties,
    members,
    profiles,
    projects,
)
from utsuwa.db.transaction import Transaction

_SOURCE = images.join(projects, projects.c.id == images.c.project_id)
_NOT_FOUND = "Image not found"


@dataclass(frozen=True)
class ImageRow:
    """`id` is 0 for a row that is not stored yet; `split` images have a root file system of their own file.

    `trusted` says whether the kernel may mount its squashfs. `profiles` are names in the project that holds
    the profiles of the image's.
    Its files lie on the members of `locations`; `here` says whether this daemon's is one.
    """

    id: int
    project: str
    fingerprint: str
    filename: str
    size: int
    architecture: str
    created_at: datetime | None
    expires_at: datetime | None
    uploaded_at: datetime
    last_used_at: datetime | None = None
    public: bool = False
    auto_update: bool = False
    cached: bool = False
    type: str = "container"
    properties: dict[str, str] = field(default_factory=dict)
    state: codes.State = "creating"
    split: bool = False
    trusted: bool = False
    profiles: list[str] = field(default_factory=list)
    locations: tuple[str, ...] = (LONE_MEMBER,)
    here: bool = True


def get(tx: Transaction, project: str, fingerprint: str) -> ImageRow:
    """By the whole fingerprint. Raises NotFound, UnknownCode."""
    found = _load(tx, sa.and_(projects.c.name == project, images.c.fingerprint == fingerprint))
    if not found:
        raise NotFound(_NOT_FOUND)
    return _readable(found[0])


def find_by_prefix(tx: Transaction, project: str, prefix: str) -> ImageRow:
    """The one image whose fingerprint begins so. Raises NotFound, InvalidName, UnknownCode, or
    InvalidRequest for several.
    """
    start = check_fingerprint_prefix(prefix)
    begins = images.c.fingerprint.startswith(start)
    found = _load(tx, sa.and_(projects.c.name == project, begins))
    if not found:
        raise NotFound(_NOT_FOUND)
    if len(found) > 1:
        raise InvalidRequest(
            f"More than one image has a fingerprint that begins with {start!r}: give more of it"
        )
    return _readable(found[0])


def _readable(row: ImageRow) -> ImageRow:
    if row.state == codes.UNKNOWN:
        raise codes.unreadable(f"Image {row.fingerprint[:12]}")
    return row


def get_all(tx: Transaction, project: str | None) -> list[ImageRow]:
    """The images of a project, or of all (None), by project and fingerprint, in four queries."""
    return _load(tx, sa.true() if project is None else projects.c.name == project)


def insert(tx: Transaction, row: ImageRow) -> int:
    """The new id of an image whose files this member will have.

    Raises AlreadyExists, NotFound (project, profile), InvalidConfig (architecture).
    """
    owner = rows.project_id(tx, row.project)
    values = {
        "project_id": owner,
        "fingerprint": row.fingerprint,
        "size": row.size,
        "upload_date": row.uploaded_at,
        "last_use_date": row.last_used_at,
        "type": codes.number(codes.INSTANCE_TYPES, row.type, "image type"),
        "state": codes.STATES[row.state],
        "split": row.split,
        "trusted": row.trusted,
        **_editable(row),
    }
    with rows.unique("Image with same fingerprint already exists"):
        image_id = tx.insert(images, values)
    rows.insert_config(tx, images_properties, "image_id", image_id, row.properties)
    _insert_profiles(tx, image_id, row)
    add_files(tx, image_id)
    return image_id


def add_files(tx: Transaction, image_id: int) -> None:
    """This member has the image's files, too. Raises AlreadyExists where that was known."""
    with rows.unique("Image with same fingerprint already exists"):
        tx.insert(images_members, {"image_id": image_id, "member_id": tx.member})


def remove_files(tx: Transaction, image_id: int) -> None:
    """This member has none of the image's files any more; without any left the image goes."""
    own = sa.and_(images_members.c.image_id == image_id, images_members.c.member_id == tx.member)
    tx.execute(images_members.delete().where(own))
    rest = sa.select(images_members.c.id).where(images_members.c.image_id == image_id).limit(1)
    if not tx.execute(rest).all():
        delete(tx, image_id)


def update(tx: Transaction, row: ImageRow) -> None:
    """Replace what is editable (also the times of creation and expiry). Raises NotFound."""
    _set(tx, row.id, _editable(row))
    rows.replace_config(tx, images_properties, "image_id", row.id, row.properties)
    tx.execute(images_profiles.delete().where(images_profiles.c.image_id == row.id))
    _insert_profiles(tx, row.id, row)


def set_ready(tx: Transaction, image_id: int) -> None:
    """The image's files are in place: from now on it is seen. Raises NotFound."""
    _set(tx, image_id, {"state": codes.STATES["ready"]})


def set_last_used(tx: Transaction, image_id: int, moment: datetime) -> None:
    """Raises NotFound."""
    _set(tx, image_id, {"last_use_date": moment})


def delete(tx: Transaction, image_id: int) -> None:
    """Remove the row with its properties and aliases; does nothing where it is gone."""
    tx.execute(images.delete().where(images.c.id == image_id))


def projects_with(tx: Transaction, fingerprint: str) -> list[str]:
    """The projects that have an image whose files this member has: they stay while one is left."""
    query = (
        sa.select(projects.c.name)
        .select_from(_SOURCE.join(images_members, images_members.c.image_id == images.c.id))
        .where(images.c.fingerprint == fingerprint, images_members.c.member_id == tx.member)
        .order_by(projects.c.name)
    )
    return list(tx.execute(query).scalars())


def _editable(row: ImageRow) -> dict[str, Any]:
    return {
        "filename": row.filename,
        "architecture": codes.number(codes.ARCHITECTURES, row.architecture, "architecture"),
        "public": row.public,
        "auto_update": row.auto_update,
        "cached": row.cached,
        "creation_date": row.created_at,
        "expiry_date": row.expires_at,
    }


def _set(tx: Transaction, image_id: int, values: Mapping[str, Any]) -> None:
    result = tx.execute(images.update().where(images.c.id == image_id).values(**values))
    rows.one_changed(result, _NOT_FOUND)


def _insert_profiles(tx: Transaction, image_id: int, row: ImageRow) -> None:
    if not row.profiles:
        return
    rows.distinct(row.profiles, "A profile can stand only once in an image")
    known = rows.profile_ids(tx, effective(tx, row.project, "profiles"), row.profiles)
    tx.execute(
        images_profiles.insert(), [{"image_id": image_id, "profile_id": known[name]} for name in row.profiles]
    )


def _load(tx: Transaction, where: sa.ColumnElement[bool]) -> list[ImageRow]:
    query = (
        sa.select(images, projects.c.name.label("project"))
        .select_from(_SOURCE)
        .where(where)
        .order_by(projects.c.name, images.c.fingerprint)
    )
    found = tx.execute(query).all()
    owners = sa.select(images.c.id).select_from(_SOURCE).where(where)
    properties = rows.load_config(tx, images_properties, "image_id", owners)
    applied = _load_profiles(tx, owners)
    places = _load_members(tx, owners)
    return [_row(r, properties[r.id], applied[r.id], places[r.id], tx.member) for r in found]


def _load_members(tx: Transaction, owners: rows.Owners) -> defaultdict[int, dict[int, str]]:
    """The ids and names of the members that have each image's files, by the image's id."""
    query = (
        sa.select(images_members.c.image_id, members.c.id, members.c.name)
        .join(members, members.c.id == images_members.c.member_id)
        .where(images_members.c.image_id.in_(owners))
        .order_by(images_members.c.image_id, members.c.name)
    )
    found: defaultdict[int, dict[int, str]] = defaultdict(dict)
    for image_id, member_id, name in tx.execute(query):
        found[image_id][member_id] = name
    return found


def _row(
    r: sa.Row[Any], properties: dict[str, str], profiles: list[str], places: Mapping[int, str], here: int
) -> ImageRow:
    reader = codes.Reader(f"Image {r.fingerprint[:12]} of project {r.project!r}")
    return ImageRow(
        id=r.id,
        project=r.project,
        fingerprint=r.fingerprint,
        filename=r.filename,
        size=r.size,
        architecture=reader.word(codes.ARCHITECTURES, r.architecture),
        created_at=r.creation_date,
        expires_at=r.expiry_date,
        uploaded_at=r.upload_date,
        last_used_at=r.last_use_date,
        public=r.public,
        auto_update=r.auto_update,
        cached=r.cached,
        type=reader.word(codes.INSTANCE_TYPES, r.type),
        properties=properties,
        state=reader.state(r.state),
        split=r.split,
        trusted=r.trusted,
        profiles=profiles,
        locations=tuple(places.values()),
        here=here in places,
    )


def _load_profiles(tx: Transaction, owners: rows.Owners) -> defaultdict[int, list[str]]:
    query = (
        sa.select(images_profiles.c.image_id, profiles.c.name)
        .join(profiles, profiles.c.id == images_profiles.c.profile_id)
        .where(images_profiles.c.image_id.in_(owners))
        .order_by(images_profiles.c.image_id, profiles.c.id)
    )
    found: defaultdict[int, list[str]] = defaultdict(list)
    for image_id, name in tx.execute(query):
        found[image_id].append(name)
    return found
