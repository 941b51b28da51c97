"""Images with their properties and profiles. Aliases are in `image_aliases`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.image_source import ImageOrigin
from utsuwa.core.names import DEFAULT_PROJECT, LONE_MEMBER, check_fingerprint_prefix
from utsuwa.db import codes, rows
from utsuwa.db.projects import all_effective, effective
from utsuwa.db.schema import (
    images,
    images_aliases,
    images_members,
    images_profiles,
    images_properties,
    images_source,
    members,
    profiles,
    projects,
)
from utsuwa.db.transaction import Prepared, Transaction

_SOURCE = images.join(projects, projects.c.id == images.c.project_id)
_ORIGIN = (
    images_source.c.server,
    images_source.c.protocol,
    images_source.c.certificate,
    images_source.c.alias,
)
_NOT_FOUND = "Image not found"


@dataclass(frozen=True)
class ImageRow:
    """`id` is 0 until the row is stored; `split` images have the root file system in a second file.

    `trusted` is whether the kernel may mount its squashfs. `profiles` are names in the project `profiles_of`,
    as projects that share images may have their own profiles. `locations` are the members that have its
    files, `here` is whether this one does.
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
    profiles_of: str = field(default="", compare=False)
    """Empty for the effective project for profiles of the image's project."""
    locations: tuple[str, ...] = (LONE_MEMBER,)
    here: bool = True
    source: ImageOrigin | None = None
    """Where newer versions come from, None for none."""


def get(tx: Transaction, project: str, fingerprint: str, *, viewer: str = "") -> ImageRow:
    """Return the image with a full fingerprint. Raises NotFound, UnknownCode."""
    found = _load(tx, sa.and_(projects.c.name == project, images.c.fingerprint == fingerprint), viewer)
    if not found:
        raise NotFound(_NOT_FOUND)
    return _readable(found[0])


def find_by_prefix(tx: Transaction, project: str, prefix: str, *, viewer: str = "") -> ImageRow:
    """Return the image whose fingerprint has this prefix.

    Raises NotFound, InvalidName, UnknownCode, or InvalidRequest if several match.
    """
    start = check_fingerprint_prefix(prefix)
    begins = images.c.fingerprint.startswith(start)
    found = _load(tx, sa.and_(projects.c.name == project, begins), viewer)
    if not found:
        raise NotFound(_NOT_FOUND)
    if len(found) > 1:
        raise InvalidRequest(
            f"More than one image has a fingerprint that begins with {start!r}: use a longer prefix"
        )
    return _readable(found[0])


def _readable(row: ImageRow) -> ImageRow:
    if row.state == codes.UNKNOWN:
        raise codes.unreadable(f"Image {row.fingerprint[:12]}")
    return row


def get_all(tx: Transaction, project: str | None, *, viewer: str = "") -> list[ImageRow]:
    """Return the images of a project, or of all (None), by project and fingerprint, in five queries.

    Their profiles are those for `viewer`, by default for each image's own project: projects that share
    images may have their own profiles.
    """
    return _load(tx, sa.true() if project is None else projects.c.name == project, viewer)


def cached_here(tx: Transaction, project: str, source: ImageOrigin) -> list[ImageRow]:
    """Return the images of a project with files on this member that follow a source, the newest first."""
    same = sa.and_(
        images_source.c.server == source.server,
        images_source.c.protocol == codes.number(codes.IMAGE_PROTOCOLS, source.protocol, "protocol"),
        images_source.c.alias == source.alias,
        images_source.c.certificate == source.certificate,
    )
    following = images.c.id.in_(sa.select(images_source.c.image_id).where(same))
    found = _load(tx, sa.and_(projects.c.name == project, images.c.auto_update, following), "")
    usable = [row for row in found if row.state == "ready" and row.here]
    return sorted(usable, key=lambda row: (row.created_at or row.uploaded_at, row.id), reverse=True)


