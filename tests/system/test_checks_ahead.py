"""Checks of split images that begin while the image is still being received."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.images import Image
from utsuwa.core.errors import InvalidImage, ProcessFailed
from utsuwa.host.archives.check import SplitCheck
from utsuwa.host.archives.formats import format_of
from utsuwa.images.upload import Part, Upload

pytestmark = pytest.mark.root


def upload_to(folder: Path) -> Upload:
    """An upload whose check begins ahead."""

    def begin(metadata: Path, rootfs: Path, start: bytes) -> SplitCheck | None:
        form = format_of(start)
        return None if form is None else SplitCheck(metadata, rootfs, form)

    return Upload(folder, begin_check=begin)


async def result(upload: Upload) -> bytes:
    assert upload.check is not None
    return await upload.check.result()


async def pieces(data: bytes, gate: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """The first part, and the rest when the gate opens."""
    yield data[:100_000]
    if gate is not None:
        await gate.wait()
    yield data[100_000:]


def children() -> set[str]:
    """The pids of the children of all threads: programs are started in several."""
    found: set[str] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


async def test_the_sandbox_waits_for_the_rest_of_the_archive(tmp_path: Path, busybox_image: Image) -> None:
    gate = asyncio.Event()
    async with upload_to(tmp_path) as upload:
        await upload.receive("metadata", pieces(busybox_image.metadata.read_bytes()))
        assert upload.check is None
        before = children()
        rest = asyncio.create_task(upload.receive("rootfs", pieces(busybox_image.rootfs.read_bytes(), gate)))
        while children() == before:
            await asyncio.sleep(0.01)
        assert not rest.done()
        gate.set()
        await rest
        assert b'"architecture": ' in await result(upload)
    assert list(tmp_path.iterdir()) == []


async def test_an_upload_that_is_cut_off_ends_the_sandbox(tmp_path: Path, busybox_image: Image) -> None:
    before = children()

    async def cut_off() -> AsyncIterator[bytes]:
        yield busybox_image.rootfs.read_bytes()[:100_000]
        while children() == before:
            await asyncio.sleep(0.01)
        raise ConnectionResetError

    async def upload_everything() -> None:
        async with upload_to(tmp_path) as upload:
            await upload.receive("metadata", pieces(busybox_image.metadata.read_bytes()))
            await upload.receive("rootfs", cut_off())

    with pytest.raises(ConnectionResetError):
        await upload_everything()
    assert children() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", ["metadata", "rootfs"])
async def test_a_damaged_part_is_refused(tmp_path: Path, busybox_image: Image, damaged: Part) -> None:
    contents = {"metadata": busybox_image.metadata.read_bytes(), "rootfs": busybox_image.rootfs.read_bytes()}
    contents[damaged] = contents[damaged][: len(contents[damaged]) // 2]
    async with upload_to(tmp_path) as upload:
        await upload.receive("metadata", pieces(contents["metadata"]))
        await upload.receive("rootfs", pieces(contents["rootfs"]))
        with pytest.raises(InvalidImage):
            await result(upload)


async def test_a_check_can_be_interrupted(tmp_path: Path, busybox_image: Image) -> None:
    async with upload_to(tmp_path) as upload:
        await upload.receive("metadata", pieces(busybox_image.metadata.read_bytes()))
        await upload.receive("rootfs", pieces(busybox_image.rootfs.read_bytes()))
        assert upload.check is not None
        upload.check.interrupt()
        with pytest.raises(ProcessFailed):
            await result(upload)
