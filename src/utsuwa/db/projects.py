"""Projects. There is one so far, `default`, which the first migration makes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import AlreadyExists, NotFound
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
"""What a project has of its own where its `features.<kind>` is true. Instances are always its own."""

_FEATURES = Prepared(
    sa.select(projects.c.id, rows.json_config(projects_config))
    .select_from(projects.outerjoin(projects_config, projects_config.c.project_id == projects.c.id))
    .where(projects.c.name == sa.bindparam("name", type_=sa.Text))
    .group_by(projects.c.id)
)


@dataclass(frozen=True)
class ProjectRow:
    id: int
    name: str
    description: str
    config: dict[str, str]


def get(tx: Transaction, name: str) -> ProjectRow:
    """Raises NotFound."""
    found = _load(tx, projects.c.name == name)
    if not found:
        raise NotFound(f"Project {name!r} not found")
    return found[0]


def effective(tx: Transaction, name: str, kind: Kind) -> str:
    """The project that holds the objects of a kind for a project: itself, or `default`. Raises NotFound."""
    if name == DEFAULT_PROJECT:
        return name
    config = _features(tx, name)
    return name if parse_bool(config.get(f"features.{kind}", "")) else DEFAULT_PROJECT


def check(tx: Transaction, name: str) -> None:
    """Raises NotFound where there is no such project."""
    _features(tx, name)


def _features(tx: Transaction, name: str) -> rows.Config:
    found = tx.fetch(_FEATURES, name=name)
    if not found:
        raise NotFound(f"Project {name!r} not found")
    return rows.read_config(found[0][1])


def get_all(tx: Transaction) -> list[ProjectRow]:
    """All projects by name, in two queries."""
    return _load(tx, sa.true())


def update(tx: Transaction, row: ProjectRow) -> None:
    """Replace description and config; raises NotFound."""
    statement = projects.update().where(projects.c.id == row.id).values(description=row.description)
    rows.one_changed(tx.execute(statement), f"Project {row.name!r} not found")
    rows.replace_config(tx, projects_config, "project_id", row.id, row.config)


def already_exists(name: str) -> AlreadyExists:
    return AlreadyExists(f"Project {name!r} already exists")


@dataclass(frozen=True)
class Contents:
    """What is in a project, sorted; custom volumes as (pool, name)."""

    instances: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    volumes: list[tuple[str, str]] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)


def contents(tx: Transaction) -> defaultdict[str, Contents]:
    """What is in every project, by its name, in five queries."""
    found: defaultdict[str, Contents] = defaultdict(Contents)
    for project, name in tx.execute(_owned(instances, instances.c.name)):
        found[project].instances.append(name)
    for project, fingerprint in tx.execute(_owned(images, images.c.fingerprint)):
        found[project].images.append(fingerprint)
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


def _owned(table: sa.Table, name: sa.Column[str]) -> sa.Select[Any]:
    return (
        sa.select(projects.c.name, name)
        .select_from(table.join(projects, projects.c.id == table.c.project_id))
        .order_by(projects.c.name, name)
    )


def _load(tx: Transaction, where: sa.ColumnElement[bool]) -> list[ProjectRow]:
    query = sa.select(projects).where(where).order_by(projects.c.name)
    found = tx.execute(query).all()
    config = rows.load_config(tx, projects_config, "project_id", sa.select(projects.c.id).where(where))
    return [ProjectRow(r.id, r.name, r.description, config[r.id]) for r in found]
