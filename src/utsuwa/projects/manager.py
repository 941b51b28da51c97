"""The projects manager: projects are namespaces of objects, with features, limits and restrictions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import AlreadyExists, Forbidden, InUse, InvalidConfig, InvalidRequest
from utsuwa.core.names import DEFAULT_PROJECT, check_project_name
from utsuwa.core.project_keys import NEW_PROJECT, PROJECT_KEYS
from utsuwa.core.scope import Scope
from utsuwa.core.tasks import finish
from utsuwa.core.urls import object_url
from utsuwa.db import images as image_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db import projects as rows
from utsuwa.db import storage_pools as pool_rows
from utsuwa.db.database import Database
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.projects import Contents, ProjectRow
from utsuwa.db.transaction import Transaction
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Operations
from utsuwa.projects import limits, rules
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.projects import Project, ProjectPut, ProjectResource, ProjectsPost, ProjectState

NO_LIMIT = -1

DEFAULT_PROFILE = "default"

_RENAME_SECONDS = 5.0
"""Seconds that a request to rename a project waits for the end of the operation, which is short."""

_POOL_LIMIT = "limits.disk.pool."

DropCached = Callable[[str], Awaitable[None]]
"""Removes the cached images of a project."""

_RESOURCES = {
    "containers": "limits.containers",
    "cpu": "limits.cpu",
    "disk": "limits.disk",
    "instances": "limits.instances",
    "memory": "limits.memory",
    "networks": "limits.networks",
    "processes": "limits.processes",
    "virtual-machines": "limits.virtual-machines",
}
"""The resources of a project's state, and the keys of their limits."""


def editable(row: ProjectRow) -> ProjectPut:
    return ProjectPut(description=row.description, config=row.config)


