"""The storage drivers on the real kernel, in each way that a kernel may leave them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from utsuwa.core.errors import HostError, InvalidConfig, InvalidImage, OutOfSpace, ProcessFailed
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts import mounts
from utsuwa.host.mounts.userns import close_user_namespaces
from utsuwa.host.processes.run import Stopper
from utsuwa.storage.base import Driver, ImageSource, InstanceVolume
from utsuwa.storage.drivers import load_driver

pytestmark = pytest.mark.root

PRIVILEGED = IdMap()
FINGERPRINT = "ab" * 32


def idmap(host: int, count: int = 65_536) -> IdMap:
    ranges = (IdRange(0, host, count),)
    return IdMap(ranges, ranges)


MAP, OTHER = idmap(100_000), idmap(2_000_000)

WAYS = (
    *("overlay", "overlay packed", "overlay untrusted", "overlay tar", "overlay shifted"),
    *("dir", "dir tar", "dir shifted"),
)
"""A driver, and what holds: `unpack_images` is off and the image a squashfs that may be mounted (packed) or
may not (untrusted); it is a tar; there are no idmapped mounts."""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`metadata.tar.xz`, `rootfs.squashfs` and `rootfs.tar` of one small tree."""
    folder = tmp_path_factory.mktemp("image")
    tree = folder / "tree"
    for path, owner in (("bin/tool", 0), ("home/user/file", 1000), ("etc/hosts", 0)):
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"#!/bin/sh\n" * 100)
        os.chown(file, owner, owner)
    (tree / "bin/tool").chmod(0o4755)
    (tree / "bin/second").hardlink_to(tree / "bin/tool")
    (tree / "bin/link").symlink_to("tool")
    os.chown(tree / "bin/link", 7, 7, follow_symlinks=False)
    subprocess.run(["cp", "/bin/true", tree / "bin/ping"], check=True)
    subprocess.run(["setcap", "cap_net_raw+ep", tree / "bin/ping"], check=True)
    subprocess.run(
        ["mksquashfs", tree, folder / "rootfs.squashfs", "-quiet", "-no-progress"],
        check=True,
        capture_output=True,
    )
    subprocess.run(["tar", "-C", tree, "--xattrs", "-cf", folder / "rootfs.tar", "."], check=True)
    meta = folder / "meta"
    (meta / "templates").mkdir(parents=True)
    (meta / "metadata.yaml").write_text("architecture: x86_64\ncreation_date: 1\n")
    (meta / "templates/hostname.tpl").write_text("{{ container.name }}\n")
    with tarfile.open(folder / "metadata.tar.xz", "w:xz") as tar:
        tar.add(meta / "metadata.yaml", "metadata.yaml")
        tar.add(meta / "templates", "templates")
    return folder


def source(files: Path, way: str) -> ImageSource:
    rootfs = files / ("rootfs.tar" if way.endswith("tar") else "rootfs.squashfs")
    return ImageSource(FINGERPRINT, files / "metadata.tar.xz", rootfs, trusted="untrusted" not in way)


def load(folder: Path, way: str) -> Driver:
    """The driver of a way, for a pool that is made or was made before."""
    off = {"overlay.unpack_images": "false"} if way in ("overlay packed", "overlay untrusted") else {}
    return load_driver(way.split()[0], folder, off)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    tmp_path.chmod(0o711)
    yield tmp_path
    mounts.unmount_below(tmp_path)
    close_user_namespaces()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param.endswith("shifted"):
        monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
    return str(request.param)


def pool(place: Path, driver: str, **config: str) -> Driver:
    made = load_driver(driver, place / "pool", {key.replace("__", "."): v for key, v in config.items()})
    made.create()
    return made


@pytest.fixture
def driver(place: Path, way: str) -> Driver:
    made = load(place / "pool", way)
    made.create()
    return made


@pytest.fixture
def image(files: Path, way: str) -> ImageSource:
    return source(files, way)


def volume(name: str = "c1", ids: IdMap = MAP) -> InstanceVolume:
    return InstanceVolume(name, ids, FINGERPRINT)


