"""Mounts on the real kernel: id maps, overlays, loop devices, and what fails."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host import syscalls
from utsuwa.host.files.fsids import as_container_root
from utsuwa.host.mounts import loop, mounts, overlays, userns
from utsuwa.host.mounts.overlays import OverlayFolder
from utsuwa.storage.drivers.overlay_options import DEFAULT_OPTIONS, parse_options

pytestmark = pytest.mark.root

OPTIONS = parse_options(DEFAULT_OPTIONS)


def idmap(host: int, count: int = 65_536) -> IdMap:
    ranges = (IdRange(0, host, count),)
    return IdMap(ranges, ranges)


MAP = idmap(100_000)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with everything unmounted at the end; the name has what mountinfo escapes."""
    folder = tmp_path / "a b,c:d\\e"
    folder.mkdir()
    yield folder
    mounts.unmount_below(folder)
    userns.close_user_namespaces()


@pytest.fixture
def overlay(place: Path) -> OverlayFolder:
    folder = OverlayFolder(place / "instance")
    folder.path.mkdir()
    folder.make()
    return folder


@pytest.fixture
def image(place: Path) -> Path:
    folder = place / "image"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/file").write_text("from the image")
    os.chown(folder / "etc/file", 1000, 1000)
    return folder


def squashfs(folder: Path, file: Path) -> Path:
    subprocess.run(["mksquashfs", folder, file, "-quiet", "-no-progress"], check=True, capture_output=True)
    return file


def loop_devices(file: Path) -> list[str]:
    names = Path("/sys/block").glob("loop*/loop/backing_file")
    return [str(n) for n in names if n.read_text().strip() == str(file)]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_user_namespace_is_kept_for_its_map() -> None:
    userns.close_user_namespaces()  # those of other tests
    before = descriptors()
    with userns.user_namespace(MAP) as first, userns.user_namespace(MAP) as second:
        assert os.fstat(first).st_ino == os.fstat(second).st_ino
        with userns.user_namespace(idmap(300_000)) as other:
            assert os.fstat(other).st_ino != os.fstat(first).st_ino
    userns.close_user_namespaces()
    assert descriptors() == before


def test_namespaces_used_long_ago_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userns, "KEPT", 2)
    userns.close_user_namespaces()
    before = descriptors()
    for number in range(4):
        with userns.user_namespace(idmap(100_000 * (number + 1))):
            pass
    assert descriptors() == before + 2
    userns.close_user_namespaces()


def test_a_map_that_the_kernel_refuses() -> None:
    overlapping = (IdRange(0, 100_000, 100), IdRange(50, 500_000, 100))
    before = descriptors()
    with (
        pytest.raises(HostError, match="Invalid argument"),
        userns.user_namespace(IdMap(overlapping, overlapping)),
    ):
        pass
    with pytest.raises(ValueError, match="privileged"), userns.user_namespace(IdMap()):
        pass
    assert descriptors() == before


@pytest.mark.parametrize("packed", [True, False])
def test_an_overlay_shows_and_stores_mapped_owners(
    place: Path, overlay: OverlayFolder, image: Path, packed: bool
) -> None:
    if packed:
        file = squashfs(image, place / "image.squashfs")
        image = place / "mounted"
        image.mkdir()
        loop.mount_squashfs(file, image)
        if not mounts.can_idmap(image):
            pytest.skip("this kernel cannot map a squashfs")
    overlays.mount_overlay(overlay, [image], MAP, OPTIONS)
    shown = overlay.rootfs / "etc/file"
    assert (shown.stat().st_uid, shown.stat().st_gid) == (101_000, 101_000)
    as_container_root(MAP, lambda: shown.write_text("changed"))
    as_container_root(MAP, (overlay.rootfs / "new").touch)
    assert (overlay.rootfs / "new").stat().st_uid == 100_000
    assert (overlay.upper / "new").stat().st_uid == 0
    assert (overlay.upper / "etc/file").stat().st_uid == 1000
    assert [m.target for m in mounts.mounts_below(overlay.path)] == [overlay.rootfs]
    options = mounts.mounts_below(overlay.rootfs)[0].super_options.split(",")
    assert {"redirect_dir=on", "index=on", "nfs_export=on"} <= set(options)


