"""Trees that are brought up to date with others, in place and with the files of an older copy."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pools import MAP
from tests.support.whole_trees import differences, tree
from utsuwa.core.errors import ProcessFailed
from utsuwa.core.idmap import IdMap
from utsuwa.host.files.shift import Shift, shift_owners
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.drivers.tree_sync import sync_tree

pytestmark = pytest.mark.root


@pytest.fixture
def source(place: Path) -> Path:
    root = place / "source"
    (root / "dir/below").mkdir(parents=True)
    for name in ("one", "two", "dir/three"):
        (root / name).write_text(name * 1000)
    (root / "dir/link").hardlink_to(root / "one")
    (root / "symlink").symlink_to("one")
    os.mkfifo(root / "fifo")
    os.chown(root / "two", 1000, 7)
    return root


@pytest.fixture(params=["in place", "with an older copy"])
def refresh(request: pytest.FixtureRequest, place: Path, source: Path) -> Callable[[], Path]:
    """Copies the tree; what is returned refreshes the copy, and gives it."""
    copy = place / "copy"
    subprocess.run(["cp", "--archive", source, copy], check=True)

    def run() -> Path:
        if request.param == "in place":
            sync_tree(source, copy, Stopper())
        else:
            old = copy.rename(place / "old")
            sync_tree(source, copy, Stopper(), like=old)
            shutil.rmtree(old)
        return copy

    return run


def inodes(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.lstat().st_ino for p in root.rglob("*") if not p.is_dir()}


def test_what_is_the_same_stays(place: Path, source: Path, refresh: Callable[[], Path]) -> None:
    before = inodes(place / "copy")
    subprocess.run(["cp", "--archive", "--link", place / "copy", place / "kept"], check=True)
    (source / "two").write_text("changed")
    copy = refresh()
    shutil.rmtree(place / "kept")  # until now no number of an inode could be used again
    assert differences(tree(copy), tree(source)) == []
    after = inodes(copy)
    assert {name for name in before if after[name] != before[name]} == {"two"}


def split(root: Path) -> None:
    """Have two names of a file become two files with the same content and times."""
    subprocess.run(["cp", "--archive", root / "one", root / "copied"], check=True)
    (root / "copied").rename(root / "one")


def join(root: Path) -> None:
    (root / "two").unlink()
    (root / "two").hardlink_to(root / "one")


def exchange(root: Path) -> None:
    """Have a file become a directory, and the reverse."""
    shutil.rmtree(root / "dir")
    (root / "dir").write_text("file")
    (root / "two").unlink()
    (root / "two/new").mkdir(parents=True)


def default_acl(root: Path) -> None:
    """New files in the copy get this ACL from the kernel, those of the source have none."""
    (root / "dir/new").write_text("new")
    (root / "dir/folder").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx", root / "dir"], check=True)


def attributes(root: Path) -> None:
    os.setxattr(root / "dir", "user.a", b"1")
    os.setxattr(root / "one", "user.a", b"2")
    (root / "two").chmod(0o4711)
    (root / "dir/below").chmod(0o700)
    os.chown(root / "symlink", 5, 6, follow_symlinks=False)


def fewer_attributes(root: Path) -> None:
    os.removexattr(root / "dir", "user.b")
    os.removexattr(root / "one", "user.b")


@pytest.mark.parametrize("change", [split, join, exchange, default_acl, attributes, fewer_attributes])
def test_changes(
    place: Path, source: Path, change: Callable[[Path], None], refresh: Callable[[], Path]
) -> None:
    if change is fewer_attributes:
        for root in (source, place / "copy"):
            os.setxattr(root / "dir", "user.b", b"1")
            os.setxattr(root / "one", "user.b", b"2")
    change(source)
    assert differences(tree(refresh()), tree(source)) == []


@pytest.mark.parametrize("change", [split, join, exchange, default_acl, attributes])
def test_changes_of_the_copy(
    place: Path, source: Path, change: Callable[[Path], None], refresh: Callable[[], Path]
) -> None:
    change(place / "copy")
    assert differences(tree(refresh()), tree(source)) == []


def test_content_that_changed_without_its_times(source: Path, refresh: Callable[[], Path]) -> None:
    times = (source / "two").stat()
    (source / "two").write_text("owt" * 1000)
    os.utime(source / "two", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (refresh() / "two").read_text() == "owt" * 1000


def test_owners_are_shifted(place: Path, source: Path) -> None:
    expected = tree(source)
    copy = place / "copy"
    subprocess.run(["cp", "--archive", source, copy], check=True)
    before = inodes(copy)
    shift_owners(source, Shift(IdMap(), MAP))
    sync_tree(source, copy, Stopper(), shift=Shift(MAP, IdMap()))
    assert differences(tree(copy), expected) == []
    assert inodes(copy) == before


def test_it_can_be_stopped(source: Path, place: Path) -> None:
    stopper = Stopper()
    stopper.stop()
    (place / "copy").mkdir()
    with pytest.raises(ProcessFailed, match="stopped"):
        sync_tree(source, place / "copy", stopper)
