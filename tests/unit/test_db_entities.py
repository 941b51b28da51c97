"""Every entity module: what is stored comes back, constraints become typed errors, lists take few queries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from utsuwa.core.errors import (
    AlreadyExists,
    InUse,
    InvalidConfig,
    InvalidName,
    InvalidRequest,
    NotFound,
)
from utsuwa.db import (
    certificates,
    codes,
    config,
    image_aliases,
    images,
    instances,
    networks,
    profiles,
    projects,
    rows,
    schema,
    storage_pools,
    storage_volumes,
)
from utsuwa.db.certificates import CertificateRow
from utsuwa.db.connection import Connection
from utsuwa.db.engine import Database
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.db.instances import InstanceRow
from utsuwa.db.networks import NetworkRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.storage_pools import PoolRow
from utsuwa.db.storage_volumes import VolumeRow

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
FINGERPRINT = "ab" * 32


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "utsuwa.db")
    yield opened
    await opened.close()


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[Connection]:
    async with database.write("test") as connection:
        yield connection


def instance(name: str = "c1", **fields: Any) -> InstanceRow:
    row = InstanceRow(
        id=0,
        project="default",
        name=name,
        architecture="x86_64",
        ephemeral=False,
        stateful=False,
        description="",
        created_at=NOON,
        last_used_at=None,
    )
    return replace(row, **fields)


def image(fingerprint: str = FINGERPRINT, **fields: Any) -> ImageRow:
    row = ImageRow(
        id=0,
        project="default",
        fingerprint=fingerprint,
        filename="image.tar.xz",
        size=2**40,
        architecture="x86_64",
        created_at=NOON,
        expires_at=None,
        uploaded_at=NOON,
    )
    return replace(row, **fields)


def volume(name: str, type: int = codes.VOLUME_CONTAINER, **fields: Any) -> VolumeRow:
    row = VolumeRow(id=0, project="default", pool="p", name=name, type=type, description="", created_at=NOON)
    return replace(row, **fields)


async def second_project(conn: Connection, name: str = "other") -> None:
    await conn.execute(schema.projects.insert().values(name=name, description=""))


async def count_statements(conn: Connection) -> list[str]:
    """Everything that SQLite is asked from now on."""
    seen: list[str] = []

    def watch(connection: sa.Connection) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_trace_callback(seen.append)

    await conn.run(watch)
    return seen


# ---- instances


async def test_names_are_those_of_whole_instances(conn: Connection) -> None:
    await second_project(conn)
    await instances.insert(conn, instance("b", state="ready"))
    await instances.insert(conn, instance("a", state="ready"))
    await instances.insert(conn, instance("half", state="creating"))
    await instances.insert(conn, instance("c", project="other", state="ready"))
    assert await instances.names(conn, "default") == [("default", "a"), ("default", "b")]
    assert await instances.names(conn, None) == [("default", "a"), ("default", "b"), ("other", "c")]


async def test_a_project_is_there_or_not(conn: Connection) -> None:
    await projects.check(conn, "default")
    with pytest.raises(NotFound, match="Project 'other' not found"):
        await projects.check(conn, "other")


async def test_an_instance_comes_back_as_it_was(conn: Connection) -> None:
    await profiles.insert(conn, ProfileRow(0, "default", "a"))
    row = instance(
        ephemeral=True,
        stateful=True,
        description="täglich",
        last_used_at=NOON + timedelta(days=1),
        config={"user.x": "line\nline", "limits.cpu": "2"},
        devices={"root": {"type": "disk", "path": "/", "pool": "p"}, "n": {"type": "none"}},
        profiles=["default", "a"],
        state="ready",
    )
    row = replace(row, id=await instances.insert(conn, row))
    stored = (await instances.get_all(conn, None))[0]
    assert list(stored.config) == ["limits.cpu", "user.x"]
    assert list(stored.devices) == ["n", "root"]
    assert list(stored.devices["root"]) == ["type", "path", "pool"]
    assert await instances.get(conn, "default", "c1") == row
    assert await instances.get_all(conn, None) == [row]
    assert await instances.get_all(conn, "other") == []


async def test_what_is_empty_is_not_set(conn: Connection) -> None:
    row = instance(config={"user.x": ""}, devices={"n": {"type": "nic", "name": ""}})
    await instances.insert(conn, row)
    found = await instances.get(conn, "default", "c1")
    assert (found.config, found.devices) == ({}, {"n": {"type": "nic"}})


async def test_the_order_of_profiles_is_kept(conn: Connection) -> None:
    for name in ("a", "b", "c"):
        await profiles.insert(conn, ProfileRow(0, "default", name))
    row = instance(profiles=["c", "default", "a", "b"])
    row = replace(row, id=await instances.insert(conn, row))
    assert (await instances.get(conn, "default", "c1")).profiles == row.profiles
    row = replace(row, profiles=["b", "c"])
    await instances.update(conn, row)
    assert (await instances.get(conn, "default", "c1")).profiles == ["b", "c"]


async def test_an_update_replaces_all_that_is_editable(conn: Connection) -> None:
    row = instance(config={"user.a": "1", "user.b": "2"}, devices={"n": {"type": "nic", "mtu": "9"}})
    row = replace(row, id=await instances.insert(conn, row))
    new = replace(
        row,
        architecture="aarch64",
        ephemeral=True,
        description="new",
        config={"user.b": "3"},
        devices={"d": {"type": "disk"}},
        profiles=["default"],
    )
    await instances.update(conn, new)
    assert await instances.get(conn, "default", "c1") == new


async def test_a_patch_leaves_other_keys(conn: Connection) -> None:
    row_id = await instances.insert(conn, instance(config={"user.a": "1", "user.b": "2"}))
    await instances.patch_config(conn, row_id, {"user.a": None, "user.b": "3", "user.c": "4", "user.d": ""})
    await instances.patch_config(conn, row_id, {})
    assert (await instances.get(conn, "default", "c1")).config == {"user.b": "3", "user.c": "4"}
    await instances.patch_config(conn, row_id + 1, {"user.a": "1"})


async def test_the_steps_of_an_instances_life(conn: Connection) -> None:
    row_id = await instances.insert(conn, instance())
    await instances.set_ready(conn, row_id)
    await instances.set_last_used(conn, row_id, NOON)
    await instances.rename(conn, row_id, "c2")
    found = await instances.get(conn, "default", "c2")
    assert (found.state, found.last_used_at) == ("ready", NOON)
    await instances.set_deleting(conn, row_id)
    assert (await instances.get(conn, "default", "c2")).state == "deleting"
    await instances.delete(conn, row_id)
    await instances.delete(conn, row_id)
    with pytest.raises(NotFound):
        await instances.get(conn, "default", "c2")
    for table in (schema.instances_config, schema.instances_devices, schema.instances_profiles):
        assert (await conn.execute(sa.select(table))).all() == []


async def test_a_name_is_taken_once_in_each_project(conn: Connection) -> None:
    await second_project(conn)
    await instances.insert(conn, instance())
    await instances.insert(conn, instance(project="other"))
    with pytest.raises(AlreadyExists, match="'c1' already exists"):
        await instances.insert(conn, instance())
    row_id = await instances.insert(conn, instance("c2"))
    with pytest.raises(AlreadyExists, match="'c1' already exists"):
        await instances.rename(conn, row_id, "c1")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"project": "nope"}, NotFound),
        ({"profiles": ["nope"]}, NotFound),
        ({"profiles": ["default", "default"]}, AlreadyExists),
        ({"architecture": "pdp11"}, InvalidConfig),
        ({"devices": {"d": {"type": "floppy"}}}, InvalidConfig),
        ({"devices": {"d": {"path": "/"}}}, InvalidConfig),
    ],
)
async def test_an_instance_that_cannot_be(
    database: Database, fields: dict[str, Any], error: type[Exception]
) -> None:
    async def insert() -> None:
        async with database.write("test") as conn:
            await instances.insert(conn, instance(**fields))

    with pytest.raises(error):
        await insert()
    async with database.read() as conn:
        assert await instances.get_all(conn, None) == []


async def test_instances_that_are_not_there(conn: Connection) -> None:
    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: instances.get(conn, "default", "c1"),
        lambda: instances.update(conn, instance(id=7)),
        lambda: instances.rename(conn, 7, "x"),
        lambda: instances.set_ready(conn, 7),
        lambda: instances.set_last_used(conn, 7, NOON),
    ]
    for call in calls:
        with pytest.raises(NotFound, match="Instance not found"):
            await call()


async def test_lists_take_a_constant_number_of_queries(conn: Connection) -> None:
    async def load_everything() -> None:
        await instances.get_all(conn, None)
        await profiles.get_all(conn, "default")
        await profiles.used_by(conn, "default", None)
        await projects.get_all(conn)
        await projects.contents(conn)
        await images.get_all(conn, None)
        await image_aliases.get_all(conn, None)
        await storage_pools.get_all(conn)
        await storage_pools.used_by(conn)
        await storage_volumes.get_all(conn, None)
        await certificates.get_all(conn)

    async def add(n: int) -> None:
        await profiles.insert(conn, ProfileRow(0, "default", f"p{n}", config={"user.x": "1"}))
        await instances.insert(conn, instance(f"c{n}", config={"user.x": "1"}, profiles=[f"p{n}"]))
        await images.insert(conn, image(f"{n:064x}", properties={"os": "x"}))
        await image_aliases.insert(conn, AliasRow("default", f"a{n}", "", f"{n:064x}"))
        await storage_volumes.insert(conn, volume(f"c{n}"))
        await certificates.insert(conn, CertificateRow(0, f"{n:064x}", "client", "n", "PEM"))

    await storage_pools.insert(conn, PoolRow(0, "p", "dir"))
    await add(0)
    seen = await count_statements(conn)
    await load_everything()
    before = len(seen)
    for n in range(1, 30):
        await add(n)
    seen.clear()
    await load_everything()
    assert len(seen) == before


# ---- profiles


async def test_a_profile_comes_back_as_it_was(conn: Connection) -> None:
    row = ProfileRow(
        0, "default", "p", "a profile", {"user.x": "1"}, {"eth0": {"type": "nic", "nictype": "p2p"}}
    )
    row = replace(row, id=await profiles.insert(conn, row))
    assert await profiles.get(conn, "default", "p") == row
    assert [p.name for p in await profiles.get_all(conn, "default")] == ["default", "p"]
    new = replace(row, description="", config={"user.y": "2"}, devices={})
    await profiles.update(conn, new)
    assert await profiles.get(conn, "default", "p") == new
    await profiles.rename(conn, row.id, "q")
    await profiles.delete(conn, row.id)
    assert [p.name for p in await profiles.get_all(conn, None)] == ["default"]


async def test_who_uses_a_profile(conn: Connection) -> None:
    row_id = await profiles.insert(conn, ProfileRow(0, "default", "p"))
    for name in ("c2", "c1"):
        await instances.insert(conn, instance(name, profiles=["p", "default"]))
    users = [("default", "c1"), ("default", "c2")]
    assert await profiles.used_by(conn, "default", None) == {"p": users, "default": users}
    assert await profiles.used_by(conn, "default", ("p", "nope")) == {"p": users}
    assert await profiles.used_by(conn, "other", None) == {}
    with pytest.raises(InUse, match="Profile is currently in use"):
        await profiles.delete(conn, row_id)


async def test_profiles_that_cannot_be(conn: Connection) -> None:
    with pytest.raises(AlreadyExists):
        await profiles.insert(conn, ProfileRow(0, "default", "default"))
    with pytest.raises(NotFound, match="Project 'nope' not found"):
        await profiles.insert(conn, ProfileRow(0, "nope", "p"))
    row_id = await profiles.insert(conn, ProfileRow(0, "default", "p"))
    with pytest.raises(AlreadyExists):
        await profiles.rename(conn, row_id, "default")
    for call in (
        profiles.get(conn, "default", "nope"),
        profiles.update(conn, ProfileRow(99, "default", "nope")),
        profiles.rename(conn, 99, "x"),
        profiles.delete(conn, 99),
    ):
        with pytest.raises(NotFound):
            await call


# ---- projects and the server


async def test_projects(conn: Connection) -> None:
    row = await projects.get(conn, "default")
    assert row.config["features.profiles"] == "true"
    new = replace(row, description="x", config={**row.config, "user.a": "1"})
    await projects.update(conn, new)
    assert await projects.get_all(conn) == [new]
    with pytest.raises(NotFound):
        await projects.get(conn, "nope")
    with pytest.raises(NotFound):
        await projects.update(conn, replace(row, id=99))


async def test_what_is_in_a_project(conn: Connection) -> None:
    await second_project(conn)
    await storage_pools.insert(conn, PoolRow(0, "p", "dir"))
    await instances.insert(conn, instance())
    await images.insert(conn, image())
    await storage_volumes.insert(conn, volume("c1"))
    await storage_volumes.insert(conn, volume("data", codes.VOLUME_CUSTOM))
    await conn.execute(schema.networks.insert().values(project_id=1, name="br0", description=""))
    found = await projects.contents(conn)
    assert found["default"] == projects.Contents(
        instances=["c1"],
        images=[FINGERPRINT],
        profiles=["default"],
        volumes=[("p", "data")],
        networks=["br0"],
    )
    assert found["other"] == projects.Contents()


async def test_deleting_a_project_takes_all_that_is_in_it(conn: Connection) -> None:
    await second_project(conn)
    await storage_pools.insert(conn, PoolRow(0, "p", "dir"))
    await profiles.insert(conn, ProfileRow(0, "other", "a", "", {"user.x": "1"}, {"n": {"type": "nic"}}))
    await instances.insert(conn, instance(project="other", profiles=["a"], config={"user.x": "1"}))
    await images.insert(conn, image(project="other", properties={"os": "x"}, profiles=["a"]))
    await image_aliases.insert(conn, AliasRow("other", "al", "", FINGERPRINT))
    await storage_volumes.insert(conn, volume("v", project="other", config={"size": "1"}))
    await certificates.insert(conn, CertificateRow(0, "cd" * 32, "client", "n", "PEM", True, ["other"]))
    await conn.execute(schema.instances.delete().where(schema.instances.c.project_id == 2))
    await conn.execute(schema.projects.delete().where(schema.projects.c.name == "other"))
    left = {"nodes", "projects", "projects_config", "profiles", "storage_pools", "certificates"}
    for table in schema.metadata.sorted_tables:
        rows = (await conn.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
        assert (rows > 0) == (table.name in left), table.name


async def test_the_servers_config_is_replaced_whole(conn: Connection) -> None:
    await config.replace(conn, {"core.https_address": ":8443", "user.a": ""})
    assert await config.load(conn) == {"core.https_address": ":8443"}
    await config.replace(conn, {})
    assert await config.load(conn) == {}


# ---- images


async def test_an_image_comes_back_as_it_was(conn: Connection) -> None:
    row = image(
        expires_at=NOON + timedelta(days=9),
        last_used_at=NOON,
        public=True,
        auto_update=True,
        cached=True,
        properties={"os": "Debian", "description": "x"},
        state="ready",
        split=True,
        trusted=True,
        profiles=["default"],
    )
    row = replace(row, id=await images.insert(conn, row))
    assert await images.get(conn, "default", FINGERPRINT) == row
    assert await images.get_all(conn, "default") == [row]
    new = replace(row, public=False, properties={"os": "x"}, profiles=[], expires_at=None, filename="y")
    await images.update(conn, new)
    assert await images.get(conn, "default", FINGERPRINT) == new


async def test_images_are_found_by_the_beginning_of_their_fingerprint(conn: Connection) -> None:
    await images.insert(conn, image("ab" * 32))
    await images.insert(conn, image("ac" + "0" * 62))
    assert (await images.find_by_prefix(conn, "default", "ab")).fingerprint == "ab" * 32
    assert (await images.find_by_prefix(conn, "default", "ab" * 32)).fingerprint == "ab" * 32
    with pytest.raises(InvalidRequest, match="More than one image"):
        await images.find_by_prefix(conn, "default", "a")
    with pytest.raises(NotFound):
        await images.find_by_prefix(conn, "default", "f")
    for odd in ("", "AB", "a%", "a_", "a" * 65):
        with pytest.raises(InvalidName):
            await images.find_by_prefix(conn, "default", odd)


async def test_the_steps_of_an_images_life(conn: Connection) -> None:
    await second_project(conn)
    row_id = await images.insert(conn, image())
    await images.insert(conn, image(project="other"))
    assert await images.projects_with(conn, FINGERPRINT) == ["default", "other"]
    await images.set_ready(conn, row_id)
    await images.set_last_used(conn, row_id, NOON)
    found = await images.get(conn, "default", FINGERPRINT)
    assert (found.state, found.last_used_at) == ("ready", NOON)
    await image_aliases.insert(conn, AliasRow("default", "a", "", FINGERPRINT))
    await images.delete(conn, row_id)
    await images.delete(conn, row_id)
    assert await images.projects_with(conn, FINGERPRINT) == ["other"]
    assert await image_aliases.get_all(conn, None) == []


async def test_images_that_cannot_be(conn: Connection) -> None:
    await images.insert(conn, image())
    with pytest.raises(AlreadyExists):
        await images.insert(conn, image())
    for fields, error in (
        ({"project": "nope"}, NotFound),
        ({"profiles": ["nope"]}, NotFound),
        ({"profiles": ["default", "default"]}, AlreadyExists),
        ({"architecture": "pdp11"}, InvalidConfig),
        ({"type": "disk"}, InvalidConfig),
    ):
        with pytest.raises(error):
            await images.insert(conn, image("cd" * 32, **fields))
        await conn.execute(schema.images.delete().where(schema.images.c.fingerprint == "cd" * 32))
    for call in (
        images.get(conn, "other", FINGERPRINT),
        images.update(conn, image(id=99)),
        images.set_ready(conn, 99),
        images.set_last_used(conn, 99, NOON),
    ):
        with pytest.raises(NotFound, match="Image not found"):
            await call


async def test_aliases(conn: Connection) -> None:
    await images.insert(conn, image())
    await images.insert(conn, image("cd" * 32))
    row = AliasRow("default", "a/b", "text", FINGERPRINT)
    await image_aliases.insert(conn, row)
    assert await image_aliases.get(conn, "default", "a/b") == row
    with pytest.raises(AlreadyExists, match="'a/b' already exists"):
        await image_aliases.insert(conn, replace(row, fingerprint="cd" * 32))
    new = replace(row, description="new", fingerprint="cd" * 32)
    await image_aliases.update(conn, new)
    assert await image_aliases.get_all(conn, "default") == [new]
    await image_aliases.insert(conn, replace(row, name="z"))
    with pytest.raises(AlreadyExists):
        await image_aliases.rename(conn, "default", "z", "a/b")
    await image_aliases.rename(conn, "default", "z", "y")
    await image_aliases.delete(conn, "default", "y")
    with pytest.raises(NotFound, match="Image 'efefefefefef' not found"):
        await image_aliases.update(conn, replace(row, fingerprint="ef" * 32))
    for call in (
        image_aliases.get(conn, "default", "y"),
        image_aliases.update(conn, replace(row, name="y")),
        image_aliases.rename(conn, "default", "y", "x"),
        image_aliases.delete(conn, "default", "y"),
        image_aliases.delete(conn, "nope", "a/b"),
    ):
        with pytest.raises(NotFound, match="Image alias 'a?/?[by]' not found"):
            await call


# ---- storage


async def test_a_pool_comes_back_as_it_was(conn: Connection) -> None:
    row = PoolRow(0, "p", "overlay", "fast", {"source": "/x"})
    row = replace(row, id=await storage_pools.insert(conn, row))
    assert await storage_pools.get(conn, "p") == row
    await storage_pools.set_state(conn, row.id, "ready")
    new = replace(row, description="slow", config={"user.a": "1"}, state="ready")
    await storage_pools.update(conn, new)
    assert await storage_pools.get_all(conn) == [new]
    with pytest.raises(AlreadyExists, match="'p' already exists"):
        await storage_pools.insert(conn, row)
    await storage_volumes.insert(conn, volume("c1", config={"size": "1"}))
    await storage_pools.delete(conn, row.id)
    assert await storage_volumes.get_all(conn, None) == []
    for call in (
        storage_pools.get(conn, "p"),
        storage_pools.update(conn, row),
        storage_pools.set_state(conn, row.id, "ready"),
    ):
        with pytest.raises(NotFound, match="Storage pool"):
            await call


async def test_who_uses_a_pool(conn: Connection) -> None:
    await second_project(conn)
    for name in ("p", "empty"):
        await storage_pools.insert(conn, PoolRow(0, name, "dir"))
    for project in ("default", "other"):
        await images.insert(conn, image(project=project))
    await storage_volumes.insert(conn, volume(FINGERPRINT, codes.VOLUME_IMAGE))
    await storage_volumes.insert(conn, volume("c1", project="other"))
    disk = {"type": "disk", "path": "/", "pool": "p"}
    await profiles.insert(conn, ProfileRow(0, "default", "a", devices={"root": disk, "again": disk}))
    await profiles.insert(conn, ProfileRow(0, "default", "b", devices={"n": {"type": "nic", "pool": "p"}}))
    found = await storage_pools.used_by(conn)
    assert found["empty"] == storage_pools.PoolUse()
    assert found["p"] == storage_pools.PoolUse(
        volumes=[
            (codes.VOLUME_CONTAINER, "other", "c1"),
            (codes.VOLUME_IMAGE, "default", FINGERPRINT),
            (codes.VOLUME_IMAGE, "other", FINGERPRINT),
        ],
        profiles=[("default", "a")],
    )


async def test_volumes(conn: Connection) -> None:
    with pytest.raises(NotFound, match="Storage pool 'p' not found"):
        await storage_volumes.insert(conn, volume("c1"))
    await storage_pools.insert(conn, PoolRow(0, "p", "dir"))
    with pytest.raises(NotFound, match="Project"):
        await storage_volumes.insert(conn, volume("c1", project="nope"))
    row = volume("c1", description="x", config={"size": "1GiB"})
    row = replace(row, id=await storage_volumes.insert(conn, row))
    with pytest.raises(AlreadyExists):
        await storage_volumes.insert(conn, volume("c1"))
    await storage_volumes.insert(conn, volume("c1", codes.VOLUME_CUSTOM))
    assert await storage_volumes.get(conn, "default", "p", codes.VOLUME_CONTAINER, "c1") == row
    assert await storage_volumes.get_all(conn, "default", "p", codes.VOLUME_CONTAINER) == [row]
    assert len(await storage_volumes.get_all(conn, None)) == 2
    assert await storage_volumes.get_all(conn, None, "q") == []
    new = replace(row, description="", config={})
    await storage_volumes.update(conn, new)
    await storage_volumes.rename(conn, row.id, "c2")
    found = await storage_volumes.get(conn, "default", "p", codes.VOLUME_CONTAINER, "c2")
    assert found == replace(new, name="c2")
    other = await storage_volumes.insert(conn, volume("c3"))
    with pytest.raises(AlreadyExists):
        await storage_volumes.rename(conn, other, "c2")
    await storage_volumes.delete(conn, other)
    await storage_volumes.delete(conn, other)
    for call in (
        storage_volumes.get(conn, "default", "p", codes.VOLUME_CONTAINER, "c3"),
        storage_volumes.update(conn, volume("c3", id=99)),
        storage_volumes.rename(conn, 99, "c4"),
    ):
        with pytest.raises(NotFound, match="Storage volume"):
            await call


# ---- certificates


async def test_certificates(conn: Connection) -> None:
    row = CertificateRow(0, "ab" * 32, "client", "laptop", "PEM", True, ["default"])
    row = replace(row, id=await certificates.insert(conn, row))
    assert await certificates.get(conn, "ab") == row
    with pytest.raises(AlreadyExists, match="already in trust store"):
        await certificates.insert(conn, row)
    new = replace(row, type="metrics", name="m", restricted=False, projects=[])
    await certificates.update(conn, new)
    assert await certificates.get_all(conn) == [new]
    await certificates.insert(conn, replace(row, fingerprint="ac" * 32))
    with pytest.raises(InvalidRequest, match="More than one certificate"):
        await certificates.get(conn, "a")
    with pytest.raises(InvalidName):
        await certificates.get(conn, "%")
    with pytest.raises(InvalidConfig, match="certificate type 'boss'"):
        await certificates.insert(conn, replace(row, fingerprint="ad" * 32, type="boss"))
    with pytest.raises(NotFound, match="Project 'nope'"):
        await certificates.update(conn, replace(row, projects=["nope"]))
    await certificates.delete(conn, row.id)
    for call in (
        certificates.get(conn, "ab"),
        certificates.update(conn, row),
        certificates.delete(conn, row.id),
    ):
        with pytest.raises(NotFound, match="Certificate not found"):
            await call


# ---- times and codes


@pytest.mark.parametrize(
    "text",
    ["2026-03-01 12:00:00+00:00", "2026-03-01 12:00:00", "2026-03-01T14:00:00+02:00"],
)
async def test_times_that_hands_wrote_are_read(conn: Connection, text: str) -> None:
    """LXD's suite writes `last_use_date` by hand in the form of `date --rfc-3339`."""
    await images.insert(conn, image())
    await conn.exec_driver_sql("UPDATE images SET last_use_date = ?", (text,))
    found = await images.get(conn, "default", FINGERPRINT)
    assert found.last_used_at == datetime(2026, 3, 1, 12, tzinfo=UTC)


