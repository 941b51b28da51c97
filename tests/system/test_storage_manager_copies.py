"""Snapshots and copies by the storage manager: rows, failures, other pools, and merging in the background."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.pools import MAP, PRIVILEGED, container, source
from tests.support.storage_world import StorageWorld
from utsuwa.core.errors import AlreadyExists, HostError, InvalidConfig, NotFound
from utsuwa.core.volumes import Volume
from utsuwa.db import storage_volumes
from utsuwa.db.codes import VOLUME_CONTAINER
from utsuwa.db.transaction import Transaction
from utsuwa.host.files.fsids import as_container_root
from utsuwa.storage.copying import Copying

pytestmark = pytest.mark.root


@pytest.fixture(params=["overlay", "dir"])
def world(place: Path, files: Path, request: pytest.FixtureRequest) -> StorageWorld:
    """With the instance `c1`, which has a snapshot `s1` and was changed after that."""
    made = StorageWorld(place / "state", str(request.param))
    made.create(source(files, "overlay"))

    async def work(world: StorageWorld) -> None:
        await world.storage.copies.create_snapshot("p", container("c1/s1"))
        await write(world, "c1", "changed")

    made.run(work)
    return made


async def write(world: StorageWorld, name: str, text: str) -> None:
    rootfs = await world.storage.volumes.mount("p", container(name), MAP)
    as_container_root(MAP, lambda: (rootfs / "etc/hosts").write_text(text))


async def rewrite(world: StorageWorld, name: str, text: str) -> None:
    """Write a text of the same length, and have the file's time of modification be what it was."""
    rootfs = await world.storage.volumes.mount("p", container(name), MAP)
    before = (rootfs / "etc/hosts").stat()
    await write(world, name, text)
    as_container_root(
        MAP, lambda: os.utime(rootfs / "etc/hosts", ns=(before.st_atime_ns, before.st_mtime_ns))
    )


async def read(world: StorageWorld, volume: Volume, pool: str = "p") -> str:
    rootfs = await world.storage.volumes.mount(pool, volume, PRIVILEGED)
    return (rootfs / "etc/hosts").read_text()


def refuse(tx: Transaction) -> None:
    """What an instance would store, if it could."""
    raise InvalidConfig("not stored")


def test_copy_is_reverted_if_its_row_cannot_be_stored(world: StorageWorld) -> None:
    async def work(_: StorageWorld) -> None:
        copies = world.storage.copies
        with pytest.raises(InvalidConfig):
            await copies.replace(Copying("p", container("c1/s1"), "p", container("c1"), MAP), refuse)
        with pytest.raises(InvalidConfig):
            await copies.rename_snapshot("p", container("c1/s1"), "s2", refuse)
        assert await read(world, container("c1")) == "changed"
        assert world.driver.volumes("container") == ["c1"]
        assert world.driver.snapshots(container("c1")) == ["s1"]
        assert await world.intentions() == []

    world.run(work)


def test_a_restored_volume(world: StorageWorld) -> None:
    async def work(_: StorageWorld) -> None:
        for _again in range(2):
            await write(world, "c1", "changed")
            await world.storage.copies.replace(Copying("p", container("c1/s1"), "p", container("c1"), MAP))
            assert await read(world, container("c1")) != "changed"
        assert world.driver.volumes("container") == ["c1"]
        await world.storage.volumes.rename("p", container("c1"), container("c2"))
        assert world.driver.snapshots(container("c2")) == ["s1"]
        await world.storage.volumes.delete("p", container("c2"))
        assert world.driver.snapshots(container("c2")) == world.driver.volumes("container") == []
        assert not list(world.paths.pool("p").glob("layers/*"))

    world.run(work)


def test_errors_leave_nothing(world: StorageWorld) -> None:
    async def work(_: StorageWorld) -> None:
        copies = world.storage.copies
        with pytest.raises(HostError):
            await copies.create_snapshot("p", container("c1/s1"))
        with pytest.raises(HostError):
            await copies.copy(Copying("p", container("c1/never"), "p", container("c2"), MAP))
        with pytest.raises(HostError):
            await copies.replace(Copying("p", container("c1/never"), "p", container("c1"), MAP))
        with pytest.raises(AlreadyExists):
            await copies.copy(Copying("p", container("c1"), "p", container("c1"), MAP))
        with pytest.raises(NotFound):
            await copies.create_snapshot("other", container("c1/s2"))
        with pytest.raises(NotFound):
            await copies.replace(Copying("p", container("c1/s1"), "p", container("c2"), MAP))
        rows = await world.database.read("test", storage_volumes.get_here, "p", VOLUME_CONTAINER)
        assert [row.name for row in rows] == world.driver.volumes("container") == ["c1"]
        assert await world.intentions() == []
        assert await read(world, container("c1")) == "changed"
        await copies.delete_snapshot("p", container("c1/never"))

    world.run(work)


@pytest.mark.parametrize("driver", ["overlay", "dir"])
def test_another_pool(world: StorageWorld, driver: str) -> None:
    """A volume with its snapshots is copied there, and refreshed later."""

    async def work(_: StorageWorld) -> None:
        copies = world.storage.copies
        await world.storage.pools.create("other", driver)
        await world.add_instance("c2")
        await copies.copy(Copying("p", container("c1"), "other", container("c2"), MAP, snapshots=["s1"]))
        assert await read(world, container("c2"), "other") == "changed"
        assert await read(world, container("c2/s1"), "other") == await read(world, container("c1/s1"))
        await write(world, "c1", "later")
        await copies.replace(Copying("p", container("c1"), "other", container("c2"), MAP))
        assert await read(world, container("c2"), "other") == "later"

    world.run(work)


def test_snapshots_of_files_that_keep_their_size_and_times(world: StorageWorld) -> None:
    """Each is made of the one before it there; all of them are older than what is compared with them."""

    async def work(_: StorageWorld) -> None:
        copies = world.storage.copies
        for name, text in (("s2", "CHANGED"), ("s3", "CHaNGeD")):
            await rewrite(world, "c1", text)
            await copies.create_snapshot("p", container(f"c1/{name}"))
        await rewrite(world, "c1", "changed")
        await world.storage.pools.create("other", "overlay")
        await world.add_instance("c2")
        copying = Copying("p", container("c1"), "other", container("c2"), MAP, snapshots=["s2", "s3"])
        await copies.copy(copying)
        for name in ("c2/s2", "c2/s3", "c2"):
            same = container(name.replace("c2", "c1"))
            assert await read(world, container(name), "other") == await read(world, same), name

    world.run(work)


def test_layers_are_merged_in_the_background(world: StorageWorld) -> None:
    async def work(_: StorageWorld) -> None:
        for number in range(12):
            await write(world, "c1", f"{number}")
            await world.storage.copies.create_snapshot("p", container(f"c1/t{number}"))
        assert await read(world, container("c1")) == "11"

    world.run(work)
    record = json.loads((world.paths.pool("p") / "containers/c1/volume.json").read_text())
    assert len(record["layers"]) <= 8

    async def look(_: StorageWorld) -> None:
        for number in range(12):
            assert await read(world, container(f"c1/t{number}")) == f"{number}"

    world.run(look)