def launch(driver: Driver, image: ImageSource, name: str = "c1", ids: IdMap = MAP) -> Path:
    driver.ensure_image(image)
    driver.create_instance(volume(name, ids), image)
    return driver.mount_instance(volume(name, ids))


def check_owners(rootfs: Path, ids: IdMap) -> None:
    """Everything shows the ids that the map gives to the container's."""
    for path, owner in (
        (".", 0),
        ("etc/hosts", 0),
        ("home/user/file", 1000),
        ("bin/tool", 0),
        ("bin/link", 7),
    ):
        status = (rootfs / path).lstat()
        assert (status.st_uid, status.st_gid) == (ids.host_uid(owner), ids.host_gid(owner)), path
    assert (rootfs / "bin/tool").stat().st_mode & stat.S_ISUID
    assert (rootfs / "bin/tool").stat().st_ino == (rootfs / "bin/second").stat().st_ino
    capability = os.getxattr(rootfs / "bin/ping", "security.capability")
    root = int.from_bytes(capability[20:24], "little")
    assert root == ids.host_uid(0)


def acl_of(path: Path) -> str:
    return subprocess.run(["getfacl", "-cn", path], capture_output=True, text=True, check=True).stdout


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_an_instance_has_its_owners_in_every_way(driver: Driver, image: ImageSource) -> None:
    rootfs = launch(driver, image)
    check_owners(rootfs, MAP)
    folder = driver.instance_folder("c1")
    assert rootfs == folder / "rootfs"
    assert (folder.stat().st_mode & 0o7777, folder.stat().st_uid) == (0o100, 100_000)
    assert folder.parent.stat().st_mode & 0o7777 == 0o711
    assert (folder / "metadata.yaml").read_text().startswith("architecture")
    assert (folder / "templates/hostname.tpl").read_text() == "{{ container.name }}\n"
    as_container_root(MAP, lambda: (rootfs / "etc/new").write_text("x"))
    assert (rootfs / "etc/new").stat().st_uid == 100_000
    assert driver.instances() == ["c1"]


def test_the_map_may_change(driver: Driver, image: ImageSource) -> None:
    rootfs = launch(driver, image)
    as_container_root(MAP, lambda: (rootfs / "mine").write_text("x"))
    as_container_root(MAP, (rootfs / "folder").mkdir)
    subprocess.run(["setfacl", "-m", f"u:{MAP.host_uid(1000)}:rwx", rootfs / "folder"], check=True)
    for ids in (PRIVILEGED, OTHER, MAP):
        driver.mount_instance(volume(ids=ids))
        check_owners(rootfs, ids)
        assert f"user:{ids.host_uid(1000)}:rwx" in acl_of(rootfs / "folder")
        assert (rootfs / "mine").stat().st_uid == ids.host_uid(0)
        assert driver.instance_folder("c1").stat().st_uid == ids.host_uid(0)
        driver.unmount_instance("c1")
        driver.unmount_instance("c1")
        assert not mounts.mounted(driver.instance_folder("c1") / "rootfs")


def test_mounted_once_and_found_again(driver: Driver, image: ImageSource, place: Path, way: str) -> None:
    launch(driver, image)
    before = len(mounts.mounts_below(place))
    again = load(place / "pool", way)
    again.mount()
    again.ensure_image(image)
    again.mount_instance(volume())
    assert len(mounts.mounts_below(place)) == before


def test_everything_comes_back_after_a_reboot(
    driver: Driver, image: ImageSource, place: Path, way: str
) -> None:
    rootfs = launch(driver, image)
    as_container_root(MAP, lambda: (rootfs / "etc/hosts").write_text("kept"))
    mounts.unmount_below(place)
    again = load(place / "pool", way)
    again.mount()
    assert again.mount_instance(volume()) == rootfs
    assert (rootfs / "etc/hosts").read_text() == "kept"
    assert (rootfs / "home/user/file").stat().st_uid == 101_000