def test_another_map_over_the_same_layer(overlay: OverlayFolder, image: Path) -> None:
    for number, one in enumerate((MAP, idmap(5_000_000), IdMap())):
        overlays.mount_overlay(overlay, [image], one, OPTIONS)
        assert overlay.rootfs.stat().st_uid == one.host_uid(0)
        as_container_root(one, (overlay.rootfs / f"file{number}").touch)
        assert {p.stat().st_uid for p in overlay.rootfs.glob("file*")} == {one.host_uid(0)}
        assert mounts.unmount(overlay.rootfs)
    assert {p.stat().st_uid for p in overlay.upper.glob("file*")} == {0}


def test_folders_of_the_image_can_be_renamed(overlay: OverlayFolder, image: Path) -> None:
    overlays.mount_overlay(overlay, [image], MAP, OPTIONS)
    as_container_root(MAP, lambda: (overlay.rootfs / "etc").rename(overlay.rootfs / "moved"))
    mounts.unmount(overlay.rootfs)
    overlays.mount_overlay(overlay, [image], MAP, OPTIONS)
    assert (overlay.rootfs / "moved/file").read_text() == "from the image"
    assert not (overlay.rootfs / "etc").exists()


def test_capabilities_and_acls_land_unshifted(overlay: OverlayFolder, image: Path) -> None:
    """Set by processes in the container's user namespace, as its root would."""
    overlays.mount_overlay(overlay, [image], MAP, OPTIONS)
    script = "cp /bin/true tool && setcap cap_net_raw+ep tool && setfacl -m u:1000:rwx etc && getcap tool"
    with userns.user_namespace(MAP) as fd:
        done = subprocess.run(
            ["nsenter", f"--user=/proc/self/fd/{fd}", "--setuid=0", "--setgid=0", "sh", "-c", script],
            cwd=overlay.rootfs,
            pass_fds=[fd],
            capture_output=True,
            text=True,
        )
    assert "cap_net_raw=ep" in done.stdout, done.stderr
    capability = os.getxattr(overlay.upper / "tool", "security.capability")
    assert len(capability) == 20 or capability[20:] == bytes(4)
    acl = subprocess.run(["getfacl", "-n", overlay.upper / "etc"], capture_output=True, text=True, check=True)
    assert "user:1000:rwx" in acl.stdout
    acl = subprocess.run(
        ["getfacl", "-n", overlay.rootfs / "etc"], capture_output=True, text=True, check=True
    )
    assert "user:101000:rwx" in acl.stdout


def test_upper_layer_in_use_cannot_be_mounted_again(
    place: Path, overlay: OverlayFolder, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "BUSY_PATIENCE", 0.1)
    overlays.mount_overlay(overlay, [image], MAP, OPTIONS)
    mounts.bind(overlay.rootfs, place / "image/etc")
    mounts.unmount(overlay.rootfs)
    with pytest.raises(HostError, match="still in use"):
        overlays.mount_overlay(overlay, [image], MAP, OPTIONS)
    assert mounts.mounts_below(overlay.path) == []


def test_a_layer_that_is_freed_soon_is_waited_for(place: Path, overlay: OverlayFolder, image: Path) -> None:
    overlays.mount_overlay(overlay, [image], MAP, OPTIONS)
    mounts.bind(overlay.rootfs, place / "image/etc")
    mounts.unmount(overlay.rootfs)
    threading.Timer(0.15, mounts.unmount, [place / "image/etc"]).start()
    overlays.mount_overlay(overlay, [image], MAP, OPTIONS)
    assert mounts.mounted(overlay.rootfs)


def test_another_image_below_a_layer_is_refused(place: Path, overlay: OverlayFolder, image: Path) -> None:
    overlays.mount_overlay(overlay, [image], MAP, OPTIONS)
    mounts.unmount(overlay.rootfs)
    other = place / "other"
    other.mkdir()
    with pytest.raises(HostError, match="not the one that it was created on"):
        overlays.mount_overlay(overlay, [other], MAP, OPTIONS)
    assert mounts.mounts_below(overlay.path) == []