def insert(tx: Transaction, row: ImageRow) -> int:
    """Insert an image whose files are on this member, and return its id.

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
    _insert_default_profiles(tx, image_id, row)
    if row.source is not None:
        _insert_source(tx, image_id, row.source)
    add_files(tx, image_id)
    return image_id


def _insert_source(tx: Transaction, image_id: int, source: ImageOrigin) -> None:
    values = {
        "image_id": image_id,
        "server": source.server,
        "protocol": codes.number(codes.IMAGE_PROTOCOLS, source.protocol, "protocol of an image server"),
        "certificate": source.certificate,
        "alias": source.alias,
    }
    tx.insert(images_source, values)


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
    of_holder = images_profiles.c.profile_id.in_(_profiles_of(_holder(tx, row)))
    tx.execute(images_profiles.delete().where(images_profiles.c.image_id == row.id, of_holder))
    _insert_profiles(tx, row.id, row)


def set_ready(tx: Transaction, image_id: int) -> None:
    """The image's files are in place: from now on it is seen. Raises NotFound."""
    _set(tx, image_id, {"state": codes.STATES["ready"]})


def set_last_used(tx: Transaction, image_id: int, moment: datetime) -> None:
    """Raises NotFound."""
    _set(tx, image_id, {"last_use_date": moment})


def set_source(tx: Transaction, image_id: int, source: ImageOrigin) -> None:
    """Have an image follow another source."""
    tx.execute(images_source.delete().where(images_source.c.image_id == image_id))
    _insert_source(tx, image_id, source)


def supersede(tx: Transaction, old: ImageRow, new: ImageRow) -> None:
    """Delete an image; a newer version gets its aliases, its profiles in all projects, and its last use."""
    tx.execute(images_aliases.update().where(images_aliases.c.image_id == old.id).values(image_id=new.id))
    tx.execute(images_profiles.delete().where(images_profiles.c.image_id == new.id))
    kept = sa.select(sa.literal(new.id), images_profiles.c.profile_id).where(
        images_profiles.c.image_id == old.id
    )
    tx.execute(images_profiles.insert().from_select(["image_id", "profile_id"], kept))
    _set(tx, new.id, {"last_use_date": old.last_used_at})
    delete(tx, old.id)


def delete(tx: Transaction, image_id: int) -> None:
    """Delete the row with its properties and aliases, if it exists."""
    tx.execute(images.delete().where(images.c.id == image_id))


def fingerprints_here(tx: Transaction) -> set[str]:
    """Return the fingerprints of the images with files on this member."""
    query = sa.select(images.c.fingerprint).join(images_members, images_members.c.image_id == images.c.id)
    return set(tx.execute(query.where(images_members.c.member_id == tx.member)).scalars())


def projects_with(tx: Transaction, fingerprint: str) -> list[str]:
    """Return the projects that have an image with files on this member; the last one removes the files."""
    return [name for (name,) in tx.fetch(_PROJECTS_WITH, fingerprint=fingerprint, member=tx.member)]


_PROJECTS_WITH = Prepared(
    sa.select(projects.c.name)
    .select_from(_SOURCE.join(images_members, images_members.c.image_id == images.c.id))
    .where(
        images.c.fingerprint == sa.bindparam("fingerprint", type_=sa.Text),
        images_members.c.member_id == sa.bindparam("member", type_=sa.Integer),
    )
    .order_by(projects.c.name)
)


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
    rows.update(tx, images, image_id, _NOT_FOUND, **values)


def share_with(tx: Transaction, project: str) -> None:
    """Have the images of `default` use the profile `default` of a project that begins to share them."""
    own = _profiles_of(project)
    tx.execute(images_profiles.delete().where(images_profiles.c.profile_id.in_(own)))
    query = (
        sa.select(images.c.id, profiles.c.id)
        .select_from(_SOURCE.join(profiles, sa.true()))
        .where(projects.c.name == DEFAULT_PROJECT, profiles.c.id.in_(own), profiles.c.name == "default")
    )
    tx.execute(images_profiles.insert().from_select(["image_id", "profile_id"], query))


def _profiles_of(project: str) -> sa.Select[Any]:
    owner = projects.alias("owner")
    return (
        sa.select(profiles.c.id)
        .join(owner, owner.c.id == profiles.c.project_id)
        .where(owner.c.name == project)
    )


def _holder(tx: Transaction, row: ImageRow) -> str:
    return row.profiles_of or effective(tx, row.project, "profiles")


