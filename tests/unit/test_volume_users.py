"""The instances and profiles that have custom volumes, and what their devices say after a move."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import prepared
from utsuwa.core import clock
from utsuwa.core.refs import InstanceRef
from utsuwa.core.volumes import Volume
from utsuwa.db import instances, profiles, projects, volume_users
from utsuwa.db.database import Database
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.instances import InstanceRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.projects import ProjectRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_users import User

Devices = dict[str, dict[str, str]]
DISK = {"type": "disk", "pool": "p", "source": "v1", "path": "/mnt"}
ROOT = {"type": "disk", "pool": "p", "path": "/"}
V1 = Volume("custom", "default", "v1")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = await Database.open(prepared.sqlite(tmp_path / "test.db"))
    yield found
    await found.close()


def instance(tx: Transaction, name: str, devices: Devices, project: str = "default") -> None:
    data = InstanceData("x86_64", devices=devices)
    instances.insert(tx, InstanceRow(0, InstanceRef(project, name), data, clock.now(), state="ready"))


async def test_users_and_what_follows_a_volume(database: Database) -> None:
    def prepare(tx: Transaction) -> None:
        projects.insert(tx, ProjectRow(0, "own", "", {"features.storage.volumes": "true"}))
        projects.insert(tx, ProjectRow(0, "shares", "", {}))
        instance(tx, "twice", {"root": ROOT, "a": DISK, "b": {**DISK, "path": "/b"}})
        instance(tx, "host", {"root": ROOT, "a": {"type": "disk", "source": "v1", "path": "/mnt"}})
        instance(tx, "nic", {"a": {"type": "nic", "pool": "p", "source": "v1"}})
        instance(tx, "elsewhere", {"a": {**DISK, "pool": "q"}})
        instance(tx, "theirs", {"a": DISK}, "own")
        instance(tx, "shared", {"a": DISK}, "shares")
        profiles.insert(tx, ProfileRow(0, "default", "prof", devices={"a": DISK}))

    await database.write("test", prepare)
    users = await database.read("test", volume_users.get_of, "p", V1)
    expected = [
        User("instances", "default", "twice"),
        User("instances", "shares", "shared"),
        User("profiles", "default", "prof"),
    ]
    assert users == expected
    assert await database.read("test", volume_users.get_of, "p", Volume("custom", "own", "v1")) == [
        User("instances", "own", "theirs")
    ]
    followed = await database.write("test", volume_users.follow, "p", V1, "r", "v9")
    assert sorted(set(followed)) == expected
    assert await database.read("test", volume_users.get_of, "p", V1) == ()
    assert (
        await database.read("test", volume_users.get_of, "r", Volume("custom", "default", "v9")) == expected
    )

    def devices(tx: Transaction) -> Devices:
        return instances.get(tx, InstanceRef("default", "twice")).data.devices

    moved = {"pool": "r", "source": "v9", "type": "disk"}
    assert await database.read("test", devices) == {
        "root": ROOT,
        "a": {**moved, "path": "/mnt"},
        "b": {**moved, "path": "/b"},
    }