async def test_times_of_other_zones_are_stored_in_utc(conn: Connection) -> None:
    east = datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    row_id = await instances.insert(conn, instance())
    await instances.set_last_used(conn, row_id, east)
    found = await instances.get(conn, "default", "c1")
    assert found.last_used_at == east
    stored = await conn.exec_driver_sql("SELECT last_use_date FROM instances")
    assert stored.scalar_one() == "2026-03-01 12:00:00.000000+00:00"


def test_times_and_types_serve_postgresql_too() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in schema.metadata.sorted_tables:
        text = str(CreateTable(table).compile(dialect=dialect))
        assert "DATETIME" not in text
    assert "TIMESTAMP WITH TIME ZONE" in str(CreateTable(schema.instances).compile(dialect=dialect))


def test_configs_are_gathered_in_postgresql_too() -> None:
    from sqlalchemy.dialects import postgresql

    query = rows.config_query(schema.instances_config, "instance_id", sa.select(schema.instances.c.id))
    text = str(query.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert "json_object_agg(instances_config.key" in text


# ---- numbers without a word


async def set_number(conn: Connection, table: str, column: str) -> None:
    """As a newer version, or a hand, would have written it."""
    await conn.exec_driver_sql(f"UPDATE {table} SET {column} = 99")


@pytest.mark.parametrize(
    "table",
    [
        codes.STATES,
        codes.ARCHITECTURES,
        codes.DEVICE_TYPES,
        codes.INSTANCE_TYPES,
        codes.CERTIFICATE_TYPES,
        codes.NETWORK_TYPES,
        codes.VOLUME_TYPES,
    ],
    ids=lambda table: table.kind,
)
def test_a_number_without_a_word_is_not_taken_for_another(table: codes.Codes) -> None:
    for word, number in table.items():
        assert codes.word(table, number) == word
    for number in (99, -1):
        with pytest.raises(codes.UnknownCode, match=f"{number} is no {table.kind}"):
            codes.word(table, number)


@pytest.mark.parametrize(
    ("table", "column"),
    [("instances", "state"), ("instances", "architecture"), ("instances_devices", "type")],
)
async def test_an_instance_that_cannot_be_read_is_in_no_list(
    conn: Connection, table: str, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is there for those who look for taken names, ids and addresses; its state keeps it from all else."""
    name = f"odd-{table}-{column}".replace("_", "-")
    devices = {"eth0": {"type": "nic"}}
    await instances.insert(conn, instance(name, state="ready", devices=devices, config={"user.x": "1"}))
    await set_number(conn, table, column)
    (found,) = await instances.get_all(conn, None)
    assert (found.name, found.state, found.config) == (name, codes.UNKNOWN, {"user.x": "1"})
    assert await instances.names(conn, None) == []
    with pytest.raises(codes.UnknownCode, match=f"Instance '{name}' cannot be used"):
        await instances.get(conn, "default", name)
    await instances.get_all(conn, None)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"Instance '{name}' of project 'default' is left alone: 99 is no " in told[0]


async def test_a_profile_that_cannot_be_read_is_told_from_others(conn: Connection) -> None:
    await profiles.insert(conn, ProfileRow(0, "default", "odd", devices={"eth0": {"type": "nic"}}))
    await profiles.insert(conn, ProfileRow(0, "default", "fine"))
    await instances.insert(conn, instance("uses", state="ready", profiles=["odd"]))
    await instances.insert(conn, instance("other", state="ready", profiles=["fine"]))
    await set_number(conn, "profiles_devices", "type")
    readable = {row.name: row.readable for row in await profiles.get_all(conn, "default")}
    assert readable == {"default": True, "fine": True, "odd": False}
    with pytest.raises(codes.UnknownCode, match="Profile 'odd' cannot be used"):
        await profiles.get(conn, "default", "odd")
    assert await instances.names(conn, None) == [("default", "other")]


@pytest.mark.parametrize("column", ["state", "architecture", "type"])
async def test_an_image_that_cannot_be_read_has_no_state(conn: Connection, column: str) -> None:
    await images.insert(conn, image(state="ready"))
    await image_aliases.insert(conn, AliasRow("default", "name", "", FINGERPRINT))
    await set_number(conn, "images", column)
    (found,) = await images.get_all(conn, None)
    assert found.state == codes.UNKNOWN
    for wanted in (images.get(conn, "default", FINGERPRINT), images.find_by_prefix(conn, "default", "abab")):
        with pytest.raises(codes.UnknownCode, match="Image abababababab cannot be used"):
            await wanted
    if column == "type":
        assert await image_aliases.get_all(conn, None) == []
        with pytest.raises(codes.UnknownCode, match="Image alias 'name'"):
            await image_aliases.get(conn, "default", "name")


async def test_a_certificate_of_an_unknown_type_is_not_trusted(conn: Connection) -> None:
    await certificates.insert(conn, CertificateRow(0, FINGERPRINT, "client", "laptop", "PEM"))
    await set_number(conn, "certificates", "type")
    assert await certificates.get_all(conn) == []
    with pytest.raises(codes.UnknownCode, match="Certificate abababababab"):
        await certificates.get(conn, FINGERPRINT)
    with pytest.raises(AlreadyExists):
        await certificates.insert(conn, CertificateRow(0, FINGERPRINT, "client", "again", "PEM"))


async def test_pools_networks_and_volumes_that_cannot_be_read(conn: Connection) -> None:
    await storage_pools.insert(conn, PoolRow(0, "p", "dir", state="ready"))
    await storage_volumes.insert(conn, volume("data"))
    await networks.insert(conn, NetworkRow(0, "default", "br0", state="ready"))
    await set_number(conn, "storage_pools", "state")
    await set_number(conn, "storage_volumes", "type")
    await set_number(conn, "networks", "type")
    assert [row.state for row in await storage_pools.get_all(conn)] == [codes.UNKNOWN]
    assert [row.state for row in await networks.get_all(conn, None)] == [codes.UNKNOWN]
    assert await storage_volumes.get_all(conn, None) == []
    with pytest.raises(codes.UnknownCode, match="Storage pool 'p'"):
        await storage_pools.get(conn, "p")
    with pytest.raises(codes.UnknownCode, match="Network 'br0'"):
        await networks.get(conn, "default", "br0")
