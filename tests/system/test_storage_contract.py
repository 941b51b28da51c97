"""What every storage driver has to do, in each way that a kernel may leave it.

A new driver joins `tests.support.pools.TYPES` by being one of the daemon's, and `WAYS` with what may differ.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.pools import (
    FINGERPRINT,
    MAP,
    OTHER,
    PRIVILEGED,
    TYPES,
    WAYS,
    TestedPool,
    acl_of,
    check_owners,
    container,
    everything,
    load,
    pack,
    source,
)
from utsuwa.core.errors import HostError, InvalidConfig, InvalidImage, OutOfSpace, ProcessFailed
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.paths import StatePaths
from utsuwa.db.database import Database
from utsuwa.db.sqlite import Sqlite
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts import mounts
from utsuwa.host.processes.run import Stopper
from utsuwa.operations.events import EventHub
from utsuwa.storage import drivers
from utsuwa.storage.base import FolderDriver
from utsuwa.storage.manager import StorageManager

pytestmark = pytest.mark.root


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param.endswith("shifted"):
        monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
    return str(request.param)


@pytest.fixture
def pool(place: Path, way: str) -> TestedPool:
    made = load(place / "pool", way)
    made.driver.create()
    return made


@pytest.fixture
def image(files: Path, way: str) -> ImageSource:
    return source(files, way)


def test_every_driver_is_tested() -> None:
    assert {way.split()[0] for way in WAYS} == TYPES.keys()


def test_an_instance_has_its_owners_in_every_way(pool: TestedPool, image: ImageSource) -> None:
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


def test_everything_comes_back_after_a_reboot(
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


def test_instances_do_not_share_what_they_write(pool: TestedPool, image: ImageSource) -> None:
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


def test_nothing_is_left(pool: TestedPool, image: ImageSource, place: Path) -> None:
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


def test_a_kill_leaves_what_the_next_mount_removes(pool: TestedPool, image: ImageSource, place: Path) -> None:
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
    if way in ("overlay", "overlay packed", "overlay untrusted", "overlay tar"):
        assert before is not None
        assert after is not None
        assert after - before >= 1 << 20
    else:
        assert before is after is None


# ---- undo


def test_what_is_not_there_can_be_taken_away(pool: TestedPool, image: ImageSource, place: Path) -> None:
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


def test_a_pool_on_what_is_somebodys_is_refused(place: Path, way: str) -> None:
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


async def test_a_file_and_a_record_make_a_driver(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "DRIVERS", TYPES)
    paths = StatePaths(place / "state")
    paths.root.mkdir(mode=0o711)
    paths.create_folders()
    database = await Database.open(Sqlite(paths.database))
    storage = StorageManager(database, paths, EventHub())
    try:
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
        await storage.volumes.rename("p", container("c1"), "c2")
        check_owners(await storage.volumes.mount("p", container("c2"), OTHER), OTHER)
        await storage.volumes.delete("p", container("c2"))
        await storage.pools.delete("p")
        assert everything(paths.root / "storage-pools") == everything(paths.containers) == []
    finally:
        await storage.stop(unmount=True)
        await database.close()
