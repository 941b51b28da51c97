"""Snapshots and copies of volumes, on every driver and in each way that a kernel may leave it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.disks import loop_ext4
from tests.support.long import usually
from tests.support.pools import (
    FINGERPRINT,
    MAP,
    OTHER,
    PRIVILEGED,
    TestedPool,
    as_kernel_leaves_it,
    container,
    everything,
    load,
    next_driver,
    pool_of,
    source,
    ways,
)
from tests.support.whole_trees import Entry, differences, tree
from utsuwa.core.errors import HostError, ProcessFailed
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts import mounts
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.base import FolderDriver, LayerDriver
from utsuwa.storage.drivers import overlay_chains
from utsuwa.storage.drivers.file_copies import FileCopies
from utsuwa.storage.drivers.trees import copy_tree

pytestmark = pytest.mark.root


@pytest.fixture(params=usually(("overlay", "dir", "plain"), ways("packed", "shifted")))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return as_kernel_leaves_it(request, monkeypatch)


def change(rootfs: Path, text: str = "changed", ids: IdMap = MAP) -> None:
    """Change something of the image in each way in which that can be done."""

    def work() -> None:
        (rootfs / "etc/hosts").write_text(text)
        (rootfs / "bin/second").write_text(text)  # it has another name
        (rootfs / "bin/link").unlink(missing_ok=True)
        if (rootfs / "home/user").exists():
            (rootfs / "home/user").rename(rootfs / "home/moved")
        else:
            (rootfs / "home").rename(rootfs / "away")
            (rootfs / "away").rename(rootfs / "home")
        (rootfs / "new").mkdir(exist_ok=True)
        (rootfs / "new/file").write_text(text)
        (rootfs / "new/other").unlink(missing_ok=True)
        (rootfs / "new/other").hardlink_to(rootfs / "new/file")
        os.truncate(rootfs / "new/file", 1 << 20)
        os.setxattr(rootfs / "new", "user.note", text.encode())

    as_container_root(ids, work)


def look(pool: TestedPool, name: str, ids: IdMap = MAP) -> dict[str, Entry]:
    """The tree of a volume or snapshot, which is not mounted after that."""
    found = tree(pool.mount(name, ids))
    pool.unmount(name)
    return found


def test_a_snapshot_of_a_stopped_volume(pool: TestedPool, image: ImageSource) -> None:
    rootfs = pool.launch(image)
    change(rootfs)
    before = tree(rootfs)
    pool.copy("c1", "c1/s1")
    assert pool.snapshots() == ["s1"]
    assert pool.names() == ["c1"]
    assert differences(look(pool, "c1"), before) == []
    assert differences(look(pool, "c1/s1"), before) == []
    change(pool.mount(), "again")
    after = look(pool, "c1")
    assert after != before
    assert differences(look(pool, "c1/s1"), before) == []
    pool.copy("c1", "c1/s2")
    assert differences(look(pool, "c1/s2"), after) == []
    assert pool.snapshots() == ["s1", "s2"]


def test_link_counts_are_right_after_another_mount(pool: TestedPool, image: ImageSource) -> None:
    rootfs = pool.launch(image)
    for text in ("first", "second"):
        change(rootfs, text)
        before = tree(rootfs)
        for _ in range(2):
            pool.unmount("c1")
            assert differences(tree(pool.mount()), before) == []
    # That has a single name in the image.
    as_container_root(MAP, lambda: (rootfs / "bin/second-ping").hardlink_to(rootfs / "bin/ping"))
    before = tree(rootfs)
    assert before["bin/ping"].links == 2
    pool.unmount("c1")
    assert differences(tree(pool.mount()), before) == []


def test_a_snapshot_of_a_running_volume(pool: TestedPool, image: ImageSource) -> None:
    """It stays mounted; that its processes do not run meanwhile is for the caller to see to."""
    rootfs = pool.launch(image)
    for number in range(3):
        change(rootfs, f"{number}")
        before = tree(rootfs)
        pool.copy("c1", f"c1/s{number}", mounted=MAP)
        assert mounts.mounted(rootfs)
        assert differences(tree(rootfs), before) == []
        assert differences(look(pool, f"c1/s{number}"), before) == []
        assert pool.snapshots()[-1] == f"s{number}"
    change(rootfs, "later")
    pool.copy("c1", "c2", OTHER, mounted=MAP)
    before = tree(rootfs)
    assert differences(look(pool, "c2"), before) == []


def test_nobody_can_write_into_a_snapshot(pool: TestedPool, image: ImageSource) -> None:
    change(pool.launch(image))
    pool.copy("c1", "c1/s1")
    for ids in (MAP, PRIVILEGED, OTHER):
        rootfs = pool.mount("c1/s1", ids)
        check_owners_of_changed(rootfs, ids)
        for path in ("etc/hosts", "new/file", "written"):
            with pytest.raises(OSError, match="Read-only"):
                as_container_root(ids, (rootfs / path).touch)
        pool.unmount("c1/s1")
        assert pool.driver.volume_folder(container("c1/s1")).stat().st_mode & 0o7777 == 0o100


def check_owners_of_changed(rootfs: Path, ids: IdMap) -> None:
    for path, owner in (("etc/hosts", 0), ("home/moved/file", 1000), ("new/file", 0)):
        assert (rootfs / path).stat().st_uid == ids.host_uid(owner), path


def test_copies_are_independent(pool: TestedPool, image: ImageSource) -> None:
    change(pool.launch(image))
    pool.copy("c1", "c1/s1")
    old = look(pool, "c1")
    pool.copy("c1/s1", "c2", OTHER)
    pool.copy("c1", "c3")
    change(pool.mount("c2", OTHER), "other", OTHER)
    pool.copy("c2", "c2/s1")
    new = look(pool, "c2")
    pool.copy("c2", "c4")
    change(pool.mount("c4"), "fourth")
    assert new != old
    for name, expected in (("c1", old), ("c1/s1", old), ("c3", old), ("c2", new)):
        assert differences(look(pool, name), expected) == [], name
    for name in ("c1", "c1/s1", "c4"):
        pool.delete(name)
    assert pool.names() == ["c2", "c3"]
    assert differences(look(pool, "c3"), old) == []
    assert differences(look(pool, "c2"), new) == []


def test_snapshots_in_the_middle_can_be_deleted(pool: TestedPool, image: ImageSource, place: Path) -> None:
    rootfs = pool.launch(image)
    states = []
    for number in range(5):
        change(pool.mount(), f"{number}")
        pool.copy("c1", f"c1/s{number}")
        states.append(look(pool, f"c1/s{number}"))
    for number in (2, 0, 4, 3):
        pool.delete(f"c1/s{number}")
        for kept in pool.snapshots():
            assert differences(look(pool, f"c1/{kept}"), states[int(kept[1:])]) == []
        assert differences(look(pool, "c1"), states[4]) == []
    pool.copy("c1", "c1/after")
    assert differences(look(pool, "c1/after"), states[4]) == []
    for name in ("c1/s1", "c1/after", "c1"):
        pool.delete(name)
    pool.images.delete_image(FINGERPRINT)
    assert not rootfs.exists()
    pool.driver.delete()
    assert everything(place) == []


def test_many_snapshots(pool: TestedPool, image: ImageSource, place: Path) -> None:
    """However many there are, a mount has few layers."""
    pool.launch(image)
    states = []
    for number in range(24):
        change(pool.mount(), f"{number % 7}")
        pool.copy("c1", f"c1/s{number}", mounted=MAP if number % 5 == 4 else None)
        states.append(look(pool, f"c1/s{number}"))
    for number in (0, 7, 8, 9, 15, 22, 23):
        rootfs = pool.mount(f"c1/s{number}")
        assert differences(tree(rootfs), states[number]) == []
        for mount in mounts.mounts_below(rootfs):
            assert layers_of_mount(mount) <= 10
    for number in range(23):
        pool.delete(f"c1/s{number}")
    assert differences(look(pool, "c1/s23"), states[23]) == []
    again = load(place / "pool", "overlay" if pool.kind.name == "overlay" else pool.kind.name)
    again.driver.mount()
    assert differences(look(again, "c1/s23"), states[23]) == []
    assert differences(look(again, "c1"), states[23]) == []


def layers_of_mount(mount: mounts.Mount) -> int:
    """The layers of an overlay; 1 for another mount."""
    options = dict(option.partition("=")[::2] for option in mount.super_options.split(","))
    if mount.fstype != "overlay":
        return 1
    return len(options["lowerdir"].split(":")) + ("upperdir" in options)


def test_layers_above_a_mounted_image(place: Path, files: Path) -> None:
    """The kernel has to tell the file systems of the layers apart, which it does by their UUIDs."""
    with loop_ext4(place / "disk", 64 << 20) as disk:
        pool = load(disk / "pool", "overlay packed")
        pool.driver.create()
        pool.launch(source(files, "overlay packed"))
        for text in ("first", "second", "third"):
            change(pool.mount(), text)
            before = tree(pool.mount())
            pool.copy("c1", f"c1/{text}")
            assert differences(look(pool, f"c1/{text}"), before) == []
        assert {mount.fstype for mount in mounts.mounts_below(disk)} == {"ext4", "squashfs"}
        assert layers_of_mount(mounts.mounts_below(pool.mount("c1/third"))[0]) == 4
        mounts.unmount_below(disk / "pool")


def test_snapshots_are_renamed_with_and_without_their_volume(pool: TestedPool, image: ImageSource) -> None:
    change(pool.launch(image))
    pool.copy("c1", "c1/s1")
    pool.copy("c1", "c1/taken")
    before = look(pool, "c1/s1")
    pool.mount("c1/s1")
    with pytest.raises(HostError, match="taken"):
        pool.rename("c1/s1", "c1/taken")
    for _ in range(2):
        pool.rename("c1/s1", "c1/s2")
    assert pool.snapshots() == ["s2", "taken"]
    pool.mount("c1/s2")
    for _ in range(2):
        pool.rename("c1", "c2")
        pool.driver.rename_snapshots(container("c1"), container("c2"))
    assert pool.snapshots("c1") == []
    assert pool.snapshots("c2") == ["s2", "taken"]
    assert differences(look(pool, "c2/s2"), before) == []
    pool.copy("c2/s2", "c1")
    pool.copy("c1", "c1/s3")
    with pytest.raises(HostError, match="there already"):
        pool.driver.rename_snapshots(container("c1"), container("c2"))
    assert pool.snapshots("c1") == ["s3"]


@pytest.mark.parametrize("driver", ["overlay", "dir"])
def test_leftovers_of_an_interrupted_copy_are_removed_at_start(files: Path, place: Path, driver: str) -> None:
    """The snapshot that it has mounted, and the directory for snapshots of the copy."""
    pool = load(place / "pool", driver)
    pool.driver.create()
    rootfs = pool.launch(source(files, driver))
    pool.copy("c1", "c1/s1", mounted=MAP)
    snapshot = pool.mount("c1/s1", PRIVILEGED)
    (place / "pool/containers-snapshots/c2/.new-1").mkdir(parents=True)
    assert mounts.mounted(snapshot)
    again = load(place / "pool", driver)
    again.driver.mount()
    assert mounts.mounted(rootfs)
    assert not mounts.mounted(snapshot)
    pool.rename("c1", "c2")
    pool.driver.rename_snapshots(container("c1"), container("c2"))
    assert pool.snapshots("c2") == ["s1"]


def test_an_interrupted_mount_is_unmounted(files: Path, place: Path) -> None:
    """Its layers may still be attached, each at a place of its own."""
    pool = load(place / "pool", "overlay")
    pool.driver.create()
    for text in ("first", "second"):
        change(pool.launch(source(files, "overlay"), "c1") if text == "first" else pool.mount(), text)
        pool.copy("c1", f"c1/{text}")
    rootfs = pool.mount()
    attached = [pool.folder() / "layer", *(pool.folder() / "lower").iterdir()]
    assert len(attached) == 4
    pool.unmount()
    for target in attached:
        mounts.bind(place / "pool/containers-snapshots", target)
    pool.unmount()
    assert not any(map(mounts.mounted, [rootfs, *attached]))


def test_a_name_that_is_taken_is_refused(pool: TestedPool, image: ImageSource) -> None:
    pool.launch(image)
    pool.copy("c1", "c1/s1")
    for source_name, target in (("c1", "c1/s1"), ("c1/s1", "c1"), ("c1", "c1")):
        with pytest.raises(HostError, match="there already"):
            pool.copy(source_name, target)
    assert (pool.names(), pool.snapshots()) == (["c1"], ["s1"])


def test_folders_beside_the_rootfs_are_copied(pool: TestedPool, image: ImageSource) -> None:
    pool.launch(image)
    has_folders = isinstance(pool.driver, FolderDriver)
    if has_folders:
        beside = pool.mount_folder("docker")
        as_container_root(MAP, lambda: (beside / "file").write_text("kept"))
    pool.copy("c1", "c1/s1", mounted=MAP)
    pool.copy("c1", "c1/s2")
    pool.copy("c1/s1", "c2")
    pool.copy("c1/s2", "c3")
    for name in ("c1/s1", "c1/s2", "c2", "c3"):
        folder = pool.driver.volume_folder(container(name))
        assert (folder / "metadata.yaml").read_text().startswith("architecture")
        assert (folder / "templates/hostname.tpl").exists()
        if has_folders:
            pool.mount(name, OTHER)
            shown = pool.mount_folder("docker", name, OTHER)
            assert (shown / "file").stat().st_uid == OTHER.host_uid(0)
            assert (shown / "file").read_text() == "kept"
            pool.unmount(name)


def test_a_copy_that_is_stopped_or_fails_leaves_nothing(
    pool: TestedPool, image: ImageSource, place: Path
) -> None:
    change(pool.launch(image))
    pool.copy("c1", "c1/s1")
    before, state = everything(place), look(pool, "c1")
    stopper = Stopper()
    stopper.stop()
    for target in ("c2", "c1/s2"):
        try:
            pool.copies.copy_volume(container("c1/s1"), container(target), PRIVILEGED, stopper)
        except ProcessFailed:
            assert everything(place) == before
        else:  # there was nothing to copy
            assert pool.kind.name == "overlay"
            pool.delete(target)
    with pytest.raises(HostError):
        pool.copy("never", "c2")
    with pytest.raises(HostError):
        pool.copy("c1/never", "c2")
    assert pool.names() == ["c1"]
    assert differences(look(pool, "c1"), state) == []


def test_a_volume_without_an_image(pool: TestedPool, place: Path) -> None:
    """It may have come from another pool."""
    pool.create(None)
    rootfs = pool.mount()
    for text in ("first", "second"):
        as_container_root(MAP, lambda text=text: (rootfs / "file").write_text(text))  # type: ignore[misc]
        pool.copy("c1", f"c1/{text}")
        pool.mount()
    assert (rootfs / "file").read_text() == "second"
    assert (pool.mount("c1/first") / "file").read_text() == "first"
    assert (pool.mount("c1/second") / "file").read_text() == "second"
    pool.copy("c1/first", "c2")
    assert (pool.mount("c2") / "file").read_text() == "first"
    for name in ("c1", "c2", "c1/first", "c1/second"):
        pool.delete(name)
    pool.driver.delete()
    assert everything(place) == []


def test_copies_between_pools(pool: TestedPool, image: ImageSource, place: Path) -> None:
    change(pool.launch(image))
    pool.copy("c1", "c1/s1")
    before = look(pool, "c1")
    rootfs = pool.mount()
    change(rootfs, "later")
    after = tree(rootfs)
    other = pool_of(next_driver(pool.kind.name), place / "other")
    other.driver.create()
    copies = FileCopies(pool.driver, other.driver)
    copies.copy_volume(container("c1/s1"), container("c2/s1"), PRIVILEGED, Stopper())
    copies.copy_volume(container("c1"), container("c3"), MAP, Stopper(), mounted=MAP)
    copies.copy_volume(container("c1"), container("c2"), MAP, Stopper())
    assert differences(look(other, "c2/s1"), before) == []
    for name in ("c2", "c3"):
        assert differences(look(other, name), after) == []
    change(other.mount("c2"), "there")
    other.copy("c2", "c2/s2")
    assert differences(look(other, "c2/s2"), look(other, "c2")) == []
    pool.copy("c1", "c1/s2")
    assert differences(look(pool, "c1"), after) == []


@pytest.mark.parametrize("lowest", ["an image", "a tree of its own"])
def test_merged_layers_show_and_hide_what_they_did_before(
    place: Path, files: Path, monkeypatch: pytest.MonkeyPatch, lowest: str
) -> None:
    """Directories that were replaced or renamed, also more than once."""
    monkeypatch.setattr(overlay_chains, "KEPT", 1)
    pool = load(place / "pool", "overlay")
    pool.driver.create()
    if lowest == "an image":
        rootfs = pool.launch(source(files, "overlay"))
    else:
        pool.driver.create_volume(
            container("c1"), MAP, lambda folder: copy_tree(files / "tree", folder / "rootfs")
        )
        rootfs = pool.mount()

    def replace_home() -> None:
        shutil.rmtree(rootfs / "home")
        (rootfs / "home").mkdir()
        (rootfs / "home/new").touch()

    def rename_etc() -> None:
        (rootfs / "etc").rename(rootfs / "conf")
        (rootfs / "etc").mkdir()
        (rootfs / "bin").rename(rootfs / "conf/bin")

    def rename_again() -> None:
        (rootfs / "conf").rename(rootfs / "etc/conf")
        (rootfs / "etc/conf/bin/tool").unlink()
        (rootfs / "home/user").mkdir()

    def write() -> None:
        (rootfs / "etc/conf/bin/second").write_text("changed")

    states = {}
    for number, work in enumerate((replace_home, rename_etc, rename_again, write, write)):
        pool.mount()
        as_container_root(MAP, work)
        states[f"c1/s{number}"] = tree(rootfs)
        pool.copy("c1", f"c1/s{number}")
        assert isinstance(pool.driver, LayerDriver)
        merge = pool.driver.layer_merge(container("c1"))
        assert bool(merge) is (number > 0)
        if merge is not None:
            merge.run(Stopper())
            merge.finish()
            merge.end()
    pool.copy("c1", "c1/unchanged")
    states["c1/unchanged"] = states["c1/s4"]
    assert not (rootfs / "home/user/file").exists()
    for name, expected in states.items():
        assert differences(look(pool, name), expected) == [], name
    record = json.loads((pool.driver.volume_folder(container("c1/s4")) / "volume.json").read_text())
    assert len(record["layers"]) == 2
