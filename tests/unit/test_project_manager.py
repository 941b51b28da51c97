"""Projects as their manager keeps them: features, what counts as empty, limits, refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace as with_values
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support import prepared
from tests.support.managers import Events, use
from utsuwa.core.errors import (
    AlreadyExists,
    Forbidden,
    InUse,
    InvalidConfig,
    InvalidName,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    UtsuwaError,
)
from utsuwa.core.scope import EVERYTHING
from utsuwa.db import images as image_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db import projects as rows
from utsuwa.db import storage_pools as pool_rows
from utsuwa.db.database import Database
from utsuwa.db.images import ImageRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.storage_pools import PoolRow
from utsuwa.db.transaction import Transaction
from utsuwa.operations.operations import Operations
from utsuwa.projects import manager as project_manager
from utsuwa.projects.manager import ProjectManager
from utsuwa.wire.edits import any_state, merge, replace
from utsuwa.wire.projects import ProjectPatch, ProjectPut, ProjectsPost

IMAGE = ImageRow(
    id=0,
    project="web",
    fingerprint="a" * 64,
    filename="",
    size=1000,
    architecture="x86_64",
    created_at=None,
    expires_at=None,
    uploaded_at=datetime(2026, 1, 1, tzinfo=UTC),
    public=False,
    cached=True,
    properties={},
    split=False,
    trusted=False,
    profiles=["default"],
    state="ready",
)


def changed_meanwhile(source: Any) -> None:
    raise PreconditionFailed("changed")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(prepared.sqlite(tmp_path / "utsuwa.db"))
    await opened.write("test", pool_rows.insert, PoolRow(0, "p", "dir", state="ready"))
    yield opened
    await opened.close()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def projects(database: Database, events: Events) -> ProjectManager:
    async def drop_cached(project: str) -> None:
        def drop(tx: Transaction) -> None:
            for row in image_rows.get_all(tx, project):
                if row.cached:
                    image_rows.delete(tx, row.id)

        await database.write("test", drop)

    manager = ProjectManager(database, Operations(events))
    manager.drop_cached_by(drop_cached)
    return manager


async def patch(projects: ProjectManager, name: str, **config: str) -> None:
    """Change keys of a project; underscores in their names stand for dots."""
    changes = {key.replace("_", "."): value for key, value in config.items()}
    await projects.edit(name, merge(ProjectPatch(config=changes)), any_state)


async def renamed(projects: ProjectManager, name: str, new: str) -> None:
    operation = await projects.rename(name, new)
    await operation.wait()
    assert operation.error == ""


async def profiles_of(database: Database, project: str) -> list[ProfileRow]:
    return await database.read("test", profile_rows.get_all, project)


async def test_the_default_project_is_shown(projects: ProjectManager, database: Database) -> None:
    await database.write("test", profile_rows.insert, ProfileRow(0, "default", "a"))
    await use(database, "c1", "a")
    shown, row = await projects.get("default")
    assert shown.used_by == ["/1.0/instances/c1", "/1.0/profiles/a", "/1.0/profiles/default"]
    assert shown.config["features.images"] == "true"
    assert await projects.list(EVERYTHING) == [shown]
    assert await projects.names(EVERYTHING) == ["default"]
    assert project_manager.editable(row) == ProjectPut(description=shown.description, config=shown.config)


async def test_default_project_accepts_limits_but_not_features(projects: ProjectManager) -> None:
    features = (await projects.get("default"))[0].config
    await projects.edit(
        "default", replace(ProjectPut(description="mine", config={**features, "user.a": "1"})), any_state
    )
    await projects.edit("default", merge(ProjectPatch(config={"user.a": "", "user.b": "2"})), any_state)
    await patch(projects, "default", limits_instances="5")
    shown = (await projects.get("default"))[0]
    assert (shown.description, shown.config) == (
        "mine",
        {**features, "user.b": "2", "limits.instances": "5"},
    )
    for config, error in (
        ({}, InvalidRequest),
        ({**features, "features.images": "false"}, InvalidRequest),
        ({**features, "nothing": "1"}, InvalidConfig),
    ):
        with pytest.raises(error):
            await projects.edit("default", replace(ProjectPut(config=config)), any_state)
    with pytest.raises(PreconditionFailed):
        await projects.edit("default", merge(ProjectPatch(description="x")), changed_meanwhile)
    assert (await projects.get("default"))[0] == shown
    for change in (projects.rename("default", "x"), projects.delete("default")):
        with pytest.raises(Forbidden, match="cannot be (renamed|deleted)"):
            await change


async def test_the_life_of_a_project(projects: ProjectManager, database: Database, events: Events) -> None:
    request = ProjectsPost(name="web", description="x", config={"features.images": "false", "user.a": ""})
    assert await projects.create(request) == "/1.0/projects/web"
    shown = (await projects.get("web"))[0]
    assert shown.config == {
        "features.images": "false",
        "features.profiles": "true",
        "features.storage.volumes": "true",
    }
    assert shown.used_by == ["/1.0/profiles/default?project=web"]
    assert [row.description for row in await profiles_of(database, "web")] == [
        "Default LXD profile for project web"
    ]
    await renamed(projects, "web", "net")
    assert await projects.names(EVERYTHING) == ["default", "net"]
    await projects.delete("net")
    assert await projects.names(EVERYTHING) == ["default"]
    assert events.seen == [
        ("project-created", "/1.0/projects/web", "web"),
        ("project-renamed", "/1.0/projects/net", "net"),
        ("project-deleted", "/1.0/projects/net", "net"),
    ]
    assert events.contexts[1] == {"old_name": "web"}


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ProjectsPost(name=""), InvalidName),
        (ProjectsPost(name="a_b"), InvalidName),
        (ProjectsPost(name="a/b"), InvalidName),
        (ProjectsPost(name=".."), InvalidName),
        (ProjectsPost(name="default"), AlreadyExists),
        (ProjectsPost(name="x", config={"garbage": "1"}), InvalidConfig),
        (ProjectsPost(name="x", config={"limits.containers": "xxx"}), InvalidConfig),
        (ProjectsPost(name="x", config={"limits.virtual-machines": "-1"}), InvalidConfig),
        (ProjectsPost(name="x", config={"limits.memory": "10%"}), InvalidConfig),
        (ProjectsPost(name="x", config={"features.images": "perhaps"}), InvalidConfig),
        (ProjectsPost(name="x", config={"restricted.devices.nic": "some"}), InvalidConfig),
        (ProjectsPost(name="x", config={"restricted.devices.disk.paths": "relative"}), InvalidConfig),
        (ProjectsPost(name="x", config={"restricted.idmap.uid": "9-1"}), InvalidConfig),
        (ProjectsPost(name="x", config={"restricted.networks.subnets": "10.0.0.0/8"}), InvalidConfig),
        (ProjectsPost(name="x", config={"network.hwaddr_pattern": "10:66"}), InvalidConfig),
    ],
)
async def test_projects_that_are_refused(
    projects: ProjectManager, request_: ProjectsPost, error: type[UtsuwaError]
) -> None:
    with pytest.raises(error):
        await projects.create(request_)
    assert await projects.names(EVERYTHING) == ["default"]


async def test_a_missing_project(projects: ProjectManager) -> None:
    for call in (
        projects.get("web"),
        projects.state("web"),
        projects.rename("web", "x"),
        projects.delete("web"),
        projects.edit("web", replace(ProjectPut()), any_state),
    ):
        with pytest.raises(NotFound, match="Project 'web' not found"):
            await call


async def test_names_that_a_project_cannot_get(projects: ProjectManager) -> None:
    await projects.create(ProjectsPost(name="web"))
    for new, error in (("a_b", InvalidName), ("default", AlreadyExists), ("web", AlreadyExists)):
        with pytest.raises(error):
            await projects.rename("web", new)
    assert await projects.names(EVERYTHING) == ["default", "web"]


async def test_names_are_free_again_only_when_listeners_know(projects: ProjectManager) -> None:
    seen: list[list[str]] = []

    async def listener() -> None:
        seen.append(await projects.names(EVERYTHING))

    projects.on_names_changed(listener)
    await projects.create(ProjectsPost(name="web"))
    await renamed(projects, "web", "net")
    await projects.delete("net")
    assert seen == [["default", "net"], ["default"]]


async def test_a_project_that_is_used_keeps_name_and_features(
    projects: ProjectManager, database: Database
) -> None:
    await projects.create(ProjectsPost(name="web"))
    await use(database, "c1", "default", project="web")
    before = (await projects.get("web"))[0]
    for change in (
        projects.rename("web", "net"),
        projects.delete("web"),
        patch(projects, "web", features_profiles="false"),
        patch(projects, "web", features_networks="true"),
    ):
        with pytest.raises(InUse, match="'web' is not empty, it has instances c1"):
            await change
    await patch(projects, "web", user_a="1")
    assert (await projects.get("web"))[0] == msgspec.structs.replace(
        before, config={**before.config, "user.a": "1"}
    )


async def test_profiles_off_on_and_off_again(projects: ProjectManager, database: Database) -> None:
    await projects.create(ProjectsPost(name="web"))
    for _ in range(2):
        await patch(projects, "web", features_profiles="false")
        assert await profiles_of(database, "web") == []
        await patch(projects, "web", features_profiles="true")
        assert [row.name for row in await profiles_of(database, "web")] == ["default"]
    await database.write("test", profile_rows.insert, ProfileRow(0, "web", "more"))
    with pytest.raises(InUse, match="profiles more"):
        await patch(projects, "web", features_profiles="false")


async def test_cached_images_do_not_keep_a_project(projects: ProjectManager, database: Database) -> None:
    await projects.create(ProjectsPost(name="web"))
    for change in (
        patch(projects, "web", features_profiles="false"),
        patch(projects, "web", features_images="false"),
        projects.delete("web"),
    ):
        await database.write("test", image_rows.insert, IMAGE)
        await change
        assert await database.read("test", image_rows.get_all, None) == []
    await projects.create(ProjectsPost(name="web"))
    await database.write("test", image_rows.insert, with_values(IMAGE, cached=False))
    with pytest.raises(InUse, match="images aaaaaaaaaaaa"):
        await projects.delete("web")


async def test_a_limit_below_the_usage_is_refused(projects: ProjectManager, database: Database) -> None:
    await projects.create(ProjectsPost(name="web"))
    await use(database, "c1", "default", project="web", limits_memory="1GiB")
    await use(database, "c2", "default", project="web", limits_memory="1GiB", limits_cpu="0-1")
    for key, value, why in (
        ("limits_containers", "1", "limits.containers=1, but 2 would be used"),
        ("limits_instances", "1", "limits.instances=1, but 2 would be used"),
        ("limits_memory", "2047MiB", "but 2147483648 bytes would be used"),
        ("limits_disk", "1GiB", "but 2147483648 bytes would be used"),
        ("limits_disk_pool_p", "1GiB", "but 2147483648 bytes would be used"),
        ("limits_processes", "1000", "the instance 'c1' has no limits.processes"),
        ("limits_cpu", "8", "has no limits.cpu that can be added up"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            await patch(projects, "web", **{key: value})
    await patch(projects, "web", limits_containers="2", limits_memory="2GiB", limits_disk="2GiB")


async def test_new_limits_are_of_pools_that_exist(projects: ProjectManager, database: Database) -> None:
    """A limit of another one would limit nothing."""
    with pytest.raises(InvalidConfig, match=r"'limits\.disk\.pool\.q': this storage pool does not exist"):
        await projects.create(ProjectsPost(name="web", config={"limits.disk.pool.q": "1GiB"}))
    await projects.create(ProjectsPost(name="web", config={"limits.disk.pool.p": "1GiB"}))
    with pytest.raises(InvalidConfig, match=r"'limits\.disk\.pool\.q'"):
        await patch(projects, "web", limits_disk_pool_q="1GiB")
    pool = await database.read("test", pool_rows.get, "p")
    await database.write("test", pool_rows.delete, pool.id)
    await patch(projects, "web", limits_disk_pool_p="2GiB", user_x="1")  # it may be deleted later


async def test_limit_of_zero_cannot_be_added_up(projects: ProjectManager, database: Database) -> None:
    await projects.create(ProjectsPost(name="web"))
    await use(database, "c1", "default", project="web", limits_memory="0")
    with pytest.raises(InvalidRequest, match=r"the instance 'c1' has no limits\.memory"):
        await patch(projects, "web", limits_memory="1GiB")


async def test_restrictions_that_something_violates_are_refused(
    projects: ProjectManager, database: Database
) -> None:
    await projects.create(ProjectsPost(name="web"))
    nesting = ProfileRow(0, "web", "nesting", config={"security.nesting": "true"})
    await database.write("test", profile_rows.insert, nesting)
    with pytest.raises(InvalidRequest, match="Profile 'nesting': .* nesting"):
        await patch(projects, "web", restricted="true")
    await patch(projects, "web", restricted="true", restricted_containers_nesting="allow")
    await use(database, "c1", "nesting", project="web")
    with pytest.raises(InvalidRequest, match=r"restricted\.containers\.nesting=block"):
        await patch(projects, "web", restricted_containers_nesting="block")
    await patch(projects, "web", restricted="false", restricted_containers_nesting="block")


async def test_the_state_shows_limits_and_sums(projects: ProjectManager, database: Database) -> None:
    limits = {"limits.memory": "1GiB", "limits.cpu": "2"}
    await database.write("test", profile_rows.insert, ProfileRow(0, "default", "a", config=limits))
    await use(database, "c1", "a", limits_processes="100")
    await use(database, "c2", "a", limits_memory="50%", limits_cpu="0-3")
    await patch(projects, "default", limits_disk="3GiB", limits_networks="7")
    resources = (await projects.state("default")).resources
    assert {name: (resource.usage, resource.limit) for name, resource in resources.items()} == {
        "containers": (2, -1),
        "cpu": (2, -1),
        "disk": (2 * 2**30, 3 * 2**30),
        "instances": (2, -1),
        "memory": (2**30, -1),
        "networks": (0, 7),
        "processes": (100, -1),
        "virtual-machines": (0, -1),
    }
    assert msgspec.to_builtins(resources["cpu"]) == {"Limit": -1, "Usage": 2}


async def test_configs_are_read_for_all_projects(projects: ProjectManager, database: Database) -> None:
    await projects.create(ProjectsPost(name="web"))
    configs = await database.read("test", rows.get_configs)
    assert configs == {row.name: row.config for row in await database.read("test", rows.get_all)}
