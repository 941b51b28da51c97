"""Changes of custom volumes that are killed: the next start finds the whole change, or none of it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.storage_world import StorageWorld
from utsuwa.core.volumes import Volume
from utsuwa.db import projects, storage_volumes, volume_snapshots
from utsuwa.db.codes import VOLUME_CUSTOM
from utsuwa.db.projects import ProjectRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.mounts import mounts
from utsuwa.storage.custom import copy, create, refresh, snapshots
from utsuwa.storage.custom.copy import CopyRequest
from utsuwa.storage.custom.uses import Place
from utsuwa.wire.storage import StorageVolumeSnapshotsPost

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

Step = Callable[[StorageWorld], Awaitable[object]]
State = dict[str, str]
"""The content of the only file of all volumes and snapshots by pool and name."""


def place(pool: str, name: str, snapshot: str | None = None) -> Place:
    return pool, Volume("custom", "default", name, snapshot)


V1 = place("p", "v1")


async def create_volume(world: StorageWorld) -> None:
    await create.create(world.custom, place("p", "v2"), {"user.x": "y"}, "")


async def delete_volume(world: StorageWorld) -> None:
    await create.delete(world.custom, V1)


async def rename_volume(world: StorageWorld) -> None:
    await copy.rename(world.custom, V1, "v2")


async def copy_volume(world: StorageWorld) -> None:
    await copy.copy(world.custom, CopyRequest(V1, place("q", "v2")))


async def move_volume(world: StorageWorld) -> None:
    await copy.move(world.custom, V1, place("q", "v2"))


async def move_to_project(world: StorageWorld) -> None:
    await copy.move(world.custom, V1, ("q", Volume("custom", "web", "v2")))


async def refresh_volume(world: StorageWorld) -> None:
    """The copy `v3` gets another snapshot, and loses one."""
    await refresh.refresh(world.custom, CopyRequest(V1, place("q", "v3")))


async def take_snapshot(world: StorageWorld) -> None:
    await snapshots.create(world.custom, V1, StorageVolumeSnapshotsPost(name="s2"))


async def rename_snapshot(world: StorageWorld) -> None:
    await snapshots.rename(world.custom, place("p", "v1", "s1"), "s3")


async def delete_snapshot(world: StorageWorld) -> None:
    await snapshots.delete(world.custom, place("p", "v1", "s1"))


async def restore_snapshot(world: StorageWorld) -> None:
    await snapshots.restore(world.custom, V1, "s1")


def prepare(world: StorageWorld, step: Step) -> State:
    """The volume `v1` with the snapshot `s1` and a change after it, and the other pool `q`.

    To be refreshed, there is `q/v3`, a copy of that, after which `v1` has changed.
    """
    world.paths.root.mkdir(mode=0o711)
    world.paths.create_directories()

    async def work(_: StorageWorld) -> None:
        await world.storage.pools.create("p", world.driver_name)
        await world.storage.pools.create("q", "dir")
        await world.database.write("test", projects.insert, ProjectRow(0, "web", "", {}))
        await create.create(world.custom, V1, {}, "")
        write(world, "first")
        await snapshots.create(world.custom, V1, StorageVolumeSnapshotsPost(name="s1"))
        write(world, "second")

    async def change(_: StorageWorld) -> None:
        await copy.copy(world.custom, CopyRequest(V1, place("q", "v3")))
        await snapshots.delete(world.custom, place("p", "v1", "s1"))
        await snapshots.create(world.custom, V1, StorageVolumeSnapshotsPost(name="s2"))
        write(world, "third")

    world.run(work)
    if step is not refresh_volume:
        return {"p/v1": "second", "p/v1/s1": "first"}
    world.run(change)
    return {"p/v1": "third", "p/v1/s2": "second", "q/v3": "second", "q/v3/s1": "first"}


def write(world: StorageWorld, text: str) -> None:
    (world.paths.pool("p") / V1[1].path / "rootfs/file").write_text(text)


def state(world: StorageWorld) -> State:
    """What rows say that is there, with its content; fails if more or less is on disk than that."""
    found: State = {}

    async def work(_: StorageWorld) -> None:
        def fetch(tx: Transaction) -> list[tuple[str, Volume]]:
            places = []
            for row in storage_volumes.get_all(tx, None, type=VOLUME_CUSTOM):
                assert row.new_name == ""
                volume = Volume("custom", row.project, row.name)
                names = volume_snapshots.names(tx, row.id)
                places += [(row.pool, volume), *((row.pool, volume.snapshot_named(name)) for name in names)]
            return places

        for pool, volume in await world.database.read("test", fetch):
            file = world.paths.pool(pool) / volume.path / "rootfs/file"
            owner = "" if volume.project == "default" else f"{volume.project}_"
            name = f"{pool}/{owner}{volume.name}" + (f"/{volume.snapshot}" if volume.snapshot else "")
            found[name] = file.read_text() if file.exists() else ""

    world.run(work)
    assert on_disk(world) == set(found)
    assert mounts.mounts_below(world.paths.root) == []
    return found


def on_disk(world: StorageWorld) -> set[str]:
    found = set()
    for pool in ("p", "q"):
        folder = world.paths.pool(pool)
        volumes = folder.glob("custom/*")
        found |= {f"{pool}/{path.name.removeprefix('default_')}" for path in volumes}
        for path in folder.glob("custom-snapshots/*/*"):
            found.add(f"{pool}/{path.parent.name.removeprefix('default_')}/{path.name}")
    return found


def outcomes(step: Step, before: State) -> Iterator[State]:
    """The states that a step may have left: none of it, or all."""
    yield before
    after = dict(before)
    if step is refresh_volume:
        yield {"p/v1": "third", "p/v1/s2": "second", "q/v3": "third", "q/v3/s2": "second"}
        return
    copied = {"q/v2": before["p/v1"], "q/v2/s1": before["p/v1/s1"]}
    changes: dict[Step, State] = {
        create_volume: {**after, "p/v2": ""},
        delete_volume: {},
        rename_volume: {"p/v2": before["p/v1"], "p/v2/s1": before["p/v1/s1"]},
        copy_volume: {**after, **copied},
        move_volume: copied,
        move_to_project: {name.replace("v2", "web_v2"): text for name, text in copied.items()},
        take_snapshot: {**after, "p/v1/s2": before["p/v1"]},
        rename_snapshot: {"p/v1": before["p/v1"], "p/v1/s3": before["p/v1/s1"]},
        delete_snapshot: {"p/v1": before["p/v1"]},
        restore_snapshot: {**after, "p/v1": before["p/v1/s1"]},
    }
    yield changes[step]


CHOSEN: list[tuple[Step, str]] = [
    (create_volume, "after create_volume"),
    (delete_volume, "after custom volume is deleted"),
    (rename_volume, "after rename_volume"),
    (copy_volume, "after copy_volume"),
    (move_volume, "after custom volume is complete"),
    (move_to_project, "after custom volume is complete"),
    (refresh_volume, "snapshot is moved"),
    (take_snapshot, "after copy_volume"),
    (rename_snapshot, "after rename_volume"),
    (delete_snapshot, "after delete_volume"),
    (restore_snapshot, "volume is moved away"),
]


@pytest.mark.parametrize(("step", "point"), CHOSEN)
def test_killed_at_a_point(place: Path, step: Step, point: str) -> None:
    world = StorageWorld(place / "state", "overlay")
    before = prepare(world, step)
    assert world.killed(step, point, place / "faults")
    assert state(world) in list(outcomes(step, before))


STEPS = [step for step, _ in CHOSEN]


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("driver", ["overlay", "dir"])
def test_killed_anywhere(place: Path, driver: str, step: Step) -> None:
    for points in itertools.count():
        world = StorageWorld(place / f"state{points}", driver)
        before = prepare(world, step)
        killed = world.killed(step, str(points), place / "faults")
        none, whole = outcomes(step, before)
        assert state(world) in ([none, whole] if killed else [whole])
        if not killed:
            assert points >= 4
            break


class _Stop(Exception):
    """What a step fails with."""


@pytest.mark.parametrize(
    "step",
    [create_volume, delete_volume, rename_volume, copy_volume, move_volume, refresh_volume, take_snapshot],
)
def test_failed(place: Path, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the last transaction fails, everything is undone."""
    world = StorageWorld(place / "state", "dir")
    before = prepare(world, step)

    async def work(_: StorageWorld) -> None:
        write = world.database.write

        async def fail(name: str, *arguments: object, **more: object) -> object:
            if name in ("custom volume is complete", "files are changed", "custom volume is deleted"):
                raise _Stop
            return await write(name, *arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(world.database, "write", fail)
        monkeypatch.setattr(world.database, "begin", write)
        if step is delete_volume:
            monkeypatch.setattr(world.database, "begin", fail)
        with pytest.raises(_Stop):
            await step(world)
        monkeypatch.undo()

    world.run(work)
    assert state(world) == before