def test_a_busy_mount_is_waited_for_then_detached(
    place: Path, overlay: OverlayFolder, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overlays.mount_overlay(overlay, [image], IdMap(), OPTIONS)
    held = (overlay.rootfs / "etc/file").open()
    threading.Timer(0.15, held.close).start()
    assert mounts.unmount(overlay.rootfs, patience=5)
    assert not caplog.records
    overlays.mount_overlay(overlay, [image], IdMap(), OPTIONS)
    with (overlay.rootfs / "etc/file").open(), caplog.at_level(logging.WARNING):
        assert mounts.unmount(overlay.rootfs, patience=0.05)
    assert "still in use" in caplog.text
    assert not mounts.unmount(overlay.rootfs)
    assert not mounts.unmount(place / "not there")


def test_binds_do_not_show_each_others_mounts(place: Path) -> None:
    source, target = place / "source", place / "target"
    (source / "point").mkdir(parents=True)
    target.mkdir()
    mounts.bind(source, target)
    syscalls.mount("none", target / "point", "tmpfs", 0)
    assert mounts.mounted(target / "point")
    assert not mounts.mounted(source / "point")
    mounts.unmount_below(place)
    assert mounts.mounts_below(place) == []


def test_known_places_are_unmounted_without_the_mount_table(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = place / "first", place / "second"
    for target in (first, second):
        target.mkdir()
    for target in (first, first, second):
        syscalls.mount("none", target, "tmpfs", 0)
    with monkeypatch.context() as patch:
        patch.setattr(mounts, "mounts_below", None)
        mounts.unmount_places(place, [first, second, place / "not there"])
    assert mounts.mounts_below(place) == []


def test_what_keeps_a_known_place_busy_is_unmounted_before_it(place: Path) -> None:
    target = place / "first"
    target.mkdir()
    syscalls.mount("none", target, "tmpfs", 0)
    (target / "inner").mkdir()
    syscalls.mount("none", target / "inner", "tmpfs", 0)
    mounts.unmount_places(place, [target])
    assert mounts.mounts_below(place) == []


def test_loop_devices_are_released_with_their_mount(place: Path, image: Path) -> None:
    file = squashfs(image, place / "image.squashfs")
    target = place / "target"
    target.mkdir()
    loop.mount_squashfs(file, target)
    assert (target / "etc/file").read_text() == "from the image"
    assert len(loop_devices(file)) == 1
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    mounts.unmount(target)
    assert loop_devices(file) == []


def test_a_broken_squashfs_leaves_no_loop_device(place: Path, image: Path) -> None:
    file = squashfs(image, place / "image.squashfs")
    file.write_bytes(b"hsqs" + bytes(8192))
    with pytest.raises(OSError, match="Invalid argument|Input/output error"):
        loop.mount_squashfs(file, image)
    assert loop_devices(file) == []
    with pytest.raises(FileNotFoundError):
        loop.mount_squashfs(place / "missing", image)


def test_many_loop_devices_at_once(place: Path, image: Path) -> None:
    file = squashfs(image, place / "image.squashfs")
    targets = [place / f"target{n}" for n in range(6)]
    failures: list[Exception] = []

    def mount(target: Path) -> None:
        try:
            loop.mount_squashfs(file, target)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=mount, args=(t,)) for t in targets]
    for target, thread in zip(targets, threads, strict=True):
        target.mkdir()
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(loop_devices(file)) == 6


def test_support_for_idmapped_mounts_is_detected(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not mounts.can_idmap(Path("/proc/sys"))
    assert mounts.can_idmap(place)
    for value, able in (("1", False), ("true", False), ("false", True), ("", True), ("nonsense", False)):
        monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", value)
        assert mounts.can_idmap(place) is able


def test_trials_of_overlays(place: Path, overlay: OverlayFolder, image: Path) -> None:
    overlays.mount_overlay(overlay, [image], IdMap(), OPTIONS)
    for number, (folder, able) in enumerate(((place, True), (overlay.rootfs, False))):
        first, second = folder / f"trial{number}", folder / f"trial{number}b"
        first.mkdir()
        second.mkdir()
        assert overlays.can_overlay(first, OPTIONS) is able
        assert overlays.can_overlay_idmapped(second, OPTIONS) is able
        assert not mounts.mounts_below(first) + mounts.mounts_below(second)
