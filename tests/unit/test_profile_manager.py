"""Profiles and projects as their managers keep them: rules, events, followers, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from utsuwa.core.errors import (
    AlreadyExists,
    Forbidden,
    InUse,
    InvalidConfig,
    InvalidName,
    InvalidRequest,
    NotFound,
    NotSupportedYet,
    PreconditionFailed,
)
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import EVERYTHING, Policy
from utsuwa.db import instances as instance_rows
from utsuwa.db import schema
from utsuwa.db import storage_pools as pool_rows
from utsuwa.db.database import Database
from utsuwa.db.instances import InstanceRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.sqlite import Sqlite
from utsuwa.db.storage_pools import PoolRow
from utsuwa.operations.events import EventHub
from utsuwa.profiles.manager import ProfileManager, editable
from utsuwa.projects import manager as project_manager
from utsuwa.projects.manager import ProjectManager
from utsuwa.wire.edits import any_state, merge, replace
from utsuwa.wire.profiles import ProfilePatch, ProfilePut, ProfilesPost
from utsuwa.wire.projects import ProjectPatch, ProjectPut, ProjectsPost

FREE = EVERYTHING.policy
ROOT = {"type": "disk", "path": "/", "pool": "p"}
NIC = {"type": "nic", "nictype": "p2p"}


def changed_meanwhile(source: Any) -> None:
    raise PreconditionFailed("changed")


class Events(EventHub):
    """A hub that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, str]] = []
        self.contexts: list[Any] = []

    def publish_lifecycle(
        self,
        action: str,
        source: str,
        project: str = "",
        context: Any = None,
    ) -> None:
        self.seen.append((action, source, project))
        self.contexts.append(context)


class Follow:
    """A follower that notes changes, and refuses or fails as it is told."""

    def __init__(self) -> None:
        self.changes: list[tuple[ProfileRow, ProfileRow]] = []
        self.undone: list[str] = []
        self.refusal: Exception | None = None
        self.inside = self.inside_at_undo = False

    @asynccontextmanager
    async def __call__(
        self, policy: Policy, old: ProfileRow, new: ProfileRow, undo: Rollback
    ) -> AsyncIterator[None]:
        self.changes.append((old, new))
        undo.push(self._undo, new.name)
        if self.refusal is not None:
            raise self.refusal
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def _undo(self, name: str) -> None:
        self.undone.append(name)
        self.inside_at_undo = self.inside


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(Sqlite(tmp_path / "utsuwa.db"))
    await opened.write("test", pool_rows.insert, PoolRow(0, "p", "dir", state="ready"))
    yield opened
    await opened.close()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def profiles(database: Database, events: Events) -> ProfileManager:
    return ProfileManager(database, events)


@pytest.fixture
def projects(database: Database) -> ProjectManager:
    return ProjectManager(database)


async def use(database: Database, name: str, *names: str, **config: str) -> None:
    row = InstanceRow(
        id=0,
        project="default",
        name=name,
        architecture="x86_64",
        ephemeral=False,
        stateful=False,
        description="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        last_used_at=None,
        config={key.replace("_", "."): value for key, value in config.items()},
        devices={"root": {**ROOT, "size": "1GiB"}},
        profiles=list(names),
    )
    await database.write("test", instance_rows.insert, row)


# ---- profiles


async def test_a_profile_is_created_and_shown(profiles: ProfileManager, events: Events) -> None:
    url = await profiles.create(
        FREE,
        "default",
        ProfilesPost(name="web", description="x", config={"user.a": "1", "user.b": ""}, devices={"n": NIC}),
    )
    assert url == "/1.0/profiles/web"
    shown, row = await profiles.get(EVERYTHING, "default", "web")
    assert (shown.name, shown.config, shown.devices, shown.used_by) == (
        "web",
        {"user.a": "1"},
        {"n": NIC},
        [],
    )
    assert editable(row) == ProfilePut(config={"user.a": "1"}, description="x", devices={"n": NIC})
    assert await profiles.names("default") == ["default", "web"]
    assert events.seen == [("profile-created", "/1.0/profiles/web", "default")]


