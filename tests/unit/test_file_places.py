"""Who waits for a place with an instance's files to go finds another one afterwards, or none."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from utsuwa.core.refs import InstanceRef
from utsuwa.instances.files.places import Place, Places

REF = InstanceRef("default", "c1")


async def test_a_place_that_is_gone_is_not_found_again(tmp_path: Path) -> None:
    """Otherwise a request that came while the instance was started would look for it forever."""
    places, place = Places(), Place("c1")
    place.open(os.open(tmp_path, os.O_PATH), None)
    places.add(REF, place)
    place.recall()
    found: list[Place | None] = []

    async def wait() -> None:
        await place.wait_until_gone()
        found.append(places.get(REF))

    async with asyncio.timeout(10):
        waiting = asyncio.create_task(wait())
        await place.until_unused()
        await place.close()
        await asyncio.sleep(0)
        assert not waiting.done()
        places.remove(REF, place)
        await waiting
    assert found == [None]


async def test_release_waits_until_a_place_is_gone(tmp_path: Path) -> None:
    places, place = Places(), Place("c1")
    place.open(os.open(tmp_path, os.O_PATH), None)
    places.add(REF, place)

    async def serve() -> None:
        await place.until_unused()
        await place.close()
        places.remove(REF, place)

    async with asyncio.timeout(10):
        serving = asyncio.create_task(serve())
        await places.release_all()
        assert places.get(REF) is None
        await serving
