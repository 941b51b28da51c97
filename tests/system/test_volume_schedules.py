"""Snapshots of custom volumes by schedule, and their expiry."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.storage_world import StorageWorld
from utsuwa.core import clock
from utsuwa.core.scope import EVERYTHING
from utsuwa.core.volumes import Volume
from utsuwa.storage.custom import create, snapshots

pytestmark = pytest.mark.root


async def names(world: StorageWorld, volume: str) -> list[str]:
    volumes = world.storage.volumes
    row = await world.storage.custom.find(EVERYTHING, "p", "default", volume)
    on_disk = world.driver.snapshots(Volume("custom", "default", volume))
    found = [snapshot.name for snapshot in await volumes.snapshots(row)]
    assert sorted(found) == on_disk
    return found


def test_what_is_due_is_done(place: Path) -> None:
    """Each volume by its own keys; those that have expired are deleted, and what fails stops nothing."""
    world = StorageWorld(place / "state", "dir")
    world.paths.root.mkdir(mode=0o711)
    world.paths.create_directories()
    config = {
        "often": {
            "snapshots.schedule": "* * * * *",
            "snapshots.expiry": "1H",
            "snapshots.expiry.manual": "1y",
            "snapshots.pattern": "auto%d",
        },
        "broken": {"snapshots.schedule": "* * * * *"},
        "daily": {"snapshots.schedule": "0 6 * * *"},
        "never": {"snapshots.expiry": "1H"},
    }

    async def work(_: StorageWorld) -> None:
        await world.storage.pools.create("p", "dir")
        for name, keys in config.items():
            await create.create(world.custom, ("p", Volume("custom", "default", name)), keys, "")
        (world.paths.pool("p") / "custom/default_broken/volume.json").write_text("{")
        # Of a day before, so that whatever the time is, nothing that is made now has expired by then.
        noon = (clock.now() - timedelta(days=2)).astimezone().replace(hour=12, minute=0)
        await world.storage.custom.look(noon)
        assert await names(world, "often") == ["auto0"]
        assert [await names(world, name) for name in ("broken", "daily", "never")] == [[], [], []]
        await world.storage.custom.look(noon.replace(hour=6))
        assert await names(world, "often") == ["auto0", "auto1"]
        assert await names(world, "daily") == ["snap0"]
        await snapshots.look(world.custom, clock.now() + timedelta(hours=2, minutes=1))
        assert await names(world, "often") == ["auto0"]
        assert await names(world, "daily") in (["snap0"], ["snap0", "snap1"])

    world.run(work)
