"""Uploads on their way into temporary files, and the folder that images lie in."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from utsuwa.core.errors import OutOfSpace, TooLarge
from utsuwa.images import upload as module
from utsuwa.images.store import ImageStore
from utsuwa.images.upload import Upload

A, B = "a" * 64, "b" * 64


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_fingerprint_covers_both_parts(tmp_path: Path) -> None:
    async with Upload(tmp_path) as upload:
        await upload.receive("metadata", chunks(b"meta", b"data"))
        await upload.receive("rootfs", chunks(b"x" * 3_000_000, b"y"))
        assert upload.parts == ("metadata", "rootfs")
        assert upload.rootfs is not None
        assert upload.metadata.read_bytes() == b"metadata"
        assert upload.rootfs.stat().st_mode & 0o777 == 0o600
        whole = b"metadata" + b"x" * 3_000_000 + b"y"
        assert upload.size == len(whole)
        assert upload.fingerprint == hashlib.sha256(whole).hexdigest()
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20, 5_000_001])
@pytest.mark.parametrize("piece", [100_000, 2**20, 3_000_000])
async def test_contents_are_stored_whatever_the_pieces(tmp_path: Path, size: int, piece: int) -> None:
    data = os.urandom(size)
    pieces = [data[start : start + piece] for start in range(0, size, piece)]
    seen = hashlib.sha256()
    async with Upload(tmp_path) as upload:
        await upload.receive("metadata", chunks(*pieces), seen.update)
        assert upload.metadata.read_bytes() == data
        assert upload.fingerprint == seen.hexdigest() == hashlib.sha256(data).hexdigest()


async def test_a_source_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def cut_off() -> AsyncIterator[bytes]:
        yield b"x" * 2_000_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        async with Upload(tmp_path) as upload:
            await upload.receive("metadata", cut_off())
    assert names(tmp_path) == []


async def test_stored_files_survive_the_end_of_the_upload(tmp_path: Path) -> None:
    async with Upload(tmp_path) as upload:
        await upload.receive("metadata", chunks(b"x"))
        ImageStore(tmp_path).put(A, upload.metadata, None)
    assert names(tmp_path) == [A]


async def test_sizes_are_limited_announced_or_not(tmp_path: Path) -> None:
    async with Upload(tmp_path, limit=10) as upload:
        await upload.expect(None)
        await upload.expect(10)
        with pytest.raises(TooLarge):
            await upload.expect(11)
        await upload.receive("metadata", chunks(b"123456"))
        with pytest.raises(TooLarge):
            await upload.receive("rootfs", chunks(b"78901"))
    assert names(tmp_path) == []


async def test_the_daemon_keeps_some_space_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = SimpleNamespace(f_bavail=module.RESERVE + 5, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    async with Upload(tmp_path) as upload:
        await upload.receive("metadata", chunks(b"12345"))
        with pytest.raises(OutOfSpace, match="free some space"):
            await upload.expect(6)
        with pytest.raises(OutOfSpace):
            await upload.receive("rootfs", chunks(b"123456"))


class Full(io.BytesIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, data: object) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, OutOfSpace), (errno.EDQUOT, OutOfSpace), (errno.EIO, OSError)]
)
async def test_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    def fdopen(handle: int, mode: str) -> Full:
        os.close(handle)
        return Full(number)

    monkeypatch.setattr(os, "fdopen", fdopen)
    with pytest.raises(expected):
        async with Upload(tmp_path) as upload:
            await upload.receive("metadata", chunks(b"x"))
    assert names(tmp_path) == []


def test_sweep_removes_files_without_a_row(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    for name in (A, B, f"{B}.rootfs", ".upload-1.metadata", "c" * 64, f"{'d' * 64}.rootfs", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / ("e" * 64)).mkdir()
    (tmp_path / ".upload-2").mkdir()
    (tmp_path / ".upload-2/metadata.yaml").touch()
    missing = store.sweep({A: True, B: True, "f" * 64: False})
    assert missing == {A, "f" * 64}
    assert names(tmp_path) == sorted([A, B, f"{B}.rootfs", "e" * 64, "notes.txt"])


def test_removal_is_idempotent(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    (tmp_path / A).touch()
    store.remove(A)
    store.remove(A)
    assert names(tmp_path) == []


async def test_parts_of_an_upload_are_stored_in_order_while_more_comes(tmp_path: Path) -> None:
    """Blocks are written in the background, and their errors reach who sends."""
    blocks = [bytes([number]) * (1 << 20) for number in range(5)] + [b"end"]
    async with Upload(tmp_path) as upload:
        await upload.receive("metadata", chunks(*blocks))
        assert upload.metadata.read_bytes() == b"".join(blocks)
        assert upload.fingerprint == hashlib.sha256(b"".join(blocks)).hexdigest()
    async with Upload(tmp_path, limit=3 << 20) as upload:
        with pytest.raises(TooLarge):
            await upload.receive("metadata", chunks(*blocks))
    assert names(tmp_path) == []
