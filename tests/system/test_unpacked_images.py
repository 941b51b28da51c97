"""Images that are unpacked once a pool: begun at the import, shared by launches, whole or not there."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import images
from tests.support.daemon import Daemon
from tests.support.disks import loop_ext4
from tests.support.images import Image

pytestmark = pytest.mark.root

FILES = 10_000
"""Enough that a test meets the daemon while it unpacks them."""


def unpacked(daemon: Daemon) -> list[str]:
    """The forms of images on the pool."""
    return sorted(p.name for p in (daemon.dir / "storage-pools/default/images").iterdir())


def wait_unpacked(daemon: Daemon) -> None:
    deadline = time.monotonic() + 60
    while len(unpacked(daemon)) != 1 or unpacked(daemon)[0].startswith("."):
        assert time.monotonic() < deadline, unpacked(daemon)
        time.sleep(0.02)


def set_acl(daemon: Daemon, name: str, path: str) -> subprocess.CompletedProcess[str]:
    """Set an ACL for the user 33 of a running container, as root of its user namespace."""
    pid = daemon.get(f"/1.0/instances/{name}/state")["pid"]
    inside = ["nsenter", f"--target={pid}", "--user", "setfacl", "-m", "u:33:rx", f"/proc/{pid}/root{path}"]
    return subprocess.run(inside, capture_output=True, text=True, check=False)


@pytest.fixture
def busybox_alias(daemon: Daemon, busybox_image: Image) -> str:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    return "busybox"


def test_acls_on_files_of_the_image(daemon: Daemon, busybox_alias: str) -> None:
    """`setfacl` works on the default pool, on what nothing has changed yet; with
    `overlay.unpack_images=false` it does not, and an instance keeps the form that it was made on."""
    daemon.lxc("storage", "set", "default", "overlay.unpack_images=false")
    daemon.lxc("launch", busybox_alias, "packed")
    assert "not supported" in set_acl(daemon, "packed", "/home/user").stderr
    daemon.lxc("storage", "unset", "default", "overlay.unpack_images")
    daemon.lxc("launch", busybox_alias, "new")
    for path in ("/etc", "/bin/busybox", "/home/user", "/"):
        done = set_acl(daemon, "new", path)
        assert done.returncode == 0, done.stderr
    daemon.lxc("restart", "-f", "packed", "new")
    assert "not supported" in set_acl(daemon, "packed", "/home/user").stderr
    assert set_acl(daemon, "new", "/home/user").returncode == 0
    assert len(unpacked(daemon)) == 2
    daemon.lxc("delete", "-f", "packed")
    assert len(unpacked(daemon)) == 1
    assert set_acl(daemon, "new", "/home").returncode == 0


def test_unpacking_begins_with_the_import(daemon: Daemon, busybox_alias: str) -> None:
    wait_unpacked(daemon)
    (image,) = unpacked(daemon)
    folder = daemon.dir / "storage-pools/default/images" / image
    assert folder.stat().st_mode & 0o7777 == 0o700
    assert (folder / "rootfs/bin/busybox").is_file()
    assert (folder.stat().st_uid, folder.parent.stat().st_mode & 0o7777) == (0, 0o700)
    daemon.lxc("image", "delete", busybox_alias)
    assert unpacked(daemon) == []


# ---- an image that takes a while


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """busybox and many small files as a squashfs."""
    folder = tmp_path_factory.mktemp("large")
    small = images.build_busybox(folder)
    tree = folder / "tree"
    subprocess.run(["unsquashfs", "-quiet", "-no-progress", "-dest", tree, small.rootfs], check=True)
    for number in range(FILES):
        file = tree / "srv" / f"{number % 100}" / f"{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{number}" * 50)
    rootfs = folder / "large.squashfs"
    subprocess.run(["mksquashfs", tree, rootfs, "-quiet", "-no-progress"], check=True, capture_output=True)
    return Image(small.metadata, rootfs)


@pytest.fixture
def at_work(daemon: Daemon, large: Image) -> Daemon:
    """A daemon that is just unpacking the large image."""
    assert large.rootfs is not None
    daemon.import_image(large.metadata, large.rootfs, alias="large")
    deadline = time.monotonic() + 30
    while not any(name.startswith(".new-") for name in unpacked(daemon)):
        assert time.monotonic() < deadline, "it was over before the test looked"
    return daemon


def count_files(daemon: Daemon, name: str) -> int:
    return int(daemon.lxc("exec", name, "--", "sh", "-c", "find /srv -type f | wc -l").stdout)


def test_a_kill_amid_unpacking(at_work: Daemon) -> None:
    """Nothing half-done is left, and the next launch gets the whole image."""
    at_work.kill()
    assert not [name for name in unpacked(at_work) if re.fullmatch("[0-9a-f]{64}", name)]
    at_work.start()
    assert unpacked(at_work) == []
    at_work.lxc("launch", "large", "c1")
    assert count_files(at_work, "c1") == FILES
    assert len(unpacked(at_work)) == 1


def test_the_daemon_ends_amid_unpacking(at_work: Daemon) -> None:
    began = time.monotonic()
    at_work.restart()
    assert time.monotonic() - began < 20
    assert unpacked(at_work) == []


def test_the_image_is_deleted_amid_unpacking(at_work: Daemon) -> None:
    at_work.lxc("image", "delete", "large")
    assert unpacked(at_work) == []
    assert at_work.get("/1.0/storage-pools/default/volumes") == []


def test_the_pool_is_deleted_amid_unpacking(at_work: Daemon) -> None:
    at_work.lxc("profile", "device", "remove", "default", "root")
    at_work.lxc("storage", "delete", "default")
    assert not (at_work.dir / "storage-pools/default").exists()


def test_two_launches_amid_unpacking_share_it(at_work: Daemon) -> None:
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda name: at_work.lxc("launch", "large", name), ("c1", "c2")))
    assert [count_files(at_work, name) for name in ("c1", "c2")] == [FILES, FILES]
    assert len(unpacked(at_work)) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """128 MB of ext4, which a daemon's pool may use."""
    with loop_ext4(tmp_path / "small", 128 << 20, "-m", "0", "-N", "40000") as folder:
        (folder / "source").mkdir()
        yield folder


def test_a_disk_that_is_too_small_for_the_image(small_disk: Path, daemon: Daemon, large: Image) -> None:
    """The import succeeds, the launch says that there is no room, and works as soon as there is."""
    assert large.rootfs is not None
    daemon.lxc("storage", "create", "small", "overlay", f"source={small_disk}/source")
    daemon.lxc("profile", "device", "set", "default", "root", "pool=small")
    subprocess.run(["fallocate", "-l", "100M", small_disk / "ballast"], check=True)
    daemon.import_image(large.metadata, large.rootfs, alias="large")
    refused = daemon.lxc("launch", "large", "c1", check=False).stderr
    assert "free some space" in refused, refused
    assert list((small_disk / "source/images").iterdir()) == []
    assert "its first launch retries" in daemon.log.read_text()
    (small_disk / "ballast").unlink()
    daemon.lxc("launch", "large", "c1")
    assert count_files(daemon, "c1") == FILES
    daemon.delete_instances()
    daemon.lxc("profile", "device", "set", "default", "root", "pool=default")
    daemon.lxc("image", "delete", "large")
    daemon.lxc("storage", "delete", "small")
