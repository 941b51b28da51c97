"""Small trees are copied in this process: nothing of them is lost, and large ones are left to a program."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.drivers import small_trees
from utsuwa.storage.drivers.small_trees import copy_small_tree

pytestmark = pytest.mark.root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tree = tmp_path / "source"
    (tree / "folder/inner").mkdir(parents=True)
    (tree / "folder/file").write_text("content")
    (tree / "again").hardlink_to(tree / "folder/file")
    (tree / "link").symlink_to("folder/file")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
    os.mknod(tree / "whiteout", stat.S_IFCHR, 0)
    os.setxattr(tree / "folder", "trusted.overlay.opaque", b"y")
    os.setxattr(tree / "folder/file", "user.own", b"1")
    (tree / "folder/file").chmod(0o4750)
    os.chown(tree / "link", 12, 34, follow_symlinks=False)
    os.chown(tree / "folder", 100_000, 100_001)
    for path in (tree / "folder/file", tree / "link", tree / "folder/inner", tree / "folder", tree):
        os.utime(path, ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
    return tree


def _look(tree: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in (tree, *tree.rglob("*")):
        status = path.lstat()
        names = os.listxattr(path, follow_symlinks=False)
        found[str(path.relative_to(tree))] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_rdev),
            *(status.st_mtime_ns, status.st_size),
            {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
            path.read_bytes() if stat.S_ISREG(status.st_mode) else None,
            path.readlink() if path.is_symlink() else None,
        )
    return found


def test_everything_is_copied(source: Path, tmp_path: Path) -> None:
    assert copy_small_tree(source, tmp_path / "copy", None)
    assert _look(tmp_path / "copy") == _look(source)
    assert (tmp_path / "copy/again").samefile(tmp_path / "copy/folder/file")


def test_zeros_take_no_space(source: Path, tmp_path: Path) -> None:
    size = (1 << 20) + 100
    content = bytearray(size)
    content[70_000] = content[-1] = 1
    (source / "journal").write_bytes(content)
    (source / "zeros").write_bytes(bytes(size))
    assert copy_small_tree(source, tmp_path / "copy", None)
    assert (tmp_path / "copy/journal").read_bytes() == content
    assert (tmp_path / "copy/journal").stat().st_blocks * 512 < 300_000
    assert (tmp_path / "copy/zeros").read_bytes() == bytes(size)
    assert (tmp_path / "copy/zeros").stat().st_blocks == 0


def test_large_trees_are_left_to_a_program(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    monkeypatch.setattr(small_trees, "_MOST_ENTRIES", 5)
    assert not copy_small_tree(source, copy, None)
    monkeypatch.setattr(small_trees, "_MOST_ENTRIES", 400)
    (source / "big").write_bytes(b"x" * 70_000)
    monkeypatch.setattr(small_trees, "_MOST_BYTES", 60_000)
    assert not copy_small_tree(source, copy, None)
    assert not copy.exists()


def test_what_is_not_a_new_tree_is_left_alone(source: Path, tmp_path: Path) -> None:
    assert not copy_small_tree(source / "folder/file", tmp_path / "copy", None)
    (tmp_path / "there").mkdir()
    assert not copy_small_tree(source, tmp_path / "there", None)
    assert list((tmp_path / "there").iterdir()) == []


def test_a_stopped_copy_leaves_nothing(source: Path, tmp_path: Path) -> None:
    stopper = Stopper()
    stopper.stop()
    with pytest.raises(ProcessFailed, match="stopped before its end"):
        copy_small_tree(source, tmp_path / "copy", stopper)
    assert not (tmp_path / "copy").exists()


def test_a_failed_copy_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        copy_small_tree(source, tmp_path / "copy", None)
    assert not (tmp_path / "copy").exists()
