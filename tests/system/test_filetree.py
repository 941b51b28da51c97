"""Files of a container reached from the host: nothing leads out, nothing hangs, owners come out right."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from utsuwa.core.errors import InvalidRequest, NotFound, OutOfSpace, ProcessFailed, TooLarge
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host import syscalls
from utsuwa.host.files import filetree
from utsuwa.host.files.filetree import FileTree, remove_small_tree, remove_tree
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts import mounts

pytestmark = pytest.mark.root

RANGES = (IdRange(0, 100_000, 65_536),)
MAP = IdMap(RANGES, RANGES)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hosts").write_text("inside\n")
    (tmp_path / "secret").write_text("outside\n")
    (tmp_path / "hosts").write_text("outside\n")
    return root


@pytest.fixture
def mapped(rootfs: Path) -> Iterator[Path]:
    mounts.bind_idmapped(rootfs, rootfs, MAP)
    yield rootfs
    mounts.unmount(rootfs)


@pytest.mark.parametrize("path", ["etc/hosts", "/etc/hosts", "../../etc/hosts", "link", "up"])
def test_no_path_leads_out(rootfs: Path, path: str) -> None:
    (rootfs / "link").symlink_to("/etc/hosts")
    (rootfs / "up").symlink_to("../../../../../../etc/hosts")
    with FileTree(rootfs, IdMap()) as tree:
        assert tree.read(path, 100) == b"inside\n"
        tree.write(path, b"changed\n")
    assert (rootfs / "etc/hosts").read_text() == "changed\n"


def test_paths_outside_do_not_exist(rootfs: Path) -> None:
    (rootfs / "link").symlink_to("../secret")
    with FileTree(rootfs, IdMap()) as tree:
        assert not tree.exists("link")
        assert not tree.exists("../secret")
        assert tree.exists("etc")
        with pytest.raises(NotFound, match="link"):
            tree.read("link", 100)


def test_magic_links_are_refused(rootfs: Path) -> None:
    (rootfs / "link").symlink_to("/proc/self/root/etc/passwd")
    (rootfs / "proc").mkdir()
    mounts.bind(Path("/proc"), rootfs / "proc")
    try:
        with FileTree(rootfs, IdMap()) as tree, pytest.raises(InvalidRequest):
            tree.read("link", 100)
    finally:
        mounts.unmount(rootfs / "proc")


def test_only_regular_files_are_opened(rootfs: Path) -> None:
    os.mkfifo(rootfs / "fifo")
    os.mknod(rootfs / "null", 0o20666, os.makedev(1, 3))
    with FileTree(rootfs, IdMap()) as tree:
        for path in ("fifo", "null", "etc"):
            with pytest.raises(InvalidRequest, match="not a regular file"):
                tree.read(path, 100)
            with pytest.raises(InvalidRequest, match="not a regular file"):
                tree.write(path, b"x")


def test_size_limit_and_missing_directories(rootfs: Path) -> None:
    (rootfs / "large").write_bytes(bytes(101))
    with FileTree(rootfs, IdMap()) as tree:
        assert tree.read("large", 101) == bytes(101)
        with pytest.raises(TooLarge, match="100 bytes"):
            tree.read("large", 100)
        with pytest.raises(NotFound):
            tree.write("no/such/folder/file", b"x")
        with pytest.raises(NotFound):
            tree.write("etc/hosts/file", b"x")
        (rootfs / "loop").symlink_to("loop")
        with pytest.raises(InvalidRequest):
            tree.read("loop", 1)
    with pytest.raises(NotFound):
        FileTree(rootfs / "gone", IdMap())


def test_full_disk_is_reported(rootfs: Path) -> None:
    (rootfs / "dev").mkdir()
    os.mknod(rootfs / "dev/full", 0o20666, os.makedev(1, 7))
    small = rootfs / "small"
    small.mkdir()
    syscalls.mount("none", small, "tmpfs", 0, "size=16k")
    try:
        with FileTree(rootfs, IdMap()) as tree, pytest.raises(OutOfSpace, match="small/file"):
            tree.write("small/file", bytes(100_000))
    finally:
        mounts.unmount(small)


def test_new_files_belong_to_the_container(mapped: Path) -> None:
    with FileTree(mapped, MAP) as tree:
        tree.write("/a/b/file", b"x", mode=0o640, uid=1000, gid=1001, parents=True)
        assert tree.read("/a/b/file", 10) == b"x"
    seen = (mapped / "a/b/file").stat()
    assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o7777) == (101_000, 101_001, 0o640)
    assert (mapped / "a").stat().st_mode & 0o7777 == 0o755
    mounts.unmount(mapped)
    on_disk = (mapped / "a/b/file").stat()
    assert (on_disk.st_uid, on_disk.st_gid) == (1000, 1001)
    assert (mapped / "a/b").stat().st_uid == 0


def test_existing_file_keeps_owner_and_mode(mapped: Path) -> None:
    with FileTree(mapped, MAP) as tree:
        tree.write("file", b"first", mode=0o600, uid=5)
        tree.write("file", b"2nd", mode=0o777, uid=0)
        assert tree.read("file", 10) == b"2nd"
    assert (mapped / "file").stat().st_uid == 100_005
    assert (mapped / "file").stat().st_mode & 0o7777 == 0o600


def test_a_dangling_link_is_followed_inside(rootfs: Path) -> None:
    (rootfs / "etc/resolv.conf").symlink_to("/run.conf")
    with FileTree(rootfs, IdMap()) as tree:
        tree.write("etc/resolv.conf", b"nameserver ::1\n")
    assert (rootfs / "run.conf").read_bytes() == b"nameserver ::1\n"


def test_threads_keep_their_own_credentials(mapped: Path) -> None:
    ids = as_container_root(MAP, lambda: _fs_ids(threading.get_native_id()))
    assert ids == (100_000, 100_000)
    assert _fs_ids(threading.get_native_id()) == (0, 0)
    with pytest.raises(ZeroDivisionError):
        as_container_root(MAP, lambda: 1 // 0)


def _fs_ids(thread: int) -> tuple[int, int]:
    lines = Path(f"/proc/self/task/{thread}/status").read_text().splitlines()
    fields = {line.split()[0]: line.split() for line in lines}
    return int(fields["Uid:"][4]), int(fields["Gid:"][4])


def test_removing_follows_no_symlink(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    (doomed / "link").symlink_to(kept)
    remove_tree(doomed)
    remove_tree(doomed)
    assert not doomed.exists()
    assert (kept / "file").exists()
    (tmp_path / "link").symlink_to(kept)
    remove_tree(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert (kept / "file").exists()


@pytest.mark.parametrize(("files", "levels"), [(3, 2), (filetree._SMALL + 1, 1), (1, filetree._DEEP + 10)])
def test_small_and_large_trees_are_removed(tmp_path: Path, files: int, levels: int) -> None:
    doomed = tmp_path / "doomed"
    deepest = doomed.joinpath(*["below"] * levels)
    deepest.mkdir(parents=True)
    for number in range(files):
        (deepest / f"file{number}").touch()
    (deepest / "locked").mkdir(mode=0)
    remove_tree(doomed)
    assert not doomed.exists()


def test_removing_stays_on_its_file_system(tmp_path: Path) -> None:
    doomed = tmp_path / "doomed"
    (doomed / "a").mkdir(parents=True)
    syscalls.mount("tmpfs", doomed / "a", "tmpfs", 0)
    try:
        (doomed / "a/kept").touch()
        with pytest.raises(ProcessFailed, match="different device"):
            remove_tree(doomed)
        assert (doomed / "a/kept").exists()
    finally:
        syscalls.umount2(doomed / "a")
    remove_tree(doomed)
    assert not doomed.exists()


def test_a_bind_mount_of_the_same_file_system_is_not_entered(tmp_path: Path) -> None:
    kept, doomed = tmp_path / "kept", tmp_path / "doomed"
    kept.mkdir()
    (kept / "file").touch()
    (doomed / "a").mkdir(parents=True)
    mounts.bind(kept, doomed / "a")
    try:
        assert not remove_small_tree(doomed)
        assert (kept / "file").exists()
    finally:
        mounts.unmount(doomed / "a")
    assert remove_small_tree(doomed)
    assert not doomed.exists()
    assert remove_small_tree(doomed)
