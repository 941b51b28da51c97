"""What each storage driver does in its own way, on the real kernel."""

from __future__ import annotations

import json
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
    TestedPool,
    acl_of,
    check_owners,
    container,
    everything,
    load,
    new_pool,
    pool_of,
    source,
)
from utsuwa.core.errors import HostError, InvalidConfig, InvalidImage, OutOfSpace, ProcessFailed
from utsuwa.core.idmap import IdRange
from utsuwa.core.image_source import ImageSource
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts import mounts
from utsuwa.host.processes.stopper import Stopper

pytestmark = pytest.mark.root


@pytest.mark.parametrize(("way", "kinds"), [("overlay", []), ("overlay packed", ["squashfs"])])
def test_image_is_shared_by_its_instances(place: Path, files: Path, way: str, kinds: list[str]) -> None:
    pool = load(place / "pool", way)
    pool.driver.create()
    image = source(files, way)
    pool.launch(image)
    pool.launch(image, "c2")
    assert pool.images.images() == [FINGERPRINT]
    assert pool.images.image_users(FINGERPRINT) == ["c1", "c2"]
    assert pool.images.image_users("cd" * 32) == []
    assert sorted(m.fstype for m in mounts.mounts_below(place)) == ["overlay", "overlay", *kinds]
    assert pool.images.image_of(container("c1")) == FINGERPRINT
    pool.delete("c1")
    assert pool.images.image_of(container("c1")) is None
    assert pool.images.image_users(FINGERPRINT) == ["c2"]


@pytest.mark.parametrize("way", ["overlay", "overlay packed"])
def test_the_pool_keeps_an_image_that_is_deleted_elsewhere(place: Path, files: Path, way: str) -> None:
    copy = place / "copy.squashfs"
    copy.write_bytes((files / "rootfs.squashfs").read_bytes())
    pool = load(place / "pool", way)
    pool.driver.create()
    pool.launch(ImageSource(FINGERPRINT, files / "metadata.tar.xz", copy))
    copy.unlink()
    mounts.unmount_below(place)
    pool.driver.mount()
    check_owners(pool.mount(), MAP)


def test_a_squashfs_that_is_not_trusted_is_not_mounted(place: Path, files: Path) -> None:
    pool = load(place / "pool", "overlay untrusted")
    pool.driver.create()
    pool.launch(source(files, "overlay untrusted"))
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
    rootfs = new_pool(place, "overlay").launch(source(files, "overlay"))
    assert set_acls(rootfs) == []


def test_instances_stay_on_the_form_of_the_image_that_they_were_made_on(place: Path, files: Path) -> None:
    """Nothing of an older instance changes when its pool begins to unpack images, or ceases to."""
    packed = load(place / "pool", "overlay packed")
    packed.driver.create()
    image = source(files, "overlay")
    rootfs = packed.launch(image, "old")
    as_container_root(MAP, lambda: (rootfs / "etc/hosts").write_text("changed"))
    folder = packed.folder("old")
    record = json.loads((folder / "volume.json").read_text())
    del record["image_folder"]  # as it was written before images had several forms
    (folder / "volume.json").write_text(json.dumps(record))
    mounts.unmount_below(place)

    pool = load(place / "pool", "overlay")
    pool.driver.mount()
    new = pool.launch(image, "new")
    assert set_acls(new) == []
    pool.mount("old")
    assert (rootfs / "etc/hosts").read_text() == "changed"
    assert (rootfs / "home/user/file").stat().st_uid == MAP.host_uid(1000)
    assert set_acls(rootfs), "it has the squashfs below it"
    assert pool.images.images() == [FINGERPRINT]
    assert pool.images.image_users(FINGERPRINT) == ["new", "old"]
    forms = sorted(path.name for path in (place / "pool/images").iterdir())
    assert forms == [FINGERPRINT, f"{FINGERPRINT}.2"]
    pool.images.trim_image(FINGERPRINT)
    assert sorted(path.name for path in (place / "pool/images").iterdir()) == forms

    pool.driver.configure({"overlay.unpack_images": "false"})
    pool.launch(image, "third")
    assert [m.fstype for m in mounts.mounts_below(place)].count("squashfs") == 1
    pool.driver.configure({})
    pool.delete("old")
    pool.delete("third")
    pool.images.trim_image(FINGERPRINT)
    assert [path.name for path in (place / "pool/images").iterdir()] == [f"{FINGERPRINT}.2"]
    check_owners(new, MAP)
    pool.delete("new")
    pool.images.delete_image(FINGERPRINT)
    assert pool.images.images() == []


