"""Watches of files on an overlay get paths in the images of CRIU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from utsuwa.core.protobuf import InvalidMessage, encoded
from utsuwa.host import syscalls
from utsuwa.host.checkpoint import watches
from utsuwa.host.checkpoint.image_format import messages, with_messages

MAGIC = b"\x19CVT\x30\x33\x38\x59"
HANDLE = bytes(range(1, 13))
DEVICE = 1 << 20 | 48
OTHER_FILE = encoded(1, 0, 1) + encoded(2, 0, 7) + encoded(3, 2, b"\xff\xff")


def part(number: int, *fields: bytes) -> bytes:
    return encoded(number, 2, b"".join(fields))


def inotify(device: int = DEVICE, *more: bytes) -> bytes:
    """A file with a watch, whose handle has `more` fields."""
    words = [int.from_bytes(word.ljust(8, b"\0"), "little") for word in (HANDLE[:8], HANDLE[8:])]
    handle = part(7, encoded(1, 0, 12), encoded(2, 0, 248), *(encoded(3, 0, word) for word in words), *more)
    numbers = (encoded(number, 0, 5) for number in (1, 2, 3, 4))
    watch = part(5, *numbers, encoded(5, 0, device), encoded(6, 0, 1), handle)
    return encoded(1, 0, 8) + encoded(2, 0, 9) + part(13, encoded(1, 0, 9), watch)


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bytes]]:
    """Name the watches of a container whose root is that of the host, and return the files in the image."""
    (tmp_path / "etc").mkdir()

    def open_by_handle_at(_mount: int, kind: int, handle: bytes) -> int:
        assert (kind, handle) == (248, HANDLE)
        return os.open(tmp_path / "etc", os.O_PATH | os.O_CLOEXEC)

    monkeypatch.setattr(syscalls, "open_by_handle_at", open_by_handle_at)

    def run(*files: bytes, fstype: str = "overlay") -> list[bytes]:
        process = tmp_path / "proc" / "42"
        process.mkdir(parents=True)
        (process / "root").symlink_to("/")
        (process / "mountinfo").write_text(f"33 1 1:48 / / rw - {fstype} none rw\n")
        (tmp_path / "files.img").write_bytes(with_messages(MAGIC, files))
        watches.name(tmp_path, 42, tmp_path / "proc")
        return list(messages((tmp_path / "files.img").read_bytes()))

    return run


def test_a_watch_gets_the_path_and_the_mount(tmp_path: Path, named: Callable[..., list[bytes]]) -> None:
    path = str(tmp_path / "etc").encode()
    assert named(OTHER_FILE, inotify()) == [
        OTHER_FILE,
        inotify(DEVICE, encoded(4, 2, path), encoded(5, 0, 33)),
    ]


def test_others_stay_as_they_are(named: Callable[..., list[bytes]]) -> None:
    files = [inotify(DEVICE, encoded(4, 2, b"/run"), encoded(5, 0, 2)), inotify(49)]
    assert named(*files) == files


def test_only_those_of_overlays_are_looked_at(named: Callable[..., list[bytes]]) -> None:
    assert named(inotify(), fstype="ext4") == [inotify()]


def test_a_removed_file_has_no_path(
    named: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> int:
        raise OSError

    monkeypatch.setattr(syscalls, "open_by_handle_at", stale)
    assert named(inotify()) == [inotify()]


def test_a_damaged_image_is_an_error(named: Callable[..., list[bytes]]) -> None:
    with pytest.raises(InvalidMessage):
        named(b"\x0d\x01")