class ProjectManager:
    """All projects. `default` always exists."""

    def __init__(self, database: Database, operations: Operations) -> None:
        self._database = database
        self._operations = operations
        self._events = operations.events
        self._one_change = asyncio.Lock()
        self._drop_cached: list[DropCached] = []
        self._listeners: list[Callable[[], Awaitable[None]]] = []

    def drop_cached_by(self, drop: DropCached) -> None:
        """Have `drop` remove the cached images of a project that is deleted, or no longer has its own."""
        self._drop_cached.append(drop)

    def on_names_changed(self, listener: Callable[[], Awaitable[None]]) -> None:
        """Call `listener` when a project has been renamed or deleted, before its name can be used again."""
        self._listeners.append(listener)

    async def names(self, scope: Scope) -> list[str]:
        found = await self._database.read("projects", rows.get_all)
        return [row.name for row in found if scope.sees(row.name)]

    async def list(self, scope: Scope) -> list[Project]:
        """Return all projects with their users, in a constant number of queries."""

        def fetch(tx: Transaction) -> tuple[Collection[ProjectRow], Mapping[str, Contents]]:
            return rows.get_all(tx), rows.contents(tx)

        found, contents = await self._database.read("projects", fetch)
        return [_shown(row, contents[row.name]) for row in found if scope.sees(row.name)]

    async def get(self, name: str) -> tuple[Project, ProjectRow]:
        """Return the project's record and row (for its ETag). Raises NotFound."""

        def fetch(tx: Transaction) -> tuple[ProjectRow, Mapping[str, Contents]]:
            return rows.get(tx, name), rows.contents(tx)

        row, contents = await self._database.read("project", fetch)
        return _shown(row, contents[name]), row

    async def check(self, name: str) -> None:
        """Raise NotFound if the project does not exist. To be called where a request is received."""
        if name != DEFAULT_PROJECT:
            await self._database.read("project is there", rows.check, name)

    async def state(self, name: str) -> ProjectState:
        """Return the limits and the resource usage of a project. Raises NotFound."""

        def fetch(tx: Transaction) -> tuple[Mapping[str, str], limits.Usage]:
            return rows.get_config(tx, name), limits.usage(tx, name)

        config, used = await self._database.read("project state", fetch)
        return ProjectState(
            resources={
                resource: ProjectResource(
                    limit=_limit(key, config.get(key, "")), usage=used.amounts.get(key, 0)
                )
                for resource, key in _RESOURCES.items()
            }
        )

    async def create(self, request: ProjectsPost) -> str:
        """Create a project, with a profile `default` if it has its own profiles, and return its URL.

        Raises InvalidName, InvalidConfig, AlreadyExists.
        """
        name = check_project_name(request.name)
        config = {**NEW_PROJECT, **PROJECT_KEYS.set_only(request.config)}
        PROJECT_KEYS.check(config)
        row = ProjectRow(id=0, name=name, description=request.description, config=config)
        await self._database.write("create project", _insert, row)
        return self._tell("created", name)

    async def edit(self, name: str, change: Change[ProjectPut], if_match: IfMatch) -> None:
        """Change the editable part: features only of an empty project, and limits not below their usage.

        Raises NotFound, PreconditionFailed, InvalidConfig, InvalidRequest, InUse.
        """
        await finish(self._edit(name, change, if_match))

    async def _edit(self, name: str, change: Change[ProjectPut], if_match: IfMatch) -> None:
        async with self._one_change:
            old = await self._database.read("project", rows.get, name)
            new = _with(old, edited(editable(old), change, if_match))
            PROJECT_KEYS.check(new.config)
            if _features(old.config) != _features(new.config):
                if name == DEFAULT_PROJECT:
                    raise InvalidRequest("The features of the default project cannot be changed")
                await self._empty(name)
            # Instances are judged by the restrictions, and stored, under this lock.
            async with self._database.locks.hold("allocations"):
                await self._database.write("update project", _update, change, if_match, name)
        self._tell("updated", name)

    async def rename(self, name: str, new: str) -> Operation:
        """Rename an empty project in the background. Raises Forbidden (`default`), as `delete`,
        InvalidName, AlreadyExists."""
        check_project_name(new)
        if name == DEFAULT_PROJECT:
            raise Forbidden("The 'default' project cannot be renamed")
        await self._database.read("project can be renamed", _check_rename, name, new)

        async def run(_: Operation) -> None:
            await finish(self._rename(name, new))

        operation = self._operations.start(kinds.PROJECT_RENAME, "", run)
        await operation.wait(_RENAME_SECONDS)  # pylxd uses the new name without waiting
        return operation

    async def _rename(self, name: str, new: str) -> None:
        def rename(tx: Transaction) -> None:
            _check_rename(tx, name, new)
            rows.rename(tx, rows.get(tx, name).id, new)

        async with self._one_change:
            await self._database.write("rename project", rename)
            await self._names_changed()
        self._tell("renamed", new, {"old_name": name})

    async def delete(self, name: str) -> None:
        """Delete an empty project, with its cached images and its profile `default`.

        Raises Forbidden (`default`), NotFound, InUse.
        """
        await finish(self._delete(name))

    async def _delete(self, name: str) -> None:
        if name == DEFAULT_PROJECT:
            raise Forbidden("The 'default' project cannot be deleted")

        def delete(tx: Transaction) -> None:
            _check_empty(tx, name, without_cache=True)
            rows.delete(tx, rows.get(tx, name).id)

        async with self._one_change:
            await self._empty(name)
            await self._database.write("delete project", delete)
            await self._names_changed()
        self._tell("deleted", name)

    async def _empty(self, name: str) -> None:
        """Remove the cached images of a project. Raises NotFound, InUse if it has anything else."""
        await self._database.read("project is empty", _check_empty, name)
        for drop in self._drop_cached:
            await drop(name)

    async def _names_changed(self) -> None:
        for listener in self._listeners:
            await listener()

    def _tell(self, action: str, name: str, context: Mapping[str, Any] | None = None) -> str:
        url = object_url("projects", name)
        self._events.publish_lifecycle(f"project-{action}", url, name, context)
        return url