@pytest.mark.parametrize("way", ["overlay", "dir tar"])
def test_an_image_that_the_machine_had_no_time_to_write(
    place: Path, files: Path, way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Files are not written to the disk one by one: after a power failure they may be empty."""
    pool = load(place / "pool", way)
    pool.driver.create()
    pool.launch(source(files, way), "c1")
    mounts.unmount_below(place)
    monkeypatch.setattr("utsuwa.host.system.facts.boot_id", lambda: "the next boot")
    pool.driver.mount()
    if way == "overlay":
        assert "files of c1 may be empty; make these instances anew" in caplog.text
        check_owners(pool.launch(source(files, way), "c2"), MAP)
        assert len(list((place / "pool/images").iterdir())) == 2, "new ones do not get what is in doubt"
    else:
        kept = place / "pool/images" / FINGERPRINT
        (kept / "rootfs/etc/hosts").write_text("")
        check_owners(pool.launch(source(files, way), "c2"), MAP)
        assert (pool.folder("c2") / "rootfs/etc/hosts").read_text() != ""


def test_an_image_on_the_disk_stays_after_a_reboot(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool(place, "overlay")
    pool.bring(source(files, "overlay"))
    pool.images.sync_images()
    inode = (place / "pool/images" / FINGERPRINT).stat().st_ino
    monkeypatch.setattr("utsuwa.host.system.facts.boot_id", lambda: "the next boot")
    pool.driver.mount()
    pool.bring(source(files, "overlay"))
    assert (place / "pool/images" / FINGERPRINT).stat().st_ino == inode


def test_unpacking_ahead_can_be_stopped(place: Path, files: Path) -> None:
    pool = new_pool(place, "overlay")
    stopper = Stopper()
    stopper.stop()
    with pytest.raises(ProcessFailed, match="stopped"):
        pool.bring(source(files, "overlay"), stopper, ahead=True)
    assert everything(place / "pool/images") == []
    pool.bring(source(files, "overlay"))


def test_unpacking_ahead_leaves_half_of_the_space(place: Path, files: Path, small_disk: Path) -> None:
    pool = pool_of("overlay", small_disk / "pool")
    pool.driver.create()
    rootfs = place / "half.tar"
    (place / "tree").mkdir()
    disk = os.statvfs(small_disk)
    (place / "tree/large").write_bytes(bytes(disk.f_bavail * disk.f_frsize * 6 // 10))
    subprocess.run(["tar", "-C", place / "tree", "-cf", rootfs, "."], check=True)
    image = ImageSource(FINGERPRINT, files / "metadata.tar.xz", rootfs)
    with pytest.raises(OutOfSpace):
        pool.bring(image, ahead=True)
    assert pool.images.images() == []
    pool.bring(image)


def test_a_broken_squashfs(place: Path, files: Path) -> None:
    broken = place / "broken.squashfs"
    broken.write_bytes((files / "rootfs.squashfs").read_bytes()[:1000])
    for name in ("overlay", "dir"):
        pool = pool_of(name, place / name)
        pool.driver.create()
        with pytest.raises(InvalidImage):
            pool.launch(ImageSource(FINGERPRINT, files / "metadata.tar.xz", broken))
        assert pool.images.images() == pool.names() == []
        assert everything(place / name / "images") == everything(place / name / "containers") == []
    assert mounts.mounts_below(place) == []


def test_a_lost_image_is_named(place: Path, files: Path) -> None:
    pool = new_pool(place, "overlay")
    pool.launch(source(files, "overlay"))
    pool.unmount("c1")
    pool.images.delete_image(FINGERPRINT)
    with pytest.raises(HostError, match=FINGERPRINT[:12]):
        pool.mount()


def test_a_layer_becomes_a_copy_where_the_kernel_maps_no_more(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool(place, "overlay")
    rootfs = pool.launch(source(files, "overlay"))
    as_container_root(MAP, lambda: (rootfs / "mine").write_text("kept"))
    as_container_root(MAP, (rootfs / "etc/hosts").unlink)
    mounts.unmount_below(place)
    monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
    pool.driver.mount()
    pool.mount()
    assert (rootfs / "mine").read_text() == "kept"
    assert not (rootfs / "etc/hosts").exists()
    assert (rootfs / "home/user/file").stat().st_uid == 101_000
    assert os.statvfs(rootfs).f_flag & os.ST_NODEV
    assert pool.images.image_users(FINGERPRINT) == []
    assert {p.name for p in pool.folder("c1").iterdir()} == {
        "metadata.yaml", "templates", "rootfs", "volume.json",
    }  # fmt: skip
    monkeypatch.delenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE")
    pool.mount()
    assert mounts.mounted(pool.folder("c1") / "rootfs")
    assert (rootfs / "home/user/file").stat().st_uid == 101_000
    pool.unmount("c1")
    assert (rootfs / "home/user/file").stat().st_uid == 1000


def test_a_shift_that_was_cut_off_is_finished(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
    pool = new_pool(place, "dir")
    image = source(files, "dir")
    pool.create(image)
    folder = pool.folder("c1")
    record = json.loads((folder / "volume.json").read_text())
    record["shifting_to"] = {"uids": [vars_of(r) for r in MAP.uids], "gids": [vars_of(r) for r in MAP.gids]}
    (folder / "volume.json").write_text(json.dumps(record))
    os.chown(folder / "rootfs/etc/hosts", 100_000, 100_000)
    os.chown(folder / "rootfs/home/user/file", 101_000, 101_000)
    check_owners(pool.mount(), MAP)


def vars_of(item: IdRange) -> dict[str, int]:
    return {"container": item.container, "host": item.host, "count": item.count}


def test_a_kill_in_mid_mount_is_cleaned(place: Path, files: Path) -> None:
    """The layers are attached for a moment; a kill may leave them so."""
    pool = new_pool(place, "overlay")
    image = source(files, "overlay")
    pool.bring(image)
    pool.create(image)
    folder = pool.folder("c1")
    mounts.bind_idmapped(folder / "layer", folder / "layer", OTHER)
    mounts.bind_idmapped(place / "pool/images" / FINGERPRINT / "rootfs", folder / "lower", OTHER)
    check_owners(pool.mount(), MAP)
    assert [m.target for m in mounts.mounts_below(folder)] == [folder / "rootfs"]


def test_mount_options_are_fixed_at_creation(place: Path, files: Path) -> None:
    pool = new_pool(place, "overlay", overlay__mount_options="redirect_dir=on,index=off")
    pool.launch(source(files, "overlay"))
    again = pool_of("overlay", place / "pool")
    again.driver.mount()
    again.unmount("c1")
    rootfs = again.mount()
    options = mounts.mounts_below(rootfs)[0].super_options.split(",")
    assert "redirect_dir=on" in options
    assert "index=on" not in options


# ---- a creation that a kill cut off


def begun(place: Path, name: str, config: dict[str, str], made: int) -> TestedPool:
    """A pool of whose things a kill let only the first `made` come about."""
    pool = pool_of(name, place / "pool", config)
    pool.driver.create()
    folder = place / "pool"
    for entry in sorted(folder.iterdir())[made:]:
        entry.rmdir() if entry.is_dir() else entry.unlink()
    (folder / ".pool.json").write_text("{")
    return pool


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("made", [0, 3, 6])
def test_partially_created_pool_is_removed(place: Path, made: int, elsewhere: bool) -> None:
    source = place / "source"
    source.mkdir()
    pool = begun(place, "overlay", {"source": str(source)} if elsewhere else {}, made)
    if made > 1:
        trial = place / "pool/containers/.trial-1"
        trial.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", trial], check=True)
    if elsewhere and made == 3:
        mounts.unmount_below(place / "pool/containers")
        mounts.unmount(place / "pool")  # as after the machine's end
    for _ in range(2):
        pool.driver.discard()
        assert not (place / "pool").exists()
        assert list(source.iterdir()) == []
    pool.driver.create()


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("path", ["containers/c1/rootfs/file", "photos/one"])
def test_existing_files_are_not_removed(place: Path, path: str, elsewhere: bool) -> None:
    source = place / ("source" if elsewhere else "pool")
    pool = pool_of("overlay", place / "pool", {"source": str(source)})
    file = source / path
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    (source / "pool.json").write_text("{}")
    with pytest.raises(HostError, match="left as it is"):
        pool.driver.discard()
    assert file.read_text() == "mine"
    assert (source / "pool.json").exists()
    assert (place / "pool").exists() is not elsewhere
    assert mounts.mounts_below(place) == []


# ---- sources


@pytest.mark.parametrize("name", ["overlay", "dir"])
def test_a_source_elsewhere(place: Path, files: Path, name: str) -> None:
    elsewhere = place / "else where"
    (elsewhere / "lost+found").mkdir(parents=True)
    pool = new_pool(place, name, source=str(elsewhere))
    rootfs = pool.launch(source(files, name))
    assert place / "pool" in rootfs.parents
    assert (elsewhere / "containers/c1").exists()
    assert not [m for m in mounts.mounts_below(elsewhere) if m.target != elsewhere]
    mounts.unmount_below(place)
    pool.driver.mount()
    check_owners(pool.mount(), MAP)
    pool.delete("c1")
    pool.driver.delete()
    assert everything(place) == ["else where", "else where/lost+found"]
    assert mounts.mounts_below(place) == []


@pytest.mark.parametrize("name", ["overlay", "dir"])
def test_sources_that_are_refused(place: Path, name: str) -> None:
    used = place / "used"
    used.mkdir()
    (used / "precious").touch()
    for bad, why in ((used, "not empty"), (place / "missing", "exists")):
        pool = pool_of(name, place / "pool", {"source": str(bad)})
        with pytest.raises(InvalidConfig, match=why):
            pool.driver.create()
    (place / "pool").mkdir()
    (place / "pool/precious").touch()
    with pytest.raises(InvalidConfig, match="not empty"):
        pool_of(name, place / "pool").driver.create()
    assert everything(place) == ["pool", "pool/precious", "used", "used/precious"]


def test_a_source_that_went_away(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    pool = new_pool(place, "dir", source=str(elsewhere))
    pool.driver.unmount()
    elsewhere.rename(place / "gone")
    with pytest.raises(HostError, match="not there"):
        pool.driver.mount()
    elsewhere.mkdir()
    with pytest.raises(HostError, match=r"pool\.json"):
        pool.driver.mount()


def test_a_pool_of_another_driver(place: Path) -> None:
    new_pool(place, "dir")
    with pytest.raises(HostError, match="another driver"):
        pool_of("overlay", place / "pool").driver.mount()


def test_a_file_system_that_holds_no_layers(place: Path, files: Path) -> None:
    inside = new_pool(place, "overlay").launch(source(files, "overlay"), ids=PRIVILEGED)
    with pytest.raises(InvalidConfig, match="use the driver 'dir'"):
        pool_of("overlay", inside / "pool").driver.create()
    assert not (inside / "pool").exists()
    pool_of("dir", inside / "pool").driver.create()


@pytest.mark.parametrize("options", ["metacopy=off", "redirect_dir=off,index=off", ""])
def test_a_file_system_without_extended_attributes(place: Path, options: str) -> None:
    """It takes an upper layer and files on it, but folders of the image could not be removed (EIO)."""
    source = place / "ramfs"
    source.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", source], check=True)
    config = {"source": str(source), "overlay.mount_options": options}
    pool = pool_of("overlay", place / "pool", config)
    with pytest.raises(InvalidConfig, match="lack extended attributes.*use the driver 'dir'"):
        pool.driver.create()
    assert everything(place) == ["ramfs"]
    assert everything(source) == []
    pool_of("dir", place / "pool", {"source": str(source)}).driver.create()


# ---- a full disk


def test_out_of_space_for_a_layer(small_disk: Path, files: Path) -> None:
    pool = pool_of("overlay", small_disk / "pool")
    pool.driver.create()
    image = source(files, "overlay")
    pool.bring(image)
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, capture_output=True)
    with pytest.raises(OutOfSpace):
        pool.create(image)
    assert pool.names() == []
    assert everything(small_disk / "pool/containers") == []


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
    pool = load(place / "pool", "overlay packed")
    pool.driver.create()
    shown = pool.launch(ImageSource(FINGERPRINT, metadata, rootfs), ids=PRIVILEGED)
    assert [path.name for path in shown.iterdir()] == ["c"]
    assert ("squashfs" in [m.fstype for m in mounts.mounts_below(place)]) is packed