@pytest.mark.parametrize(
    ("fields", "error", "why"),
    [
        ({"name": ""}, InvalidName, "cannot be empty"),
        ({"name": "a/b"}, InvalidName, "no slashes"),
        ({"name": "x" * 65}, InvalidName, "longer than 64"),
        ({"name": "default"}, AlreadyExists, "already exists"),
        ({"config": {"limits.cpu": "x"}}, InvalidConfig, "limits.cpu"),
        ({"config": {"nothing": "x"}}, InvalidConfig, "Unknown configuration key 'nothing' for profiles"),
        ({"config": {"volatile.uuid": "x"}}, InvalidConfig, "for profiles"),
        ({"devices": {"d": {"path": "/"}}}, InvalidConfig, "'type' is required"),
        ({"devices": {"d": {"type": "floppy"}}}, InvalidConfig, "floppy"),
        ({"devices": {"d": {"type": "gpu"}}}, NotSupportedYet, "gpu"),
        ({"devices": {"d": {**ROOT, "pool": "nope"}}}, InvalidConfig, "pool 'nope' does not exist"),
        ({"devices": {"a": ROOT, "b": ROOT}}, InvalidConfig, "both root disks"),
    ],
)
async def test_a_profile_that_cannot_be(
    profiles: ProfileManager, events: Events, fields: dict[str, Any], error: type[Exception], why: str
) -> None:
    request = ProfilesPost(**{"name": "web", **fields})
    with pytest.raises(error, match=why):
        await profiles.create(FREE, "default", request)
    assert await profiles.names("default") == ["default"]
    assert events.seen == []


async def test_an_unknown_project_has_no_profiles(profiles: ProfileManager) -> None:
    for call in (
        profiles.names("nope"),
        profiles.list(EVERYTHING, "nope"),
        profiles.get(EVERYTHING, "nope", "default"),
        profiles.create(FREE, "nope", ProfilesPost(name="x")),
    ):
        with pytest.raises(NotFound, match="Project 'nope' not found"):
            await call


async def test_a_profile_names_its_users(profiles: ProfileManager, database: Database) -> None:
    await use(database, "c1", "default")
    (shown,) = await profiles.list(EVERYTHING, "default")
    assert shown.used_by == ["/1.0/instances/c1"]
    assert (await profiles.get(EVERYTHING, "default", "default"))[0].used_by == ["/1.0/instances/c1"]


async def test_put_replaces_and_patch_merges(profiles: ProfileManager, events: Events) -> None:
    first = ProfilePut(description="x", config={"user.a": "1", "user.b": "2"}, devices={"n": NIC})
    await profiles.edit(FREE, "default", "default", replace(first), any_state)
    part = ProfilePatch(config={"user.b": "", "user.c": "3"}, devices={"root": ROOT})
    await profiles.edit(FREE, "default", "default", merge(part), any_state)
    row = (await profiles.get(EVERYTHING, "default", "default"))[1]
    assert editable(row) == ProfilePut(
        config={"user.a": "1", "user.c": "3"}, description="x", devices={"n": NIC, "root": ROOT}
    )
    await profiles.edit(FREE, "default", "default", merge(ProfilePatch(description="y")), any_state)
    await profiles.edit(FREE, "default", "default", merge(ProfilePatch()), any_state)
    row = (await profiles.get(EVERYTHING, "default", "default"))[1]
    assert (row.description, row.devices) == ("y", {"n": NIC, "root": ROOT})
    await profiles.edit(FREE, "default", "default", replace(ProfilePut()), any_state)
    row = (await profiles.get(EVERYTHING, "default", "default"))[1]
    assert editable(row) == ProfilePut()
    assert events.seen == [("profile-updated", "/1.0/profiles/default", "default")] * 5


async def test_a_change_asks_for_the_etag_first(profiles: ProfileManager, events: Events) -> None:
    with pytest.raises(PreconditionFailed):
        await profiles.edit(
            FREE, "default", "default", replace(ProfilePut(config={"user.a": "1"})), changed_meanwhile
        )
    assert (await profiles.get(EVERYTHING, "default", "default"))[1].config == {}
    assert events.seen == []
    seen: list[Any] = []
    await profiles.edit(FREE, "default", "default", replace(ProfilePut()), seen.append)
    assert seen == [ProfilePut(description="Default Utsuwa profile")]


