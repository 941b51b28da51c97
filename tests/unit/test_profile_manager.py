"""Profiles as their manager keeps them: rules, events, followers, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.support import prepared
from tests.support.managers import ROOT, Events, use
from utsuwa.core.errors import (
    AlreadyExists,
    Forbidden,
    InUse,
    InvalidConfig,
    InvalidName,
    NotFound,
    NotSupportedYet,
    PreconditionFailed,
)
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import EVERYTHING, Policy
from utsuwa.db import projects as project_rows
from utsuwa.db import schema
from utsuwa.db import storage_pools as pool_rows
from utsuwa.db.database import Database
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.projects import ProjectRow
from utsuwa.db.storage_pools import PoolRow
from utsuwa.db.transaction import Transaction
from utsuwa.profiles.manager import ProfileManager, Store, editable
from utsuwa.wire.edits import any_state, merge, replace
from utsuwa.wire.profiles import ProfilePatch, ProfilePut, ProfilesPost

FREE = EVERYTHING.policy
NIC = {"type": "nic", "nictype": "p2p"}


def changed_meanwhile(source: Any) -> None:
    raise PreconditionFailed("changed")


class Follow:
    """A follower that notes changes, and refuses or fails as it is told."""

    def __init__(self) -> None:
        self.changes: list[tuple[ProfileRow, ProfileRow]] = []
        self.undone: list[str] = []
        self.refusal: Exception | None = None
        self.failure: Exception | None = None
        self.inside = self.inside_at_undo = self.storing_at_undo = False
        self.storing = False
        self.stored: list[str] = []

    @asynccontextmanager
    async def __call__(
        self, policy: Policy, old: ProfileRow, new: ProfileRow, undo: Rollback
    ) -> AsyncIterator[AbstractAsyncContextManager[Store]]:
        self.changes.append((old, new))
        undo.push(self._undo, new.name)
        if self.refusal is not None:
            raise self.refusal
        self.inside = True
        try:
            yield self._storing()
        finally:
            self.inside = False

    @asynccontextmanager
    async def _storing(self) -> AsyncIterator[Store]:
        self.storing = True
        try:
            yield self._store
        finally:
            self.storing = False
        self.stored.append("told")

    def _store(self, tx: Transaction) -> None:
        if self.failure is not None:
            raise self.failure
        tx.execute(schema.profiles.update().values(description="stored with it"))

    def _undo(self, name: str) -> None:
        self.undone.append(name)
        self.inside_at_undo, self.storing_at_undo = self.inside, self.storing


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
def profiles(database: Database, events: Events) -> ProfileManager:
    return ProfileManager(database, events)


async def names(profiles: ProfileManager, project: str) -> list[str]:
    return [shown.name for shown in await profiles.list(EVERYTHING, project)]


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
    assert await names(profiles, "default") == ["default", "web"]
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
    assert await names(profiles, "default") == ["default"]
    assert events.seen == []


async def test_an_unknown_project_has_no_profiles(profiles: ProfileManager) -> None:
    for call in (
        names(profiles, "nope"),
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
    assert seen == [ProfilePut(description="Default LXD profile")]


async def test_followers_see_both_states_before_anything_is_stored(profiles: ProfileManager) -> None:
    follow = Follow()
    profiles.on_change(follow)
    await profiles.edit(FREE, "default", "default", replace(ProfilePut(config={"user.a": "1"})), any_state)
    ((old, new),) = follow.changes
    assert (old.config, new.config) == ({}, {"user.a": "1"})
    assert (old.id, follow.undone, follow.stored) == (new.id, [], ["told"])
    assert (await profiles.get(EVERYTHING, "default", "default"))[1].description == "stored with it"


async def test_a_follower_that_refuses_reverts_the_change(profiles: ProfileManager, events: Events) -> None:
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


async def test_failed_write_is_undone(profiles: ProfileManager, events: Events) -> None:
    """Nothing of the profile or of its instances is stored, and no lock of the transaction is held then."""
    first, second = Follow(), Follow()
    second.failure = Forbidden("over the limit")
    profiles.on_change(first)
    profiles.on_change(second)
    with pytest.raises(Forbidden, match="over the limit"):
        await profiles.edit(
            FREE, "default", "default", replace(ProfilePut(config={"user.a": "1"})), any_state
        )
    for follow in (first, second):
        assert (follow.undone, follow.stored) == (["default"], [])
        assert (follow.inside_at_undo, follow.storing_at_undo) == (True, False)
    row = (await profiles.get(EVERYTHING, "default", "default"))[1]
    assert (row.config, row.description) == ({}, "Default LXD profile")
    assert events.seen == []


async def test_an_invalid_change_reaches_no_follower(profiles: ProfileManager) -> None:
    follow = Follow()
    profiles.on_change(follow)
    with pytest.raises(InvalidConfig):
        await profiles.edit(
            FREE, "default", "default", replace(ProfilePut(config={"limits.cpu": "x"})), any_state
        )
    assert follow.changes == []


async def test_a_disconnected_caller_leaves_a_complete_change(profiles: ProfileManager) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def follow(
        policy: Policy, old: ProfileRow, new: ProfileRow, undo: Rollback, /
    ) -> AsyncIterator[AbstractAsyncContextManager[Store]]:
        started.set()
        await go.wait()
        yield nullcontext(lambda _: None)

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


async def test_concurrent_changes_are_all_applied(profiles: ProfileManager) -> None:
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
    assert await names(profiles, "default") == ["b", "c", "default"]


async def test_deleting(profiles: ProfileManager, database: Database, events: Events) -> None:
    await profiles.create(FREE, "default", ProfilesPost(name="a"))
    await profiles.create(FREE, "default", ProfilesPost(name="b"))
    await use(database, "c1", "a")
    with pytest.raises(InUse, match="Profile 'a' is currently in use: remove it first"):
        await profiles.delete("default", "a")
    with pytest.raises(Forbidden, match="'default' profile cannot be deleted"):
        await profiles.delete("default", "default")
    with pytest.raises(NotFound):
        await profiles.delete("default", "nope")
    await profiles.delete("default", "b")
    assert await names(profiles, "default") == ["a", "default"]
    assert events.seen[-1] == ("profile-deleted", "/1.0/profiles/b", "default")


async def test_a_project_without_profiles_of_its_own_has_the_default_ones(
    profiles: ProfileManager, database: Database
) -> None:
    await database.write("test", lambda tx: tx.insert(schema.projects, {"name": "other", "description": ""}))
    assert await profiles.create(FREE, "other", ProfilesPost(name="web")) == "/1.0/profiles/web"
    assert await names(profiles, "default") == await names(profiles, "other") == ["default", "web"]
    assert [shown.name for shown in await profiles.list(EVERYTHING, "other")] == ["default", "web"]
    change = merge(ProfilePatch(description="new"))
    await profiles.edit(FREE, "other", "web", change, any_state)
    assert (await profiles.get(EVERYTHING, "other", "web"))[0].description == "new"
    await profiles.rename("other", "web", "net")
    assert (await profiles.get(EVERYTHING, "default", "net"))[1].project == "default"
    await profiles.delete("other", "net")
    assert await names(profiles, "default") == ["default"]


async def test_instances_that_nobody_changes_now_are_checked_as_well(
    profiles: ProfileManager, database: Database
) -> None:
    """Those on other members use a new profile from their next start."""
    config = {"restricted": "true", "limits.memory": "1GiB"}
    await database.write("test", project_rows.insert, ProjectRow(0, "web", "", config))
    await profiles.create(FREE, "default", ProfilesPost(name="a", config={"limits.memory": "1GiB"}))
    await use(database, "c1", "a", project="web")
    for key, value, why in (
        ("security.nesting", "true", r"Instance 'c1': Project 'web' does not allow nesting"),
        ("limits.memory", "2GiB", r"'web' has the limit limits\.memory=1GiB"),
    ):
        with pytest.raises(Forbidden, match=why):
            await profiles.edit(FREE, "default", "a", merge(ProfilePatch(config={key: value})), any_state)
    assert (await profiles.get(EVERYTHING, "default", "a"))[1].config == {"limits.memory": "1GiB"}
