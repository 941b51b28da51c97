"""Snapshots, copies and restores that are killed: the next start finds the whole change, or none of it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.pools import MAP, PRIVILEGED, TYPES, container, source
from tests.support.storage_world import StorageWorld
from tests.support.whole_trees import Entry, differences, tree
from utsuwa.core.image_source import ImageSource
from utsuwa.db import projects, storage_pools
from utsuwa.db.projects import ProjectRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts import mounts
from utsuwa.storage.copying import Copying

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

Step = Callable[[StorageWorld], Awaitable[object]]
State = dict[str, dict[str, Entry]]
"""The trees of all volumes and snapshots by their names."""


async def snapshot(world: StorageWorld) -> None:
    await world.storage.copies.create_snapshot("p", container("c1/s2"))


async def snapshot_while_mounted(world: StorageWorld) -> None:
    await world.storage.volumes.mount("p", container("c1"), MAP)
    await world.storage.copies.create_snapshot("p", container("c1/s2"), mounted=MAP)


async def rename_snapshot(world: StorageWorld) -> None:
    await world.storage.copies.rename_snapshot("p", container("c1/s1"), "s3", nothing)


async def delete_snapshot(world: StorageWorld) -> None:
    await world.storage.copies.delete_snapshot("p", container("c1/s1"))


async def restore(world: StorageWorld) -> None:
    await world.storage.copies.replace(Copying("p", container("c1/s1"), "p", container("c1"), MAP), nothing)


async def copy(world: StorageWorld) -> None:
    await world.storage.copies.copy(Copying("p", container("c1"), "p", container("c2"), MAP))


async def refresh(world: StorageWorld) -> None:
    """The copy `c2` gets another snapshot, and loses one."""
    copying = Copying("p", container("c1"), "p", container("c2"), MAP, ["s2"])
    await world.storage.copies.refresh(copying, nothing, gone=["s1"])


async def move_to_pool(world: StorageWorld) -> None:
    c1 = container("c1")
    await world.storage.moves.move("p", c1, "q", c1, MAP, "", ["s1"], nothing)


async def move_to_project(world: StorageWorld) -> None:
    c1 = container("c1")
    await world.storage.moves.move("p", c1, "p", replace(c1, project="web"), MAP, "", ["s1"], nothing)


def nothing(tx: Transaction) -> None:
    """What an instance would store."""


STEPS: list[Step] = [
    *(snapshot, snapshot_while_mounted, rename_snapshot, delete_snapshot, restore, copy),
    *(refresh, move_to_pool, move_to_project),
]


@pytest.fixture
def image(files: Path) -> ImageSource:
    return source(files, "overlay")


def prepare(world: StorageWorld, image: ImageSource, step: Step) -> None:
    """An instance with a snapshot and changes after that, and what a step needs."""
    world.create(image)

    async def work(_: StorageWorld) -> None:
        await write(world, "first")
        await world.storage.copies.create_snapshot("p", container("c1/s1"))
        await write(world, "second")
        if step is refresh:
            await world.add_instance("c2")
            copying = Copying("p", container("c1"), "p", container("c2"), MAP, ["s1"])
            await world.storage.copies.copy(copying)
            await write(world, "third")
            await world.storage.copies.create_snapshot("p", container("c1/s2"))
            await write(world, "fourth")
        elif step is move_to_pool:
            await world.storage.pools.create("q", "dir" if world.driver_name == "overlay" else "overlay")
        elif step is move_to_project:
            await world.database.write("test", projects.insert, ProjectRow(0, "web", "", {}))

    world.run(work)


async def write(world: StorageWorld, text: str) -> None:
    rootfs = await world.storage.volumes.mount("p", container("c1"), MAP)

    def work() -> None:
        (rootfs / "etc/hosts").write_text(text)
        (rootfs / "bin/second").write_text(text)
        (rootfs / text).mkdir()

    as_container_root(MAP, work)


def state(world: StorageWorld) -> State:
    """All that is on the pool, after a start; fails if there is more than that."""
    found: State = {}

    async def work(_: StorageWorld) -> None:
        assert await world.intentions() == []
        for pool in await world.database.read("test", storage_pools.get_all):
            driver = TYPES[pool.driver].make(world.paths.pool(pool.name), {})
            names = [
                name
                for volume in driver.volumes("container")
                for name in (volume, *(f"{volume}/{one}" for one in driver.snapshots(container(volume))))
            ]
            for name in names:
                rootfs = await world.storage.volumes.mount(pool.name, container(name), PRIVILEGED)
                found[name if pool.name == "p" else f"{pool.name}:{name}"] = tree(rootfs)

    world.run(work)
    pools = world.paths.pool("p").parent
    hidden = [path for path in pools.glob("*/*/*") if path.name.startswith((".new", ".gone"))]
    assert hidden == []
    assert mounts.mounts_below(world.paths.root) == []
    return found


def outcomes(step: Step, before: State) -> Iterator[State]:
    """The states that a step may have left: none of it, or all."""
    yield before
    after = dict(before)
    if step in (snapshot, snapshot_while_mounted):
        after["c1/s2"] = before["c1"]
    elif step is rename_snapshot:
        after["c1/s3"] = after.pop("c1/s1")
    elif step is delete_snapshot:
        del after["c1/s1"]
    elif step is restore:
        after["c1"] = before["c1/s1"]
    elif step is copy:
        after["c2"] = before["c1"]
    elif step is refresh:
        del after["c2/s1"]
        after |= {"c2": before["c1"], "c2/s2": before["c1/s2"]}
    elif step is move_to_pool:
        after = {f"q:{name}": found for name, found in before.items()}
    elif step is move_to_project:
        after = {f"web_{name}": found for name, found in before.items()}
    yield after


CHOSEN: list[tuple[str, Step, str]] = [
    ("overlay", snapshot, "layer is named"),
    ("overlay", snapshot, "layer is frozen"),
    ("overlay", snapshot_while_mounted, "before copy_volume"),
    ("overlay", rename_snapshot, "after rename_volume"),
    ("overlay", delete_snapshot, "snapshot is removed"),
    ("overlay", restore, "volume is moved away"),
    ("overlay", restore, "after swap_files"),
    ("dir", restore, "volume is moved away"),
    ("overlay", copy, "after copy_volume"),
    ("overlay", refresh, "snapshot is moved"),
    ("overlay", move_to_pool, "volume is copied"),
    ("dir", move_to_pool, "after volume is moved"),
    ("overlay", move_to_project, "after rename_volume"),
]


@pytest.mark.parametrize(("driver", "step", "point"), CHOSEN)
def test_killed_at_a_point(place: Path, image: ImageSource, driver: str, step: Step, point: str) -> None:
    world = StorageWorld(place / "state", driver)
    prepare(world, image, step)
    if point == "layer is named":  # once in the life of a volume
        world.run(start_again)
    before = state(world)
    assert world.killed(step, point, place / "faults")
    check(state(world), list(outcomes(step, before)))


async def start_again(world: StorageWorld) -> None:
    """Have the volume `c1` as before its first snapshot, with its upper layer in its directory."""
    copies, volumes = world.storage.copies, world.storage.volumes
    await copies.copy(Copying("p", container("c1"), "p", container("c9"), MAP))
    await volumes.delete("p", container("c1"))
    await volumes.rename("p", container("c9"), container("c1"))
    await write(world, "third")


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("driver", ["overlay", "dir"])
def test_killed_anywhere(place: Path, image: ImageSource, driver: str, step: Step) -> None:
    for points in itertools.count():
        world = StorageWorld(place / f"state{points}", driver)
        prepare(world, image, step)
        before = state(world)
        killed = world.killed(step, str(points), place / "faults")
        none, whole = outcomes(step, before)
        check(state(world), [none, whole] if killed else [whole])
        if not killed:
            assert points >= 4
            break


def check(found: State, allowed: list[State]) -> None:
    """The state is one of those."""
    assert sorted(found) in [sorted(one) for one in allowed]
    texts = [
        "; ".join(line for name in found for line in differences(found[name], one[name]))
        for one in allowed
        if one.keys() == found.keys()
    ]
    assert "" in texts