async def test_followers_see_both_states_before_anything_is_stored(profiles: ProfileManager) -> None:
    follow = Follow()
    profiles.on_change(follow)
    await profiles.edit(FREE, "default", "default", replace(ProfilePut(config={"user.a": "1"})), any_state)
    ((old, new),) = follow.changes
    assert (old.config, new.config) == ({}, {"user.a": "1"})
    assert (old.id, follow.undone) == (new.id, [])


async def test_a_follower_that_refuses_undoes_the_whole(profiles: ProfileManager, events: Events) -> None:
    first, second = Follow(), Follow()
    second.refusal = InvalidConfig("a running instance cannot take it")
    profiles.on_change(first)
    profiles.on_change(second)
    with pytest.raises(InvalidConfig, match="cannot take it"):
        await profiles.edit(
            FREE, "default", "default", replace(ProfilePut(config={"user.a": "1"})), any_state
        )
    assert (first.undone, second.undone) == (["default"], ["default"])
    assert first.inside_at_undo, "instances were let go before all was undone"
    assert not first.inside
    assert (await profiles.get(EVERYTHING, "default", "default"))[1].config == {}
    assert events.seen == []


async def test_an_invalid_change_reaches_no_follower(profiles: ProfileManager) -> None:
    follow = Follow()
    profiles.on_change(follow)
    with pytest.raises(InvalidConfig):
        await profiles.edit(
            FREE, "default", "default", replace(ProfilePut(config={"limits.cpu": "x"})), any_state
        )
    assert follow.changes == []


async def test_a_caller_that_goes_away_leaves_a_whole_change(profiles: ProfileManager) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def follow(
        policy: Policy, old: ProfileRow, new: ProfileRow, undo: Rollback, /
    ) -> AsyncIterator[None]:
        started.set()
        await go.wait()
        yield

    profiles.on_change(follow)
    change = profiles.edit(FREE, "default", "default", replace(ProfilePut(config={"user.a": "1"})), any_state)
    task = asyncio.create_task(change)
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await profiles.get(EVERYTHING, "default", "default"))[1].config == {"user.a": "1"}


async def test_changes_at_once_lose_nothing(profiles: ProfileManager) -> None:
    parts = [ProfilePatch(config={f"user.{n}": "x"}) for n in range(15)]
    await asyncio.gather(
        *[profiles.edit(FREE, "default", "default", merge(part), any_state) for part in parts]
    )
    assert len((await profiles.get(EVERYTHING, "default", "default"))[1].config) == 15


async def test_renaming(profiles: ProfileManager, database: Database, events: Events) -> None:
    await profiles.create(FREE, "default", ProfilesPost(name="a"))
    await profiles.create(FREE, "default", ProfilesPost(name="b"))
    await use(database, "c1", "a")
    assert await profiles.rename("default", "a", "c") == "/1.0/profiles/c"
    assert (await profiles.get(EVERYTHING, "default", "c"))[0].used_by == ["/1.0/instances/c1"]
    assert events.seen[-1] == ("profile-renamed", "/1.0/profiles/c", "default")
    assert events.contexts[-1] == {"old_name": "a"}
    for name, new, error in (
        ("default", "x", Forbidden),
        ("c", "b", AlreadyExists),
        ("c", "a/b", InvalidName),
        ("a", "d", NotFound),
    ):
        with pytest.raises(error):
            await profiles.rename("default", name, new)
    assert await profiles.names("default") == ["b", "c", "default"]


async def test_deleting(profiles: ProfileManager, database: Database, events: Events) -> None:
    await profiles.create(FREE, "default", ProfilesPost(name="a"))
    await profiles.create(FREE, "default", ProfilesPost(name="b"))
    await use(database, "c1", "a")
    with pytest.raises(InUse, match="Profile is currently in use"):
        await profiles.delete("default", "a")
    with pytest.raises(Forbidden, match="'default' profile cannot be deleted"):
        await profiles.delete("default", "default")
    with pytest.raises(NotFound):
        await profiles.delete("default", "nope")
    await profiles.delete("default", "b")
    assert await profiles.names("default") == ["a", "default"]
    assert events.seen[-1] == ("profile-deleted", "/1.0/profiles/b", "default")


# ---- projects


