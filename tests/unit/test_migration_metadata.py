"""What is beside the trees of instances on its way: it arrives as it was, whatever the names are."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import msgspec
import pytest

from tests.unit.test_migration_channel import Socket
from utsuwa.core.errors import InvalidRequest, OutOfSpace
from utsuwa.core.threads import begin_in_thread
from utsuwa.migration import beside, extents
from utsuwa.migration.channel import Stream

FILES = {
    "metadata.yaml": b"templates: {}\n",
    "templates/hosts": os.urandom(2**20),
    "templates/empty": b"",
    "templates/in/a directory/x": b"x",
    os.fsdecode(b"templates/\xff\xfe"): b"not UTF-8",
}


def volume(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    folder.mkdir(exist_ok=True)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


async def test_metadata_arrives_as_it_was(tmp_path: Path) -> None:
    volumes = [volume(tmp_path / "a", FILES), volume(tmp_path / "b", {})]
    socket, parent, got = Socket(), tmp_path / "scratch", tmp_path / "got"
    parent.mkdir()
    got.mkdir()
    await beside.send(Stream(socket), parent, volumes)
    assert list(parent.iterdir()) == []
    await beside.receive(Stream(Socket(*socket.sent, None)), got, len(volumes))
    assert [content(beside.of_volume(got, number)) for number in range(2)] == [FILES, {}]
    own = volume(tmp_path / "own", {"metadata.yaml": b"old", "templates/old": b""})
    beside.take(beside.of_volume(got, 0), own)
    assert content(own) == FILES
    beside.take(beside.of_volume(got, 1), own)
    assert content(own) == FILES


def test_only_so_many_files_are_taken(tmp_path: Path) -> None:
    many = {f"templates/{number}": b"" for number in range(2000)} | {"metadata.yaml": b""}
    source = volume(tmp_path / "many", many)
    with pytest.raises(InvalidRequest, match="more than 1000"):
        beside.take(source, volume(tmp_path / "own", {}))


def listed(*paths: list[bytes]) -> bytes:
    """The document with a volume whose files have these paths, and are empty."""
    return msgspec.json.encode([[(path, 0) for path in paths]])


@pytest.mark.parametrize(
    "document",
    [
        listed(*[[b"templates", str(number).encode()] for number in range(1002)]),
        listed([b"templates", *[b"x"] * 50]),
        listed([b"templates", *[b"x"] * 100_000]),
    ],
    ids=["files", "depth", "much depth"],
)
async def test_what_is_listed_has_limits(tmp_path: Path, document: bytes) -> None:
    with pytest.raises(InvalidRequest, match="lists an instance's metadata wrongly"):
        await beside.receive(Stream(Socket(document, "", "")), tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


async def test_all_volumes_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_MAX_NAMES", 5)
    most, more = ([[b"templates", b"x"]] * 2, [[b"templates", b"x"]] * 3)
    await beside.receive(Stream(Socket(listed(*most), "", "")), volume(tmp_path / "a", {}), 1)
    with pytest.raises(InvalidRequest, match="too large"):
        await beside.receive(Stream(Socket(listed(*more), "", "")), volume(tmp_path / "b", {}), 1)


async def test_short_work_does_not_share_its_threads_with_that_of_other_servers(tmp_path: Path) -> None:
    go_on = threading.Event()
    held = [begin_in_thread(go_on.wait, 60) for _ in range(20)]
    try:
        async with beside.scratch(tmp_path) as folder:
            await beside.receive(Stream(Socket(listed([b"templates", b"x"]), "", "")), folder, 1)
            assert content(folder) == {"0/templates/x": b""}
        assert not any(work.done() for work in held)
    finally:
        go_on.set()
        await asyncio.gather(*held)


async def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = Socket()
    await beside.send(Stream(socket), volume(tmp_path / "s", {}), [volume(tmp_path / "a", FILES)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extents.Extents, "write", full)
    with pytest.raises(OutOfSpace, match="metadata of the instance"):
        await beside.receive(Stream(Socket(*socket.sent, None)), volume(tmp_path / "got", {}), 1)