def test_instances_do_not_share_what_they_write(driver: Driver, image: ImageSource) -> None:
    first, second = launch(driver, image), launch(driver, image, "c2", OTHER)
    as_container_root(MAP, lambda: (first / "etc/hosts").write_text("changed"))
    as_container_root(MAP, (first / "bin/tool").unlink)
    assert (second / "etc/hosts").read_text() != "changed"
    check_owners(second, OTHER)


def test_a_folder_beside_the_rootfs(driver: Driver, image: ImageSource) -> None:
    """It shows the container's ids, keeps what is in it, and goes where the instance goes."""
    launch(driver, image)
    place = driver.mount_folder(volume(), "docker")
    assert place.stat().st_uid == MAP.host_uid(0)

    def write() -> None:
        (place / "file").write_text("kept")
        os.chown(place / "file", MAP.host_uid(33), MAP.host_gid(33))

    as_container_root(MAP, write)
    assert driver.mount_folder(volume(), "docker") == place
    driver.rename_instance("c1", "c2")
    for ids in (OTHER, MAP, PRIVILEGED):
        driver.mount_instance(volume("c2", ids))
        shown = driver.mount_folder(volume("c2", ids), "docker")
        assert (shown / "file").read_text() == "kept"
        assert (shown / "file").stat().st_uid == ids.host_uid(33)
        assert driver.mount_folder(volume("c2", ids), "new").stat().st_uid == ids.host_uid(0)
        driver.unmount_instance("c2")
    driver.delete_instance("c2")
    assert not place.exists()


def test_rename(driver: Driver, image: ImageSource) -> None:
    rootfs = launch(driver, image)
    as_container_root(MAP, lambda: (rootfs / "mine").write_text("x"))
    launch(driver, image, "taken")
    with pytest.raises(HostError, match="taken"):
        driver.rename_instance("c1", "taken")
    driver.rename_instance("c1", "c2")
    assert driver.instances() == ["c2", "taken"]
    assert (driver.mount_instance(volume("c2")) / "mine").read_text() == "x"


def test_nothing_is_left(driver: Driver, image: ImageSource, place: Path) -> None:
    launch(driver, image)
    launch(driver, image, "c2", PRIVILEGED)
    for name in ("c1", "c2", "c1", "never"):
        driver.delete_instance(name)
    driver.delete_image(FINGERPRINT)
    driver.delete_image(FINGERPRINT)
    assert driver.instances() == driver.images() == []
    assert mounts.mounts_below(place) == []
    driver.delete()
    assert everything(place) == []


def test_without_an_image(driver: Driver) -> None:
    empty = InstanceVolume("empty", MAP)
    driver.create_instance(empty, None)
    rootfs = driver.mount_instance(empty)
    assert list(rootfs.iterdir()) == []
    assert rootfs.stat().st_uid == 100_000
    driver.delete_instance("empty")


def test_a_name_that_is_taken(driver: Driver, image: ImageSource) -> None:
    launch(driver, image)
    with pytest.raises(HostError, match="there already"):
        driver.create_instance(volume(), image)
    assert driver.instances() == ["c1"]


def test_a_kill_leaves_what_the_next_mount_removes(driver: Driver, image: ImageSource, place: Path) -> None:
    launch(driver, image)
    for below in ("containers", "images"):
        for name in (".new-0123", ".gone-0123"):
            (place / "pool" / below / name / "rootfs/etc").mkdir(parents=True)
    mounts.bind(place / "pool/custom", place / "pool/images/.new-0123/rootfs")
    driver.mount()
    left = [p.name for below in ("containers", "images") for p in (place / "pool" / below).iterdir()]
    assert not [name for name in left if name.startswith(".")]
    assert driver.instances() == ["c1"]


def test_usage(driver: Driver, image: ImageSource, way: str) -> None:
    rootfs = launch(driver, image)
    usage = driver.usage()
    assert 0 < usage.space_used < usage.space_total
    assert 0 <= usage.inodes_used <= usage.inodes_total
    before = driver.instance_usage("c1")
    as_container_root(MAP, lambda: (rootfs / "large").write_bytes(os.urandom(1 << 20)))
    after = driver.instance_usage("c1")
    if way in ("overlay", "overlay packed", "overlay untrusted", "overlay tar"):
        assert before is not None
        assert after is not None
        assert after - before >= 1 << 20
    else:
        assert before is after is None


