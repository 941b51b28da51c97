"""What every storage driver has to do, in each way that a kernel may leave it.

A new driver joins by being one of the daemon's: `tests.support.pools` reads in its record how it works.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.open_warnings import OpenWarnings, no_retries
from tests.support.pools import (
    FINGERPRINT,
    MAP,
    OTHER,
    PRIVILEGED,
    TYPES,
    TestedPool,
    acl_of,
    check_owners,
    container,
    everything,
    load,
    pack,
    source,
)
from utsuwa.core.errors import (
    HostError,
    InvalidConfig,
    InvalidImage,
    NotFound,
    OutOfSpace,
    ProcessFailed,
)
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.paths import StatePaths
from utsuwa.core.volumes import Volume
from utsuwa.db.database import Database
from utsuwa.db.sqlite import Sqlite
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts import mounts
from utsuwa.host.processes.stopper import Stopper
from utsuwa.operations.events import EventHub
from utsuwa.operations.operations import Operations
from utsuwa.storage import drivers
from utsuwa.storage.base import FolderDriver
from utsuwa.storage.manager import StorageManager

pytestmark = pytest.mark.root


def test_instance_files_have_mapped_owners(pool: TestedPool, image: ImageSource) -> None:
    rootfs = pool.launch(image)
    check_owners(rootfs, MAP)
    folder = pool.folder("c1")
    assert rootfs == folder / "rootfs"
    assert (folder.stat().st_mode & 0o7777, folder.stat().st_uid) == (0o100, 100_000)
    assert folder.parent.stat().st_mode & 0o7777 == 0o711
    assert (folder / "metadata.yaml").read_text().startswith("architecture")
    assert (folder / "templates/hostname.tpl").read_text() == "{{ container.name }}\n"
    as_container_root(MAP, lambda: (rootfs / "etc/new").write_text("x"))
    assert (rootfs / "etc/new").stat().st_uid == 100_000
    assert pool.names() == ["c1"]


def test_the_map_may_change(pool: TestedPool, image: ImageSource) -> None:
    rootfs = pool.launch(image)
    as_container_root(MAP, lambda: (rootfs / "mine").write_text("x"))
    as_container_root(MAP, (rootfs / "folder").mkdir)
    subprocess.run(["setfacl", "-m", f"u:{MAP.host_uid(1000)}:rwx", rootfs / "folder"], check=True)
    for ids in (PRIVILEGED, OTHER, MAP):
        pool.mount(ids=ids)
        check_owners(rootfs, ids)
        assert f"user:{ids.host_uid(1000)}:rwx" in acl_of(rootfs / "folder")
        assert (rootfs / "mine").stat().st_uid == ids.host_uid(0)
        assert pool.folder("c1").stat().st_uid == ids.host_uid(0)
        pool.unmount("c1")
        pool.unmount("c1")
        assert not mounts.mounted(pool.folder("c1") / "rootfs")


def test_mounted_once_and_found_again(pool: TestedPool, image: ImageSource, place: Path, way: str) -> None:
    pool.launch(image)
    before = len(mounts.mounts_below(place))
    again = load(place / "pool", way)
    again.driver.mount()
    again.bring(image)
    again.mount()
    assert len(mounts.mounts_below(place)) == before


def test_everything_is_available_after_a_reboot(
    pool: TestedPool, image: ImageSource, place: Path, way: str
) -> None:
    rootfs = pool.launch(image)
    as_container_root(MAP, lambda: (rootfs / "etc/hosts").write_text("kept"))
    mounts.unmount_below(place)
    again = load(place / "pool", way)
    again.driver.mount()
    assert again.mount() == rootfs
    assert (rootfs / "etc/hosts").read_text() == "kept"
    assert (rootfs / "home/user/file").stat().st_uid == 101_000


def test_instances_do_not_share_changes(pool: TestedPool, image: ImageSource) -> None:
    first, second = pool.launch(image), pool.launch(image, "c2", OTHER)
    as_container_root(MAP, lambda: (first / "etc/hosts").write_text("changed"))
    as_container_root(MAP, (first / "bin/tool").unlink)
    assert (second / "etc/hosts").read_text() != "changed"
    check_owners(second, OTHER)


def test_a_folder_beside_the_rootfs(pool: TestedPool, image: ImageSource) -> None:
    """It shows the container's ids, keeps what is in it, and goes where the instance goes."""
    if not isinstance(pool.driver, FolderDriver):
        pytest.skip("the driver has none")
    pool.launch(image)
    place = pool.mount_folder("docker")
    assert place.stat().st_uid == MAP.host_uid(0)

    def write() -> None:
        (place / "file").write_text("kept")
        os.chown(place / "file", MAP.host_uid(33), MAP.host_gid(33))

    as_container_root(MAP, write)
    assert pool.mount_folder("docker") == place
    pool.rename("c1", "c2")
    for ids in (OTHER, MAP, PRIVILEGED):
        pool.mount("c2", ids)
        shown = pool.mount_folder("docker", "c2", ids)
        assert (shown / "file").read_text() == "kept"
        assert (shown / "file").stat().st_uid == ids.host_uid(33)
        assert pool.mount_folder("new", "c2", ids).stat().st_uid == ids.host_uid(0)
        pool.unmount("c2")
    pool.delete("c2")
    assert not place.exists()


