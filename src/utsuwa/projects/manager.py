"""Projects. So far there is only `default`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from utsuwa.core.errors import Forbidden, InvalidRequest, NotFound, NotSupportedYet
from utsuwa.core.names import DEFAULT_PROJECT, check_project_name
from utsuwa.core.project_keys import PROJECT_KEYS
from utsuwa.core.scope import EVERYTHING, Scope
from utsuwa.core.urls import object_url
from utsuwa.db import instances as instance_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db import projects as rows
from utsuwa.db.database import Database
from utsuwa.db.projects import Contents, ProjectRow
from utsuwa.db.transaction import Transaction
from utsuwa.projects.allocations import allocated
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.projects import (
    Project,
    ProjectPut,
    ProjectResource,
    ProjectsPost,
    ProjectState,
)

NO_LIMIT = -1


def editable(row: ProjectRow) -> ProjectPut:
    return ProjectPut(description=row.description, config=row.config)


class ProjectManager:
    """All projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def names(self, scope: Scope) -> list[str]:
        found = await self._database.read("projects", rows.get_all)
        return [row.name for row in found if scope.sees(row.name)]

    async def list(self, scope: Scope) -> list[Project]:
        """Return all projects with their users, in a constant number of queries."""

        def fetch(tx: Transaction) -> tuple[Collection[ProjectRow], Mapping[str, rows.Contents]]:
            return rows.get_all(tx), rows.contents(tx)

        found, contents = await self._database.read("projects", fetch)
        return [_shown(row, contents[row.name]) for row in found if scope.sees(row.name)]

    async def get(self, name: str) -> tuple[Project, ProjectRow]:
        """Return the project's record and row (for its ETag). Raises NotFound."""

        def fetch(tx: Transaction) -> tuple[ProjectRow, Mapping[str, rows.Contents]]:
            return rows.get(tx, name), rows.contents(tx)

        row, contents = await self._database.read("project", fetch)
        return _shown(row, contents[name]), row

    async def check(self, name: str) -> None:
        """Raise NotFound if the project does not exist. To be called where a request is received."""
        if name != DEFAULT_PROJECT:
            await self._database.read("project is there", rows.check, name)

    async def create(self, request: ProjectsPost) -> str:
        """Raise InvalidName, AlreadyExists if it exists, otherwise NotSupportedYet."""
        name = check_project_name(request.name)
        if name in await self.names(EVERYTHING):
            raise rows.already_exists(name)
        raise NotSupportedYet(
            f"Project {name!r} cannot be created: only the project 'default' is supported yet"
        )

    async def edit(self, name: str, change: Change[ProjectPut], if_match: IfMatch) -> None:
        """Change the editable part; of the config only `user.*` can change so far.

        Raises NotFound, PreconditionFailed, InvalidConfig.
        """

        def update(tx: Transaction) -> None:
            old = rows.get(tx, name)
            wanted = edited(editable(old), change, if_match)
            _check(old.config, wanted.config)
            rows.update(tx, replace(old, description=wanted.description, config=wanted.config))

        await self._database.write("update project", update)

    async def rename(self, name: str, new: str) -> None:
        """Raises Forbidden for `default`, NotFound for all others."""
        check_project_name(new)
        self._refuse(name, "renamed")

    async def delete(self, name: str) -> None:
        """Raises Forbidden for `default`, NotFound for all others."""
        self._refuse(name, "deleted")

    async def state(self, name: str) -> ProjectState:
        """Return the resource usage of a project, without limits so far. Raises NotFound."""
        counts = await self._database.read("project state", _counts, name)
        return ProjectState(
            resources={key: ProjectResource(limit=NO_LIMIT, usage=n) for key, n in counts.items()}
        )

    def _refuse(self, name: str, change: str) -> None:
        if name == DEFAULT_PROJECT:
            raise Forbidden(f"The 'default' project cannot be {change}")
        raise NotFound(f"Project {name!r} not found")


def _counts(tx: Transaction, name: str) -> dict[str, int]:
    rows.get(tx, name)
    instances = instance_rows.get_all(tx, name)
    profiles = {row.id: row for row in profile_rows.get_all(tx, None)}
    return {
        "containers": len(instances),
        "instances": len(instances),
        "virtual-machines": 0,
        "networks": len(rows.contents(tx)[name].networks),
        **allocated(instances, profiles),
    }


def _check(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for key in new:
        if key.startswith(("limits.", "restricted")):
            raise NotSupportedYet(f"{key[:60]!r}: limits and restrictions of projects are not supported yet")
    PROJECT_KEYS.check(new)
    for feature in PROJECT_KEYS.keys:
        if old.get(feature.name, "") != new.get(feature.name, ""):
            raise InvalidRequest("The features of the default project cannot be changed")


def _shown(row: ProjectRow, inside: Contents) -> Project:
    paths = [
        *(("instances", name) for name in inside.instances),
        *(("images", fingerprint) for fingerprint in inside.images),
        *(("profiles", name) for name in inside.profiles),
        *(("storage-pools", pool, "volumes", "custom", name) for pool, name in inside.volumes),
        *(("networks", name) for name in inside.networks),
    ]
    return Project(
        name=row.name,
        description=row.description,
        config=row.config,
        used_by=[object_url(*path, project=row.name) for path in paths],
    )
