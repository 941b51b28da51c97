"""Which paths are reported when something on the way to them changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from utsuwa.host.files.path_watch import PathWatch, lookups


class Seen:
    """Collects what is reported."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Path] = asyncio.Queue()

    async def __call__(self, changed: Collection[Path]) -> None:
        for path in changed:
            self.queue.put_nowait(path)

    async def next(self) -> Path:
        return await asyncio.wait_for(self.queue.get(), 10)

    async def nothing(self) -> bool:
        await asyncio.sleep(0.1)
        return self.queue.empty()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def watch(tmp_path: Path, seen: Seen) -> AsyncIterator[PathWatch]:
    made = PathWatch(tmp_path, seen)
    yield made
    await made.stop()


def test_watched_entries_include_link_targets(tmp_path: Path) -> None:
    """All entries on the way, also to the targets of links, up to the first that is missing."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    (tmp_path / "link").symlink_to("folder/../folder")
    (tmp_path / "loop").symlink_to("loop")

    def below(path: str) -> list[str]:
        return [
            str((folder / name).relative_to(tmp_path))
            for folder, name in lookups(tmp_path / path)
            if folder.is_relative_to(tmp_path)
        ]

    assert below("link/file") == ["link", "folder", "folder", "folder/file"]
    assert below("missing/below") == ["missing"]
    assert below("folder/file/below") == ["folder", "folder/file"]
    assert 2 < len(below("loop")) < 50


async def test_appearing_and_disappearing_path_is_reported(
    tmp_path: Path, seen: Seen, watch: PathWatch
) -> None:
    path, other = tmp_path / "a/b/c", tmp_path / "a/b/other"
    watch.add(path)
    assert await seen.next() == path
    (tmp_path / "a").mkdir()
    assert await seen.next() == path
    (tmp_path / "a/b").mkdir()
    assert await seen.next() == path
    path.touch()
    assert await seen.next() == path
    other.touch()
    (tmp_path / "unrelated").touch()
    assert await seen.nothing()
    path.unlink()
    assert await seen.next() == path
    # Another directory in the same place.
    (tmp_path / "a").rename(tmp_path / "old")
    (tmp_path / "new/b").mkdir(parents=True)
    (tmp_path / "new").rename(tmp_path / "a")
    assert await seen.next() == path
    while not await seen.nothing():
        seen.queue.get_nowait()
    path.touch()
    assert await seen.next() == path


async def test_links_are_followed(tmp_path: Path, seen: Seen, watch: PathWatch) -> None:
    link, elsewhere = tmp_path / "link", tmp_path / "far/away"
    elsewhere.mkdir(parents=True)
    link.symlink_to("one")
    watch.add(link)
    assert await seen.next() == link
    (tmp_path / "one").touch()
    assert await seen.next() == link
    (tmp_path / "next").symlink_to(elsewhere / "target")
    (tmp_path / "next").rename(link)
    assert await seen.next() == link
    while not await seen.nothing():
        seen.queue.get_nowait()
    (elsewhere / "target").touch()
    assert await seen.next() == link


async def test_a_path_is_watched_as_long_as_anybody_wants_it(
    tmp_path: Path, seen: Seen, watch: PathWatch
) -> None:
    path = tmp_path / "file"
    for _ in range(2):
        watch.add(path)
    assert await seen.next() == path
    watch.remove(path)
    path.touch()
    assert await seen.next() == path
    watch.remove(path)
    await asyncio.sleep(0.1)
    path.unlink()
    assert await seen.nothing()
    watch.add(path)
    assert await seen.next() == path