def _insert_profiles(tx: Transaction, image_id: int, row: ImageRow) -> None:
    if not row.profiles:
        return
    rows.distinct(row.profiles, "A profile can stand only once in an image")
    known = rows.profile_ids(tx, _holder(tx, row), row.profiles)
    tx.execute(
        images_profiles.insert(), [{"image_id": image_id, "profile_id": known[name]} for name in row.profiles]
    )


def _insert_default_profiles(tx: Transaction, image_id: int, row: ImageRow) -> None:
    """Have a new image use the profile `default` of all other projects that share it."""
    images_of, profiles_of = all_effective(tx, "images"), all_effective(tx, "profiles")
    sharing = {profiles_of[project] for project, holder in images_of.items() if holder == row.project}
    for project in sharing - {_holder(tx, row)}:
        query = sa.select(sa.literal(image_id), profiles.c.id).where(
            profiles.c.id.in_(_profiles_of(project)), profiles.c.name == "default"
        )
        tx.execute(images_profiles.insert().from_select(["image_id", "profile_id"], query))


def _load(tx: Transaction, where: sa.ColumnElement[bool], viewer: str) -> list[ImageRow]:
    query = (
        sa.select(images, projects.c.name.label("project"), *_ORIGIN)
        .select_from(_SOURCE.outerjoin(images_source, images_source.c.image_id == images.c.id))
        .where(where)
        .order_by(projects.c.name, images.c.fingerprint)
    )
    found = tx.execute(query).all()
    if not found:
        return []
    parts = _PARTS_OF_ONE.fetch(tx, image=found[0].id) if len(found) == 1 else _PARTS.fetch(tx)
    properties, applied, places = parts
    holders = all_effective(tx, "profiles")
    return [
        _row(r, properties[r.id], holders[viewer or r.project], applied[r.id], places[r.id], tx.member)
        for r in found
    ]


class _PartQueries:
    """The queries for what belongs to the images whose ids `owners` selects."""

    def __init__(self, owners: rows.Owners) -> None:
        owner = projects.alias("owner")
        self._properties = Prepared(rows.config_query(images_properties, "image_id", owners))
        self._profiles = Prepared(
            sa.select(images_profiles.c.image_id, owner.c.name, profiles.c.name)
            .join(profiles, profiles.c.id == images_profiles.c.profile_id)
            .join(owner, owner.c.id == profiles.c.project_id)
            .where(images_profiles.c.image_id.in_(owners))
            .order_by(images_profiles.c.image_id, profiles.c.id)
        )
        self._members = Prepared(
            sa.select(images_members.c.image_id, members.c.id, members.c.name)
            .join(members, members.c.id == images_members.c.member_id)
            .where(images_members.c.image_id.in_(owners))
            .order_by(images_members.c.image_id, members.c.name)
        )

    def fetch(self, tx: Transaction, **values: int) -> _Parts:
        applied: defaultdict[int, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for image_id, holder, name in tx.fetch(self._profiles, **values):
            applied[image_id][holder].append(name)
        places: defaultdict[int, dict[int, str]] = defaultdict(dict)
        for image_id, member_id, name in tx.fetch(self._members, **values):
            places[image_id][member_id] = name
        return _Parts(rows.configs(tx.fetch(self._properties, **values)), applied, places)


class _Parts(NamedTuple):
    """By the id of the image."""

    properties: Mapping[int, dict[str, str]]
    profiles: Mapping[int, Mapping[str, list[str]]]
    """Names, by the project that holds the profiles."""
    members: Mapping[int, Mapping[int, str]]
    """The names of the members that have its files, by the member's id."""


_PARTS = _PartQueries(sa.select(images.c.id))
_PARTS_OF_ONE = _PartQueries(sa.select(sa.bindparam("image", type_=sa.Integer)))


def _row(
    r: sa.Row[Any],
    properties: dict[str, str],
    holder: str,
    applied: Mapping[str, list[str]],
    places: Mapping[int, str],
    here: int,
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
        profiles=applied.get(holder, []),
        profiles_of=holder,
        locations=tuple(places.values()),
        here=here in places,
        source=_origin(reader, r),
    )


def _origin(reader: codes.Reader, r: sa.Row[Any]) -> ImageOrigin | None:
    if r.protocol is None:
        return None
    return ImageOrigin(r.server, reader.word(codes.IMAGE_PROTOCOLS, r.protocol), r.certificate, r.alias)