async def test_the_default_project_is_shown(
    projects: ProjectManager, profiles: ProfileManager, database: Database
) -> None:
    await profiles.create(FREE, "default", ProfilesPost(name="a"))
    await use(database, "c1", "a")
    shown, row = await projects.get("default")
    assert shown.used_by == ["/1.0/instances/c1", "/1.0/profiles/a", "/1.0/profiles/default"]
    assert shown.config["features.images"] == "true"
    assert await projects.list(EVERYTHING) == [shown]
    assert await projects.names(EVERYTHING) == ["default"]
    assert project_manager.editable(row) == ProjectPut(description=shown.description, config=shown.config)


async def test_what_the_default_project_takes_on_and_refuses(projects: ProjectManager) -> None:
    features = (await projects.get("default"))[0].config
    await projects.edit(
        "default", replace(ProjectPut(description="mine", config={**features, "user.a": "1"})), any_state
    )
    await projects.edit("default", merge(ProjectPatch(config={"user.a": "", "user.b": "2"})), any_state)
    shown = (await projects.get("default"))[0]
    assert (shown.description, shown.config) == ("mine", {**features, "user.b": "2"})
    for config, error in (
        ({}, InvalidRequest),
        ({**features, "features.images": "false"}, InvalidRequest),
        ({**features, "limits.memory": "1GiB"}, NotSupportedYet),
        ({**features, "restricted": "true"}, NotSupportedYet),
        ({**features, "nothing": "1"}, InvalidConfig),
    ):
        with pytest.raises(error):
            await projects.edit("default", replace(ProjectPut(config=config)), any_state)
    with pytest.raises(PreconditionFailed):
        await projects.edit("default", merge(ProjectPatch(description="x")), changed_meanwhile)
    assert (await projects.get("default"))[0] == shown


async def test_other_projects_come_later(projects: ProjectManager) -> None:
    with pytest.raises(NotSupportedYet, match="'web' cannot be created"):
        await projects.create(ProjectsPost(name="web"))
    with pytest.raises(AlreadyExists):
        await projects.create(ProjectsPost(name="default"))
    with pytest.raises(InvalidName):
        await projects.create(ProjectsPost(name="a_b"))
    with pytest.raises(Forbidden, match="cannot be renamed"):
        await projects.rename("default", "x")
    with pytest.raises(Forbidden, match="cannot be deleted"):
        await projects.delete("default")
    for call in (
        projects.get("web"),
        projects.state("web"),
        projects.rename("web", "x"),
        projects.delete("web"),
        projects.edit("web", replace(ProjectPut()), any_state),
    ):
        with pytest.raises(NotFound, match="Project 'web' not found"):
            await call


async def test_the_state_sums_what_instances_may_take(
    projects: ProjectManager, profiles: ProfileManager, database: Database
) -> None:
    limits = {"limits.memory": "1GiB", "limits.cpu": "2"}
    await profiles.create(FREE, "default", ProfilesPost(name="a", config=limits))
    await use(database, "c1", "a", limits_processes="100")
    await use(database, "c2", "a", limits_memory="50%", limits_cpu="0-3")
    resources = (await projects.state("default")).resources
    assert {name: resource.usage for name, resource in resources.items()} == {
        "containers": 2,
        "cpu": 2,
        "disk": 2 * 2**30,
        "instances": 2,
        "memory": 2**30,
        "networks": 0,
        "processes": 100,
        "virtual-machines": 0,
    }
    assert {resource.limit for resource in resources.values()} == {-1}
    assert msgspec.to_builtins(resources["cpu"]) == {"Limit": -1, "Usage": 2}


async def test_a_project_without_profiles_of_its_own_has_the_default_ones(
    profiles: ProfileManager, database: Database
) -> None:
    await database.write("test", lambda tx: tx.insert(schema.projects, {"name": "other", "description": ""}))
    assert await profiles.create(FREE, "other", ProfilesPost(name="web")) == "/1.0/profiles/web"
    assert await profiles.names("default") == await profiles.names("other") == ["default", "web"]
    assert [shown.name for shown in await profiles.list(EVERYTHING, "other")] == ["default", "web"]
    change = merge(ProfilePatch(description="new"))
    await profiles.edit(FREE, "other", "web", change, any_state)
    assert (await profiles.get(EVERYTHING, "other", "web"))[0].description == "new"
    await profiles.rename("other", "web", "net")
    assert (await profiles.get(EVERYTHING, "default", "net"))[1].project == "default"
    await profiles.delete("other", "net")
    assert await profiles.names("default") == ["default"]