def _limit(key: str, text: str) -> int:
    amount = limits.amount_of(key, text)
    return NO_LIMIT if amount is None else amount


def _insert(tx: Transaction, row: ProjectRow) -> None:
    _check_pools(tx, row.config, {})
    rows.insert(tx, row)
    if row.has("profiles"):
        _insert_default_profile(tx, row.name)
    _share_images(tx, row)


def _insert_default_profile(tx: Transaction, project: str) -> None:
    description = f"Default LXD profile for project {project}"
    profile_rows.insert(tx, ProfileRow(0, project, DEFAULT_PROFILE, description))


def _share_images(tx: Transaction, row: ProjectRow) -> None:
    """Have the images of `default` use the profile of a project that has its own profiles, but no images."""
    if row.has("profiles") and not row.has("images"):
        image_rows.share_with(tx, row.name)


def _with(row: ProjectRow, wanted: ProjectPut) -> ProjectRow:
    config = PROJECT_KEYS.set_only(wanted.config, row.config)
    return replace(row, description=wanted.description, config=config)


def _features(config: Mapping[str, str]) -> set[str]:
    """Return the features that are on."""
    return {key for key, value in config.items() if key.startswith("features.") and parse_bool(value)}


def _update(tx: Transaction, change: Change[ProjectPut], if_match: IfMatch, name: str) -> None:
    """Store the change, and check everything in the project against the new limits and restrictions."""
    old = rows.get(tx, name)
    new = _with(old, edited(editable(old), change, if_match))
    PROJECT_KEYS.check(new.config)
    _check_pools(tx, new.config, old.config)
    if _features(old.config) != _features(new.config):
        _check_empty(tx, name, without_cache=True)  # cached images refer to profiles, too
    rows.update(tx, new)
    if new.has("profiles") and not old.has("profiles"):
        _insert_default_profile(tx, name)
    elif old.has("profiles") and not new.has("profiles"):
        profile_rows.delete(tx, profile_rows.get(tx, name, DEFAULT_PROFILE).id)
    if _features(old.config) != _features(new.config):
        _share_images(tx, new)
    try:
        rules.check(tx, name)
    except Forbidden as error:
        raise InvalidRequest(f"The project cannot be changed so: {error.message}") from error


def _check_pools(tx: Transaction, config: Mapping[str, str], old: Mapping[str, str]) -> None:
    """Raise InvalidConfig for a new limit on a pool that does not exist, which would limit nothing."""
    new = sorted(key for key in config if key.startswith(_POOL_LIMIT) and key not in old)
    known = {pool.name for pool in pool_rows.get_all(tx)} if new else frozenset[str]()
    for key in new:
        if key.removeprefix(_POOL_LIMIT) not in known:
            raise InvalidConfig(
                f"Invalid key {key!r}: this storage pool does not exist: create it, or choose one of "
                "`utsuwa storage list`"
            )


def _check_rename(tx: Transaction, name: str, new: str) -> None:
    _check_empty(tx, name)
    if any(other.name == new for other in rows.get_all(tx)):
        raise AlreadyExists(rows.already_exists(new))


def _check_empty(tx: Transaction, name: str, *, without_cache: bool = False) -> None:
    """Raise InUse if a project has more than its default profile, and cached images unless `without_cache`.

    Raises NotFound.
    """
    rows.check(tx, name)
    inside = rows.contents(tx)[name]
    ignored = () if without_cache else inside.cached
    found = {
        "instances": inside.instances,
        "images": [image[:12] for image in inside.images if image not in ignored],
        "profiles": [profile for profile in inside.profiles if profile != DEFAULT_PROFILE],
        "volumes": [f"{pool}/{volume}" for pool, volume in inside.volumes],
        "networks": inside.networks,
    }
    used = [f"{kind} {', '.join(names[:3])}{_more(names)}" for kind, names in found.items() if names]
    if used:
        raise InUse(f"The project {name!r} is not empty, it has {'; '.join(used)}: delete them first")


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""


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