def test_rename(pool: TestedPool, image: ImageSource) -> None:
    rootfs = pool.launch(image)
    as_container_root(MAP, lambda: (rootfs / "mine").write_text("x"))
    pool.launch(image, "taken")
    with pytest.raises(HostError, match="taken"):
        pool.rename("c1", "taken")
    for _ in range(2):
        pool.rename("c1", "c2")
        assert pool.names() == ["c2", "taken"]
    assert (pool.mount("c2") / "mine").read_text() == "x"


def test_deleted_pool_leaves_nothing(pool: TestedPool, image: ImageSource, place: Path) -> None:
    pool.launch(image)
    pool.launch(image, "c2", PRIVILEGED)
    for name in ("c1", "c2", "c1", "never"):
        pool.delete(name)
    pool.images.delete_image(FINGERPRINT)
    pool.images.delete_image(FINGERPRINT)
    assert pool.names() == pool.images.images() == []
    assert mounts.mounts_below(place) == []
    pool.driver.delete()
    assert everything(place) == []


def test_files_mounted_into_an_instance_survive_its_deletion(
    pool: TestedPool, image: ImageSource, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    rootfs = pool.launch(image)
    pool.driver.unmount_volume(container("c1"))
    mounts.bind(tmp_path / "kept", rootfs)
    inside = pool.folder("c1") / "templates/inside"
    inside.mkdir()
    mounts.bind(tmp_path / "kept", inside)
    pool.driver.delete_volume(container("c1"))
    assert (tmp_path / "kept/file").exists()
    assert pool.names() == []
    assert mounts.mounts_below(pool.folder("c1").parent) == []


def test_without_an_image(pool: TestedPool) -> None:
    pool.create(None, "empty")
    rootfs = pool.mount("empty")
    assert list(rootfs.iterdir()) == []
    assert rootfs.stat().st_uid == 100_000
    pool.delete("empty")


def test_a_name_that_is_taken(pool: TestedPool, image: ImageSource) -> None:
    pool.launch(image)
    with pytest.raises(HostError, match="there already"):
        pool.create(image)
    assert pool.names() == ["c1"]


def test_leftovers_of_a_kill_are_removed_by_the_next_mount(
    pool: TestedPool, image: ImageSource, place: Path
) -> None:
    pool.launch(image)
    for below in ("containers", "images"):
        for name in (".new-0123", ".gone-0123"):
            (place / "pool" / below / name / "rootfs/etc").mkdir(parents=True)
    (place / "elsewhere").mkdir()
    mounts.bind(place / "elsewhere", place / "pool/images/.new-0123/rootfs")
    pool.driver.mount()
    left = [p.name for below in ("containers", "images") for p in (place / "pool" / below).iterdir()]
    assert not [name for name in left if name.startswith(".")]
    assert pool.names() == ["c1"]


def test_usage(pool: TestedPool, image: ImageSource, way: str) -> None:
    rootfs = pool.launch(image)
    usage = pool.driver.usage()
    assert 0 < usage.space_used < usage.space_total
    assert 0 <= usage.inodes_used <= usage.inodes_total
    before = pool.driver.volume_usage(container("c1"))
    as_container_root(MAP, lambda: (rootfs / "large").write_bytes(os.urandom(1 << 20)))
    after = pool.driver.volume_usage(container("c1"))
    if before is None:  # measuring it would take long
        assert after is None
        assert way not in ("overlay", "overlay packed")
    else:
        assert after is not None
        assert after - before >= 1 << 20


# ---- undo


def test_removals_are_idempotent(pool: TestedPool, image: ImageSource, place: Path) -> None:
    """An undo step does not know how far the step came that it undoes."""
    for _ in range(2):
        pool.delete("never")
        pool.unmount("never")
        pool.images.delete_image(FINGERPRINT)
    assert pool.images.image_of(container("never")) is None
    pool.launch(image)
    pool.rename("c1", "c2")
    for _ in range(2):
        pool.rename("c2", "c1")
    assert pool.names() == ["c1"]
    pool.delete("c1")
    pool.images.delete_image(FINGERPRINT)
    for _ in range(2):
        pool.driver.unmount()
        pool.driver.delete()
        assert everything(place) == []


def test_a_filling_that_fails_leaves_nothing(pool: TestedPool, place: Path) -> None:
    before = everything(place)

    def fill(folder: Path) -> None:
        (folder / "rootfs").mkdir()
        (folder / "rootfs/half").write_text("x")
        raise InvalidImage("broken")

    with pytest.raises(InvalidImage):
        pool.driver.create_volume(container("c1"), MAP, fill)
    assert everything(place) == before
    pool.create(None)


def test_a_stopped_creation_leaves_nothing(
    pool: TestedPool, image: ImageSource, place: Path, way: str
) -> None:
    before = everything(place)
    stopper = Stopper()
    stopper.stop()

    def make() -> None:
        pool.bring(image, stopper)
        pool.images.create_from_image(container("c1"), MAP, image, stopper)

    if way == "overlay packed":
        make()  # nothing of it takes long
        return
    with pytest.raises(ProcessFailed, match="stopped"):
        make()
    assert everything(place) == before
    pool.launch(image)


def test_pool_on_a_directory_with_files_is_rejected(place: Path, way: str) -> None:
    (place / "pool").mkdir()
    (place / "pool/precious").touch()
    with pytest.raises(InvalidConfig, match="not empty"):
        load(place / "pool", way).driver.create()
    assert everything(place) == ["pool", "pool/precious"]


# ---- what hosts and images have in store


def test_out_of_space(
    place: Path, small_disk: Path, files: Path, way: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pool = load(small_disk / "pool", way)
    pool.driver.create()
    tree = tmp_path_factory.mktemp("large")
    (tree / "large").write_bytes(os.urandom(20 << 20))
    rootfs = place / ("large.tar" if way.endswith("tar") else "large.squashfs")
    pack(tree, rootfs)
    before = everything(small_disk)
    image = ImageSource(FINGERPRINT, files / "metadata.tar.xz", rootfs, trusted="untrusted" not in way)
    with pytest.raises(OutOfSpace):
        pool.launch(image)
    assert everything(small_disk) == before
    assert [m.target for m in mounts.mounts_below(small_disk)] == [small_disk]


def test_device_nodes_open_for_privileged_containers_only(pool: TestedPool, image: ImageSource) -> None:
    """A node in an image would be the host's disk: nothing else stands between it and the container."""
    rootfs = pool.launch(image)
    pool.unmount("c1")
    rootfs = pool.mount(ids=IdMap())
    os.mknod(rootfs / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    assert (rootfs / "null").read_bytes() == b""
    pool.unmount("c1")
    rootfs = pool.mount()
    with pytest.raises(PermissionError):
        (rootfs / "null").read_bytes()


# ---- a driver that the daemon does not have


@asynccontextmanager
async def storage_of(paths: StatePaths) -> AsyncIterator[StorageManager]:
    paths.root.mkdir(mode=0o711)
    paths.create_directories()
    database = await Database.open(Sqlite(paths.database))
    storage = StorageManager(database, paths, Operations(EventHub()), OpenWarnings(), no_retries())
    try:
        yield storage
    finally:
        await storage.stop(unmount=True)
        await database.close()


async def test_a_file_and_a_record_make_a_driver(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "DRIVERS", TYPES)
    paths = StatePaths(place / "state")
    async with storage_of(paths) as storage:
        await storage.pools.create("p", "plain", config={"volume.plain.shade": "dark"})
        assert (await storage.pools.get("p")).config == {
            "source": str(paths.pool("p")),
            "plain.color": "white",
            "volume.plain.shade": "dark",
        }
        with pytest.raises(InvalidConfig, match="overlay"):
            await storage.pools.create("q", "plain", config={"overlay.mount_options": "index=on"})
        await storage.volumes.create("p", container("c1"), MAP, source(files, "plain"))
        check_owners(await storage.volumes.mount("p", container("c1"), MAP), MAP)
        await storage.volumes.rename("p", container("c1"), container("c2"))
        check_owners(await storage.volumes.mount("p", container("c2"), OTHER), OTHER)
        await storage.volumes.delete("p", container("c2"))
        await storage.pools.delete("p")
        assert everything(paths.root / "storage-pools") == everything(paths.containers) == []


async def test_a_driver_that_needs_idmapped_mounts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "DRIVERS", TYPES)
    monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
    paths = StatePaths(place / "state")
    async with storage_of(paths) as storage:
        with pytest.raises(HostError, match="has no idmapped mounts"):
            await storage.pools.create("p", "plain")
        with pytest.raises(NotFound):
            await storage.pools.get("p")
        assert everything(paths.root / "storage-pools") == []


def custom(name: str, snapshot: str | None = None) -> Volume:
    return Volume("custom", "default", name, snapshot)


def test_custom_volumes_are_trees_of_their_own(pool: TestedPool) -> None:
    """They can be shown through one map after the other, copied while they are mounted, and measured."""
    driver, copies = pool.driver, pool.copies

    def fill(folder: Path) -> None:
        (folder / "rootfs").mkdir(mode=0o711)
        (folder / "rootfs/file").write_text("content")
        os.chown(folder / "rootfs/file", 1000, 7)

    driver.create_volume(custom("v1"), PRIVILEGED, fill)
    assert driver.volumes("custom") == ["default_v1"]
    assert driver.volumes("container") == []
    for ids in (MAP, OTHER, PRIVILEGED, MAP):
        shown = driver.mount_volume(custom("v1"), ids)
        status = (shown / "file").stat()
        assert (status.st_uid, status.st_gid) == (ids.host_uid(1000), ids.host_gid(7))
        assert shown.stat().st_uid == ids.host_uid(0)
        assert shown == driver.volume_folder(custom("v1")) / "rootfs"
    copies.copy_volume(custom("v1"), custom("v1", "s1"), PRIVILEGED, Stopper(), mounted=MAP)
    copies.copy_volume(custom("v1"), custom("v2"), PRIVILEGED, Stopper(), mounted=MAP)
    driver.unmount_volume(custom("v1"))
    assert mounts.mounts_below(driver.volume_folder(custom("v1"))) == []
    copies.copy_volume(custom("v1", "s1"), custom("v3"), PRIVILEGED, Stopper())
    assert driver.snapshots(custom("v1")) == ["s1"]
    assert driver.volumes("custom") == ["default_v1", "default_v2", "default_v3"]
    for name in ("v2", "v3"):
        shown = driver.mount_volume(custom(name), OTHER)
        assert (shown / "file").stat().st_uid == OTHER.host_uid(1000)
        assert (shown / "file").read_text() == "content"
        assert "overlay" not in {mount.fstype for mount in mounts.mounts_below(shown)}
        assert (driver.volume_usage(custom(name)) or 4096) >= 4096
        driver.unmount_volume(custom(name))
    for name in ("v2", "v3"):
        driver.delete_volume(custom(name))
    driver.delete_volume(custom("v1", "s1"))
    driver.delete_volume(custom("v1"))
    assert driver.volumes("custom") == []