# ---- what only one driver does


@pytest.mark.parametrize(("way", "kinds"), [("overlay", []), ("overlay packed", ["squashfs"])])
def test_an_image_is_there_once(place: Path, files: Path, way: str, kinds: list[str]) -> None:
    driver = load(place / "pool", way)
    driver.create()
    image = source(files, way)
    launch(driver, image)
    launch(driver, image, "c2")
    assert driver.images() == [FINGERPRINT]
    assert driver.image_users(FINGERPRINT) == ["c1", "c2"]
    assert driver.image_users("cd" * 32) == []
    assert sorted(m.fstype for m in mounts.mounts_below(place)) == ["overlay", "overlay", *kinds]
    assert driver.delete_instance("c1") == FINGERPRINT
    assert driver.image_users(FINGERPRINT) == ["c2"]


@pytest.mark.parametrize("way", ["overlay", "overlay packed"])
def test_the_pool_keeps_an_image_that_is_deleted_elsewhere(place: Path, files: Path, way: str) -> None:
    copy = place / "copy.squashfs"
    copy.write_bytes((files / "rootfs.squashfs").read_bytes())
    driver = load(place / "pool", way)
    driver.create()
    launch(driver, ImageSource(FINGERPRINT, files / "metadata.tar.xz", copy))
    copy.unlink()
    mounts.unmount_below(place)
    driver.mount()
    check_owners(driver.mount_instance(volume()), MAP)


def test_a_squashfs_that_is_not_trusted_is_not_mounted(place: Path, files: Path) -> None:
    driver = load(place / "pool", "overlay untrusted")
    driver.create()
    launch(driver, source(files, "overlay untrusted"))
    assert [m.fstype for m in mounts.mounts_below(place)] == ["overlay"]


def set_acls(rootfs: Path) -> list[Path]:
    """Try `setfacl` on every file and folder that the image brought; gives those that refuse."""
    entries = [rootfs, *(path for path in rootfs.rglob("*") if not path.is_symlink())]
    return [
        path
        for path in entries
        if subprocess.run(
            ["setfacl", "-m", f"u:{MAP.host_uid(33)}:rx", path], capture_output=True, check=False
        ).returncode
        or f"user:{MAP.host_uid(33)}:r-x" not in acl_of(path)
    ]


def test_acls_can_be_set_on_every_file_of_an_image(place: Path, files: Path) -> None:
    """Overlayfs asks the lower inode whether it takes ACLs, and squashfs takes none."""
    rootfs = launch(pool(place, "overlay"), source(files, "overlay"))
    assert set_acls(rootfs) == []


def test_instances_stay_on_the_form_of_the_image_that_they_were_made_on(place: Path, files: Path) -> None:
    """Nothing of an older instance changes when its pool begins to unpack images, or ceases to."""
    packed = load(place / "pool", "overlay packed")
    packed.create()
    image = source(files, "overlay")
    rootfs = launch(packed, image, "old")
    as_container_root(MAP, lambda: (rootfs / "etc/hosts").write_text("changed"))
    folder = packed.instance_folder("old")
    record = json.loads((folder / "volume.json").read_text())
    del record["image_folder"]  # as it was written before images had several forms
    (folder / "volume.json").write_text(json.dumps(record))
    mounts.unmount_below(place)

    driver = load(place / "pool", "overlay")
    driver.mount()
    new = launch(driver, image, "new")
    assert set_acls(new) == []
    driver.mount_instance(volume("old"))
    assert (rootfs / "etc/hosts").read_text() == "changed"
    assert (rootfs / "home/user/file").stat().st_uid == MAP.host_uid(1000)
    assert set_acls(rootfs), "it has the squashfs below it"
    assert driver.images() == [FINGERPRINT]
    assert driver.image_users(FINGERPRINT) == ["new", "old"]
    forms = sorted(path.name for path in (place / "pool/images").iterdir())
    assert forms == [FINGERPRINT, f"{FINGERPRINT}.2"]
    driver.trim_image(FINGERPRINT)
    assert sorted(path.name for path in (place / "pool/images").iterdir()) == forms

    driver.configure({"overlay.unpack_images": "false"})
    launch(driver, image, "third")
    assert [m.fstype for m in mounts.mounts_below(place)].count("squashfs") == 1
    driver.configure({})
    driver.delete_instance("old")
    driver.delete_instance("third")
    driver.trim_image(FINGERPRINT)
    assert [path.name for path in (place / "pool/images").iterdir()] == [f"{FINGERPRINT}.2"]
    check_owners(new, MAP)
    driver.delete_instance("new")
    driver.delete_image(FINGERPRINT)
    assert driver.images() == []


