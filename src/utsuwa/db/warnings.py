"""Warnings: lasting troubles, one row for each type, member, project and entity.

A row refers to its entity by type and id. Ids are never used twice, so a warning whose entity was deleted is
recognized by that: it is not returned, and `prune` removes it.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.urls import object_url
from utsuwa.core.warning_types import WarningType
from utsuwa.db import codes, rows, schema
from utsuwa.db.schema import members, projects, warnings
from utsuwa.db.transaction import Transaction

_STATUSES = codes.WARNING_STATUSES
_NOT_FOUND = "Warning not found"


@dataclass(frozen=True)
class Subject:
    """What a warning is about: an entity by its word in `codes.ENTITY_TYPES` and its id, in a project.

    Without an entity, the host as a whole.
    """

    entity: str = ""
    entity_id: int = 0
    project: str = ""


HOST = Subject()


@dataclass(frozen=True)
class WarningRow:
    """`location` is the name of the member, empty for none; `entity_url` is empty for the server itself."""

    uuid: str
    type_code: int
    status: str
    subject: Subject
    location: str
    here: bool
    count: int
    first_seen: datetime
    last_seen: datetime
    message: str
    entity_url: str = ""


def get(tx: Transaction, wanted: str) -> WarningRow:
    """Raises NotFound."""
    found = _load(tx, warnings.c.uuid == wanted)
    if not found:
        raise NotFound(_NOT_FOUND)
    return found[0]


def get_all(tx: Transaction, project: str | None = None) -> list[WarningRow]:
    """All warnings, or those in a project, the oldest first."""
    return _load(tx, sa.true() if project is None else projects.c.name == project)


def record(
    tx: Transaction, kind: WarningType, subject: Subject, message: str, moment: datetime, *, here: bool = True
) -> None:
    """Store a warning, or that it has occurred again; one that was resolved is new again.

    `here` is False for one that concerns no member. There is one writer per member, the daemon.
    Raises NotFound (project), InvalidRequest (entity).
    """
    key = _key(tx, kind, subject, here=here)
    again = (
        warnings.update()
        .where(*(warnings.c[name].is_not_distinct_from(value) for name, value in key.items()))
        .values(
            last_message=message,
            last_seen_date=moment,
            updated_date=moment,
            count=warnings.c.count + 1,
            status=sa.case(
                (warnings.c.status == _STATUSES["resolved"], _STATUSES["new"]), else_=warnings.c.status
            ),
        )
    )
    if tx.execute(again).rowcount:
        return
    values = {
        "uuid": str(uuid.uuid4()),
        "status": _STATUSES["new"],
        "first_seen_date": moment,
        "last_seen_date": moment,
        "updated_date": moment,
        "last_message": message,
        "count": 1,
    }
    tx.insert(warnings, {**key, **values})


def resolve(tx: Transaction, kind: WarningType, subject: Subject, moment: datetime) -> None:
    """The cause of a warning of this member is gone; does nothing if there is no such warning."""
    entity = _entity(subject)
    of_project = sa.select(projects.c.id).where(projects.c.name == subject.project).scalar_subquery()
    where = (
        warnings.c.member_id == tx.member,
        warnings.c.type_code == kind.code,
        warnings.c.project_id.is_not_distinct_from(of_project if subject.project else None),
        *(warnings.c[name].is_not_distinct_from(value) for name, value in entity.items()),
        warnings.c.status != _STATUSES["resolved"],
    )
    tx.execute(warnings.update().where(*where).values(status=_STATUSES["resolved"], updated_date=moment))


def set_status(tx: Transaction, wanted: str, status: str, moment: datetime) -> None:
    """Raises NotFound."""
    statement = warnings.update().where(warnings.c.uuid == wanted)
    rows.one_changed(tx.execute(statement.values(status=_STATUSES[status], updated_date=moment)), _NOT_FOUND)


def delete(tx: Transaction, wanted: str) -> None:
    """Raises NotFound."""
    rows.one_changed(tx.execute(warnings.delete().where(warnings.c.uuid == wanted)), _NOT_FOUND)


def prune(tx: Transaction, resolved_before: datetime) -> None:
    """Delete warnings that were resolved before a time, and those whose entity was deleted."""
    old = sa.and_(
        warnings.c.status == _STATUSES["resolved"],
        sa.func.coalesce(warnings.c.updated_date, warnings.c.last_seen_date) < resolved_before,
    )
    tx.execute(warnings.delete().where(old))
    for code, query in _ENTITIES.items():
        known = sa.select(query.subquery().c.id)
        tx.execute(
            warnings.delete().where(warnings.c.entity_type_code == code, warnings.c.entity_id.not_in(known))
        )


def subject_of(tx: Transaction, entity_type: int | None, entity_id: int | None, project: str) -> Subject:
    """Return an existing entity by LXD's numbers, both of which may be None.

    Raises InvalidRequest, NotFound (project).
    """
    if project:
        rows.project_id(tx, project)
    if entity_type is None and entity_id is None:
        return Subject(project=project)
    if entity_type is None or entity_type not in _ENTITIES or entity_id is None:
        raise InvalidRequest(f"Invalid entity: type {entity_type}, id {entity_id}")
    if not _urls(tx, entity_type, [entity_id]):
        raise InvalidRequest(f"There is no entity of the type {entity_type} with the id {entity_id}")
    return Subject(codes.word(codes.ENTITY_TYPES, entity_type), entity_id, project)


def _key(tx: Transaction, kind: WarningType, subject: Subject, *, here: bool) -> dict[str, int | None]:
    return {
        "member_id": tx.member if here else None,
        "project_id": rows.project_id(tx, subject.project) if subject.project else None,
        "type_code": kind.code,
        **_entity(subject),
    }


def _entity(subject: Subject) -> dict[str, int | None]:
    if not subject.entity:
        return {"entity_type_code": None, "entity_id": None}
    return {"entity_type_code": codes.ENTITY_TYPES[subject.entity], "entity_id": subject.entity_id}


def _load(tx: Transaction, where: sa.ColumnElement[bool]) -> list[WarningRow]:
    """One query, and one for each type of entity."""
    query = (
        sa.select(warnings, projects.c.name.label("project"), members.c.name.label("location"))
        .select_from(
            warnings.outerjoin(projects, projects.c.id == warnings.c.project_id).outerjoin(
                members, members.c.id == warnings.c.member_id
            )
        )
        .where(where)
        .order_by(warnings.c.id)
    )
    found = tx.execute(query).all()
    wanted: defaultdict[int, list[int]] = defaultdict(list)
    for row in found:
        if row.entity_type_code in _ENTITIES:
            wanted[row.entity_type_code].append(row.entity_id)
    urls = {(code, n): url for code, ids in wanted.items() for n, url in _urls(tx, code, ids).items()}
    return [
        _row(tx, row, urls.get((row.entity_type_code, row.entity_id), ""))
        for row in found
        if row.entity_type_code is None or (row.entity_type_code, row.entity_id) in urls
    ]


def _row(tx: Transaction, row: Any, url: str) -> WarningRow:
    kind = codes.ENTITY_TYPES.words.get(row.entity_type_code, "")
    return WarningRow(
        uuid=row.uuid,
        type_code=row.type_code,
        status=_STATUSES.words.get(row.status, codes.UNKNOWN),
        subject=Subject(kind, row.entity_id or 0, row.project or ""),
        location=row.location or "",
        here=row.member_id == tx.member,
        count=row.count,
        first_seen=row.first_seen_date,
        last_seen=row.last_seen_date,
        message=row.last_message,
        entity_url=url,
    )


def _named(table: sa.Table, *path: str) -> sa.Select[Any]:
    """The id, project and URL path of each row of a table that has a project."""
    return sa.select(
        table.c.id, projects.c.name.label("project"), sa.literal(path[0]), table.c[path[1]]
    ).join(projects, projects.c.id == table.c.project_id)


def _global(table: sa.Table, *path: str) -> sa.Select[Any]:
    """The same of a table without projects."""
    return sa.select(
        table.c.id, sa.literal("default").label("project"), sa.literal(path[0]), table.c[path[1]]
    )


_INSTANCES = _named(schema.instances, "instances", "name")
_VOLUME_TYPES = sa.case(
    *((schema.storage_volumes.c.type == number, word) for word, number in codes.VOLUME_TYPES.items())
)
_ENTITIES: Mapping[int, sa.Select[Any]] = {
    codes.ENTITY_TYPES["container"]: _INSTANCES,
    codes.ENTITY_TYPES["image"]: _named(schema.images, "images", "fingerprint"),
    codes.ENTITY_TYPES["profile"]: _named(schema.profiles, "profiles", "name"),
    codes.ENTITY_TYPES["project"]: _global(projects, "projects", "name"),
    codes.ENTITY_TYPES["certificate"]: _global(schema.certificates, "certificates", "fingerprint"),
    codes.ENTITY_TYPES["instance"]: _INSTANCES,
    codes.ENTITY_TYPES["network"]: _named(schema.networks, "networks", "name"),
    codes.ENTITY_TYPES["storage-pool"]: _global(schema.storage_pools, "storage-pools", "name"),
    codes.ENTITY_TYPES["storage-volume"]: sa.select(
        schema.storage_volumes.c.id,
        projects.c.name.label("project"),
        sa.literal("storage-pools"),
        schema.storage_pools.c.name,
        sa.literal("volumes"),
        _VOLUME_TYPES,
        schema.storage_volumes.c.name,
    )
    .join(projects, projects.c.id == schema.storage_volumes.c.project_id)
    .join(schema.storage_pools, schema.storage_pools.c.id == schema.storage_volumes.c.storage_pool_id),
}
"""For each type of entity, a query of ids, projects and the parts of the URL's path."""


def _urls(tx: Transaction, code: int, ids: Iterable[int]) -> dict[int, str]:
    """The URLs of the entities that exist."""
    query = _ENTITIES[code]
    column = query.selected_columns[0]
    return {
        number: object_url(*path, project=project)
        for number, project, *path in tx.execute(query.where(column.in_(sorted(set(ids)))))
    }
