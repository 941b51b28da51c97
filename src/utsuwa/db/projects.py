"""Projects and their config. The first migration creates `default`, which is always there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import NotFound
from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.db import codes, rows
from utsuwa.db.schema import (
    images,
    instances,
    networks,
    profiles,
    projects,
    projects_config,
    storage_pools,
    storage_volumes,
)
from utsuwa.db.transaction import Prepared, Transaction

Kind = Literal["images", "networks", "profiles", "storage.volumes"]
"""Types of objects that a project has itself if its `features.<kind>` is true, as it always has instances."""

_CONFIGS = (
    sa.select(projects.c.name, rows.json_config(projects_config))
    .select_from(projects.outerjoin(projects_config, projects_config.c.project_id == projects.c.id))
    .group_by(projects.c.name)
)
_ALL_CONFIGS = Prepared(_CONFIGS)
_CONFIG = Prepared(_CONFIGS.where(projects.c.name == sa.bindparam("name", type_=sa.Text)))


@dataclass(frozen=True)
class ProjectRow:
    """`id` is 0 for a row that is not stored yet."""

    id: int
    name: str
    description: str
    config: dict[str, str]

    def has(self, kind: Kind) -> bool:
        """Whether the project has its own objects of a kind."""
        return _has(self.config, kind)


def get(tx: Transaction, name: str) -> ProjectRow:
    """Return a project. Raises NotFound."""
    found = _load(tx, projects.c.name == name)
    if not found:
        raise not_found(name)
    return found[0]


def effective(tx: Transaction, name: str, kind: Kind) -> str:
    """Return the project that holds a project's objects of a type: itself, or `default`. Raises NotFound."""
    if name == DEFAULT_PROJECT:
        return name
    return name if _has(get_config(tx, name), kind) else DEFAULT_PROJECT


def all_effective(tx: Transaction, kind: Kind) -> dict[str, str]:
    """Return the `effective` project of each project; one query."""
    return {
        name: name if name == DEFAULT_PROJECT or _has(config, kind) else DEFAULT_PROJECT
        for name, config in get_configs(tx).items()
    }


def _has(config: Mapping[str, str], kind: Kind) -> bool:
    return parse_bool(config.get(f"features.{kind}", ""))


def not_found(name: str) -> NotFound:
    return NotFound(f"Project {name!r} not found")


def check(tx: Transaction, name: str) -> None:
    """Raise NotFound unless the project exists."""
    get_config(tx, name)


def get_config(tx: Transaction, name: str) -> rows.Config:
    """Return a project's config. Raises NotFound."""
    found = tx.fetch(_CONFIG, name=name)
    if not found:
        raise not_found(name)
    return rows.read_config(found[0][1])


def get_configs(tx: Transaction) -> dict[str, rows.Config]:
    """Return the config of every project by its name."""
    return {name: rows.read_config(text) for name, text in tx.fetch(_ALL_CONFIGS)}


def get_all(tx: Transaction) -> list[ProjectRow]:
    """Return all projects, sorted by name, in two queries."""
    return _load(tx, sa.true())


def insert(tx: Transaction, row: ProjectRow) -> int:
    """Insert a project and return its id. Raises AlreadyExists."""
    with rows.unique(already_exists(row.name)):
        project_id = tx.insert(projects, {"name": row.name, "description": row.description})
    rows.insert_config(tx, projects_config, "project_id", project_id, row.config)
    return project_id


def update(tx: Transaction, row: ProjectRow) -> None:
    """Update description and config. Raises NotFound."""
    statement = projects.update().where(projects.c.id == row.id).values(description=row.description)
    rows.one_changed(tx.execute(statement), f"Project {row.name!r} not found")
    rows.replace_config(tx, projects_config, "project_id", row.id, row.config)


def already_exists(name: str) -> str:
    """Return the message of a name that is in use."""
    return f"Project {name!r} already exists"


def rename(tx: Transaction, project_id: int, new: str) -> None:
    """Rename a project. Raises AlreadyExists, NotFound."""
    with rows.unique(already_exists(new)):
        result = tx.execute(projects.update().where(projects.c.id == project_id).values(name=new))
    rows.one_changed(result, "Project not found")


def delete(tx: Transaction, project_id: int) -> None:
    """Remove a project with everything in it. Raises NotFound."""
    result = tx.execute(projects.delete().where(projects.c.id == project_id))
    rows.one_changed(result, "Project not found")


@dataclass(frozen=True)
class Contents:
    """The objects of a project, sorted; custom volumes as (pool, name).

    `cached` are those of `images` that were downloaded on demand.
    """

    instances: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    volumes: list[tuple[str, str]] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)


def contents(tx: Transaction) -> defaultdict[str, Contents]:
    """Return the objects of every project by its name, in five queries."""
    found: defaultdict[str, Contents] = defaultdict(Contents)
    for project, name in tx.execute(_owned(instances, instances.c.name)):
        found[project].instances.append(name)
    is_cached = sa.and_(images.c.cached, images.c.state == codes.STATES["ready"])
    for project, fingerprint, cached in tx.execute(_owned(images, images.c.fingerprint, is_cached)):
        found[project].images.append(fingerprint)
        if cached:
            found[project].cached.append(fingerprint)
    for project, name in tx.execute(_owned(profiles, profiles.c.name)):
        found[project].profiles.append(name)
    for project, name in tx.execute(_owned(networks, networks.c.name)):
        found[project].networks.append(name)
    volumes = (
        _owned(storage_volumes, storage_volumes.c.name)
        .add_columns(storage_pools.c.name)
        .join(storage_pools, storage_pools.c.id == storage_volumes.c.storage_pool_id)
        .where(storage_volumes.c.type == codes.VOLUME_CUSTOM)
    )
    for project, name, pool in tx.execute(volumes):
        found[project].volumes.append((pool, name))
    return found


def _owned(table: sa.Table, name: sa.Column[str], *more: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return (
        sa.select(projects.c.name, name, *more)
        .select_from(table.join(projects, projects.c.id == table.c.project_id))
        .order_by(projects.c.name, name)
    )


def _load(tx: Transaction, where: sa.ColumnElement[bool]) -> list[ProjectRow]:
    query = sa.select(projects).where(where).order_by(projects.c.name)
    found = tx.execute(query).all()
    config = rows.load_config(tx, projects_config, "project_id", sa.select(projects.c.id).where(where))
    return [ProjectRow(r.id, r.name, r.description, config[r.id]) for r in found]