@pytest.mark.parametrize("way", ["overlay", "dir tar"])
def test_an_image_that_the_machine_had_no_time_to_write(
    place: Path, files: Path, way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Files are not written to the disk one by one: after a power failure they may be empty."""
    driver = load(place / "pool", way)
    driver.create()
    launch(driver, source(files, way), "c1")
    mounts.unmount_below(place)
    monkeypatch.setattr("utsuwa.host.system.facts.boot_id", lambda: "the next boot")
    driver.mount()
    if way == "overlay":
        assert "files of c1 may be empty; make these instances anew" in caplog.text
        check_owners(launch(driver, source(files, way), "c2"), MAP)
        assert len(list((place / "pool/images").iterdir())) == 2, "new ones do not get what is in doubt"
    else:
        assert driver.images() == []


def test_an_image_on_the_disk_stays_after_a_reboot(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = pool(place, "overlay")
    driver.ensure_image(source(files, "overlay"))
    driver.sync_images()
    inode = (place / "pool/images" / FINGERPRINT).stat().st_ino
    monkeypatch.setattr("utsuwa.host.system.facts.boot_id", lambda: "the next boot")
    driver.mount()
    driver.ensure_image(source(files, "overlay"))
    assert (place / "pool/images" / FINGERPRINT).stat().st_ino == inode


def test_unpacking_ahead_can_be_stopped(place: Path, files: Path) -> None:
    driver = pool(place, "overlay")
    stopper = Stopper()
    stopper.stop()
    with pytest.raises(ProcessFailed, match="stopped"):
        driver.ensure_image(source(files, "overlay"), stopper)
    assert everything(place / "pool/images") == []
    driver.ensure_image(source(files, "overlay"))


def test_unpacking_ahead_leaves_half_of_the_space(place: Path, files: Path, small_disk: Path) -> None:
    driver = load_driver("overlay", small_disk / "pool", {})
    driver.create()
    rootfs = place / "half.tar"
    (place / "tree").mkdir()
    disk = os.statvfs(small_disk)
    (place / "tree/large").write_bytes(bytes(disk.f_bavail * disk.f_frsize * 6 // 10))
    subprocess.run(["tar", "-C", place / "tree", "-cf", rootfs, "."], check=True)
    image = ImageSource(FINGERPRINT, files / "metadata.tar.xz", rootfs)
    with pytest.raises(OutOfSpace):
        driver.ensure_image(image, Stopper())
    assert driver.images() == []
    driver.ensure_image(image)


def test_a_broken_squashfs(place: Path, files: Path) -> None:
    broken = place / "broken.squashfs"
    broken.write_bytes((files / "rootfs.squashfs").read_bytes()[:1000])
    for name in ("overlay", "dir"):
        driver = load_driver(name, place / name, {})
        driver.create()
        with pytest.raises(InvalidImage):
            launch(driver, ImageSource(FINGERPRINT, files / "metadata.tar.xz", broken))
        assert driver.images() == driver.instances() == []
        assert everything(place / name / "images") == everything(place / name / "containers") == []
    assert mounts.mounts_below(place) == []


def test_a_lost_image_is_named(place: Path, files: Path) -> None:
    driver = pool(place, "overlay")
    launch(driver, source(files, "overlay"))
    driver.unmount_instance("c1")
    driver.delete_image(FINGERPRINT)
    with pytest.raises(HostError, match=FINGERPRINT[:12]):
        driver.mount_instance(volume())


def test_a_layer_becomes_a_copy_where_the_kernel_maps_no_more(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = pool(place, "overlay")
    rootfs = launch(driver, source(files, "overlay"))
    as_container_root(MAP, lambda: (rootfs / "mine").write_text("kept"))
    as_container_root(MAP, (rootfs / "etc/hosts").unlink)
    mounts.unmount_below(place)
    monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
    driver.mount()
    driver.mount_instance(volume())
    assert (rootfs / "mine").read_text() == "kept"
    assert not (rootfs / "etc/hosts").exists()
    assert (rootfs / "home/user/file").stat().st_uid == 101_000
    assert os.statvfs(rootfs).f_flag & os.ST_NODEV
    assert driver.image_users(FINGERPRINT) == []
    assert {p.name for p in driver.instance_folder("c1").iterdir()} == {
        "metadata.yaml", "templates", "rootfs", "volume.json",
    }  # fmt: skip
    monkeypatch.delenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE")
    driver.mount_instance(volume())
    assert mounts.mounted(driver.instance_folder("c1") / "rootfs")
    assert (rootfs / "home/user/file").stat().st_uid == 101_000
    driver.unmount_instance("c1")
    assert (rootfs / "home/user/file").stat().st_uid == 1000


def test_a_shift_that_was_cut_off_is_finished(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
    driver = pool(place, "dir")
    image = source(files, "dir")
    driver.create_instance(volume(), image)
    folder = driver.instance_folder("c1")
    record = json.loads((folder / "volume.json").read_text())
    record["shifting_to"] = {"uids": [vars_of(r) for r in MAP.uids], "gids": [vars_of(r) for r in MAP.gids]}
    (folder / "volume.json").write_text(json.dumps(record))
    os.chown(folder / "rootfs/etc/hosts", 100_000, 100_000)
    os.chown(folder / "rootfs/home/user/file", 101_000, 101_000)
    check_owners(driver.mount_instance(volume()), MAP)


def vars_of(item: IdRange) -> dict[str, int]:
    return {"container": item.container, "host": item.host, "count": item.count}


def test_a_kill_in_mid_mount_is_cleaned(place: Path, files: Path) -> None:
    """The layers are attached for a moment; a kill may leave them so."""
    driver = pool(place, "overlay")
    image = source(files, "overlay")
    driver.ensure_image(image)
    driver.create_instance(volume(), image)
    folder = driver.instance_folder("c1")
    mounts.bind_idmapped(folder / "layer", folder / "layer", OTHER)
    mounts.bind_idmapped(place / "pool/images" / FINGERPRINT / "rootfs", folder / "lower", OTHER)
    check_owners(driver.mount_instance(volume()), MAP)
    assert [m.target for m in mounts.mounts_below(folder)] == [folder / "rootfs"]


def test_mount_options_are_fixed_at_creation(place: Path, files: Path) -> None:
    driver = pool(place, "overlay", overlay__mount_options="redirect_dir=on,index=off")
    launch(driver, source(files, "overlay"))
    again = load_driver("overlay", place / "pool", {})
    again.mount()
    again.unmount_instance("c1")
    rootfs = again.mount_instance(volume())
    options = mounts.mounts_below(rootfs)[0].super_options.split(",")
    assert "redirect_dir=on" in options
    assert "index=on" not in options


# ---- a creation that a kill cut off


def begun(place: Path, name: str, config: dict[str, str], made: int) -> Driver:
    """A pool of whose things a kill let only the first `made` come about."""
    driver = load_driver(name, place / "pool", config)
    driver.create()
    folder = place / "pool"
    for entry in sorted(folder.iterdir())[made:]:
        entry.rmdir() if entry.is_dir() else entry.unlink()
    (folder / ".pool.json").write_text("{")
    return driver


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("made", [0, 3, 6])
def test_what_was_begun_goes(place: Path, made: int, elsewhere: bool) -> None:
    source = place / "source"
    source.mkdir()
    driver = begun(place, "overlay", {"source": str(source)} if elsewhere else {}, made)
    if made > 1:
        trial = place / "pool/containers/.trial-1"
        trial.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", trial], check=True)
    if elsewhere and made == 3:
        mounts.unmount_below(place / "pool/containers")
        mounts.unmount(place / "pool")  # as after the machine's end
    for _ in range(2):
        driver.discard()
        assert not (place / "pool").exists()
        assert list(source.iterdir()) == []
    driver.create()


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("path", ["containers/c1/rootfs/file", "photos/one"])
def test_what_was_there_before_is_left_alone(place: Path, path: str, elsewhere: bool) -> None:
    source = place / ("source" if elsewhere else "pool")
    driver = load_driver("overlay", place / "pool", {"source": str(source)})
    file = source / path
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    (source / "pool.json").write_text("{}")
    with pytest.raises(HostError, match="left as it is"):
        driver.discard()
    assert file.read_text() == "mine"
    assert (source / "pool.json").exists()
    assert (place / "pool").exists() is not elsewhere
    assert mounts.mounts_below(place) == []


# ---- sources


@pytest.mark.parametrize("name", ["overlay", "dir"])
def test_a_source_elsewhere(place: Path, files: Path, name: str) -> None:
    elsewhere = place / "else where"
    (elsewhere / "lost+found").mkdir(parents=True)
    driver = pool(place, name, source=str(elsewhere))
    rootfs = launch(driver, source(files, name))
    assert place / "pool" in rootfs.parents
    assert (elsewhere / "containers/c1").exists()
    assert not [m for m in mounts.mounts_below(elsewhere) if m.target != elsewhere]
    mounts.unmount_below(place)
    driver.mount()
    check_owners(driver.mount_instance(volume()), MAP)
    driver.delete_instance("c1")
    driver.delete()
    assert everything(place) == ["else where", "else where/lost+found"]
    assert mounts.mounts_below(place) == []


@pytest.mark.parametrize("name", ["overlay", "dir"])
def test_sources_that_are_refused(place: Path, name: str) -> None:
    used = place / "used"
    used.mkdir()
    (used / "precious").touch()
    for source, why in ((used, "not empty"), (place / "missing", "exists")):
        driver = load_driver(name, place / "pool", {"source": str(source)})
        with pytest.raises(InvalidConfig, match=why):
            driver.create()
    (place / "pool").mkdir()
    (place / "pool/precious").touch()
    with pytest.raises(InvalidConfig, match="not empty"):
        load_driver(name, place / "pool", {}).create()
    assert everything(place) == ["pool", "pool/precious", "used", "used/precious"]


def test_a_source_that_went_away(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    driver = pool(place, "dir", source=str(elsewhere))
    driver.unmount()
    elsewhere.rename(place / "gone")
    with pytest.raises(HostError, match="not there"):
        driver.mount()
    elsewhere.mkdir()
    with pytest.raises(HostError, match=r"pool\.json"):
        driver.mount()


def test_a_pool_of_another_driver(place: Path) -> None:
    pool(place, "dir")
    with pytest.raises(HostError, match="another driver"):
        load_driver("overlay", place / "pool", {}).mount()


def test_a_file_system_that_holds_no_layers(place: Path, files: Path) -> None:
    inside = launch(pool(place, "overlay"), source(files, "overlay"), ids=PRIVILEGED)
    with pytest.raises(InvalidConfig, match="use the driver 'dir'"):
        load_driver("overlay", inside / "pool", {}).create()
    assert not (inside / "pool").exists()
    load_driver("dir", inside / "pool", {}).create()


@pytest.mark.parametrize("options", ["metacopy=off", "redirect_dir=off,index=off", ""])
def test_a_file_system_without_extended_attributes(place: Path, options: str) -> None:
    """It takes an upper layer and files on it, but folders of the image could not be removed (EIO)."""
    source = place / "ramfs"
    source.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", source], check=True)
    config = {"source": str(source), "overlay.mount_options": options}
    driver = load_driver("overlay", place / "pool", config)
    with pytest.raises(InvalidConfig, match="lack extended attributes.*use the driver 'dir'"):
        driver.create()
    assert everything(place) == ["ramfs"]
    assert everything(source) == []
    load_driver("dir", place / "pool", {"source": str(source)}).create()


# ---- a full disk


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """12 MB of ext4."""
    file, folder = place / "disk", place / "small"
    folder.mkdir()
    with file.open("wb") as disk:
        disk.truncate(12 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", file], check=True)
    subprocess.run(["mount", "-o", "loop", file, folder], check=True)
    yield folder
    mounts.unmount_below(folder)


@pytest.mark.parametrize(
    "way",
    ["overlay", "overlay packed", "overlay untrusted", "overlay tar", "overlay shifted", "dir", "dir tar"],
)
def test_out_of_space(
    place: Path, small_disk: Path, files: Path, way: str, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "shifted" in way:
        monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
    driver = load(small_disk / "pool", way)
    driver.create()
    tree = tmp_path_factory.mktemp("large")
    (tree / "large").write_bytes(os.urandom(20 << 20))
    rootfs = place / "large.img"
    if way.endswith("tar"):
        subprocess.run(["tar", "-C", tree, "-cf", rootfs, "."], check=True)
    else:
        subprocess.run(
            ["mksquashfs", tree, rootfs, "-quiet", "-no-progress"], check=True, capture_output=True
        )
    before = everything(small_disk)
    image = ImageSource(FINGERPRINT, files / "metadata.tar.xz", rootfs, trusted="untrusted" not in way)
    with pytest.raises(OutOfSpace):
        launch(driver, image)
    assert everything(small_disk) == before
    assert [m.target for m in mounts.mounts_below(small_disk)] == [small_disk]


def test_out_of_space_for_a_layer(small_disk: Path, files: Path) -> None:
    driver = load_driver("overlay", small_disk / "pool", {})
    driver.create()
    image = source(files, "overlay")
    driver.ensure_image(image)
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, capture_output=True)
    with pytest.raises(OutOfSpace):
        driver.create_instance(volume(), image)
    assert driver.instances() == []
    assert everything(small_disk / "pool/containers") == []


@pytest.mark.parametrize("name", ["overlay", "dir"])
def test_device_nodes_open_for_privileged_containers_only(place: Path, files: Path, name: str) -> None:
    """A node in an image would be the host's disk: nothing else stands between it and the container."""
    driver = pool(place, name)
    rootfs = launch(driver, source(files, name))
    driver.unmount_instance("c1")
    rootfs = driver.mount_instance(volume(ids=IdMap()))
    os.mknod(rootfs / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    assert (rootfs / "null").read_bytes() == b""
    driver.unmount_instance("c1")
    rootfs = driver.mount_instance(volume())
    with pytest.raises(PermissionError):
        (rootfs / "null").read_bytes()


@pytest.mark.parametrize(("nodes", "packed"), [(["c"], True), (["c", "b"], False)])
def test_a_squashfs_with_nodes_of_block_devices_is_not_mounted(
    place: Path, nodes: list[str], packed: bool
) -> None:
    """They cannot be left out of a mounted one, and a privileged container could mount the disk by them."""
    tree = place / "tree"
    tree.mkdir()
    for kind in nodes:
        os.mknod(tree / kind, 0o600 | (stat.S_IFCHR if kind == "c" else stat.S_IFBLK), os.makedev(7, 0))
    rootfs, metadata = place / "nodes.squashfs", place / "metadata.tar"
    subprocess.run(["mksquashfs", tree, rootfs, "-quiet", "-no-progress"], check=True, capture_output=True)
    (place / "metadata.yaml").write_text("architecture: x86_64\ncreation_date: 1\n")
    subprocess.run(["tar", "-C", place, "-cf", metadata, "metadata.yaml"], check=True)
    driver = load(place / "pool", "overlay packed")
    driver.create()
    shown = launch(driver, ImageSource(FINGERPRINT, metadata, rootfs), ids=PRIVILEGED)
    assert [path.name for path in shown.iterdir()] == ["c"]
    assert ("squashfs" in [m.fstype for m in mounts.mounts_below(place)]) is packed
