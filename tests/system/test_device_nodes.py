"""The device nodes that a container has: of its own where it could change them."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image
from utsuwa.core.idmap import IdMap
from utsuwa.host.mounts import detached
from utsuwa.host.mounts.device_folder import DeviceFolder
from utsuwa.instances.confinement import nodes

pytestmark = pytest.mark.root

SHARED = ("/dev/fuse", "/dev/net/tun")
CHANGE = 'for n in $(find /dev -type c); do chmod 600 "$n"; chown 65534:65534 "$n"; done; true'
LOOK = "for n in /dev/fuse /dev/net/tun; do [ -c $n ] && stat -c '%a %u %g %t:%T' $n; done; true"


def host_nodes() -> dict[str, tuple[int, int, int]]:
    """Mode and owner of the character devices that the host has."""
    found = {}
    for folder in (Path("/dev"), Path("/dev/net")):
        for path in folder.iterdir():
            status = path.lstat()
            if stat.S_ISCHR(status.st_mode):
                found[str(path)] = (status.st_mode, status.st_uid, status.st_gid)
    return found


@pytest.mark.parametrize("privileged", ["true", "false"])
def test_a_guest_that_changes_its_nodes_leaves_the_hosts_alone(
    shared_daemon: Daemon, busybox: str, privileged: str
) -> None:
    """What udev in a guest does to `/dev`, and what the host's administrator did to its own, end there."""
    present = [path for path in SHARED if Path(path).exists()]
    wanted = [f"666 0 0 {os.major(d):x}:{os.minor(d):x}" for d in (Path(p).stat().st_rdev for p in present)]
    before = host_nodes()
    shared_daemon.lxc("launch", busybox, "c1", "-c", f"security.privileged={privileged}")
    folder = shared_daemon.dir / "devices/c1"
    assert len(list(folder.iterdir())) == len(present)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o100
    for _ in range(2):
        assert shared_daemon.lxc("exec", "c1", "--", "sh", "-c", LOOK).stdout.splitlines() == wanted
        shared_daemon.lxc("exec", "c1", "--", "sh", "-c", CHANGE)
        assert host_nodes() == before
        shared_daemon.lxc("restart", "-f", "c1")
    shared_daemon.lxc("stop", "-f", "c1")
    assert not folder.exists()


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="this host has no /dev/net/tun")
@pytest.mark.parametrize("privileged", ["true", "false"])
def test_the_nodes_open(shared_daemon: Daemon, busybox: str, privileged: str) -> None:
    shared_daemon.lxc("launch", busybox, "c1", "-c", f"security.privileged={privileged}")
    shared_daemon.lxc("exec", "c1", "--", "sh", "-c", ": <>/dev/net/tun")


@pytest.mark.parametrize("form", ["squashfs", "tar"])
def test_device_nodes_in_an_image(
    shared_daemon: Daemon, busybox_image: Image, tmp_path: Path, form: str
) -> None:
    """They come in outside of /dev too, open in no unprivileged container, and in a privileged one only
    where its device cgroup allows it (lxd#10449)."""
    assert busybox_image.rootfs is not None
    tree, rootfs = tmp_path / "tree", tmp_path / f"rootfs.{form}"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, busybox_image.rootfs], check=True)
    (tree / "v").mkdir()
    for name, kind, device in (
        ("null", stat.S_IFCHR, (1, 3)),
        ("mem", stat.S_IFCHR, (1, 1)),
        ("loop0", stat.S_IFBLK, (7, 0)),
    ):
        os.mknod(tree / "v" / name, kind | 0o600, os.makedev(*device))
    (tree / "v/link").symlink_to("null")
    os.link(tree / "v/link", tree / "v/link2", follow_symlinks=False)
    pack: list[str | Path] = ["mksquashfs", tree, rootfs, "-quiet", "-no-progress"]
    if form == "tar":
        pack = ["tar", "-C", tree, "-cf", rootfs, "."]
    subprocess.run(pack, check=True, capture_output=True)
    fingerprint = shared_daemon.import_image(busybox_image.metadata, rootfs)
    for privileged, opens in (("false", set[str]()), ("true", {"null", "link", "link2"})):
        name = f"c-{privileged}"
        shared_daemon.lxc("launch", fingerprint, name, "-c", f"security.privileged={privileged}")
        assert shared_daemon.lxc("exec", name, "ls", "/v").stdout.split() == ["link", "link2", "mem", "null"]
        script = 'for n in null mem link link2; do (: <"/v/$n") 2>/dev/null && echo $n; done; true'
        assert set(shared_daemon.lxc("exec", name, "--", "sh", "-c", script).stdout.split()) == opens
    shared_daemon.delete_instances()
    shared_daemon.do("DELETE", f"/1.0/images/{fingerprint}")


def test_nodes_open_wherever_the_state_directory_is(tmp_path: Path) -> None:
    """Also on a file system mounted with `nodev`."""
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    os.mknod(root / "dev/fuse", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (tmp_path / "devices").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev", "none", tmp_path / "devices"], check=True)
    folder = DeviceFolder(tmp_path / "devices/c1")
    try:
        for _ in range(2):
            folder.make(IdMap())
            (own,) = nodes.make(folder, IdMap(), root)
            assert own == (folder.path / "dev-fuse", "dev/fuse")
            own[0].read_bytes()
        folder.remove()
        assert not folder.path.exists()
    finally:
        subprocess.run(["umount", tmp_path / "devices"], check=True)


def test_where_no_nodes_can_be_made_the_hosts_are_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a user namespace."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    (tmp_path / "dev").mkdir()
    os.mknod(tmp_path / "dev/fuse", 0o600 | stat.S_IFCHR, os.makedev(10, 229))
    folder = DeviceFolder(tmp_path / "c1")
    folder.make(IdMap())
    monkeypatch.setattr(os, "mknod", refuse)
    assert nodes.make(folder, IdMap(), tmp_path) == [(tmp_path / "dev/fuse", "dev/fuse")]


def test_the_folder_of_devices_is_never_removed_through_a_mount(tmp_path: Path) -> None:
    """What is in it may be the host's files, and those of the same file system."""
    files = tmp_path / "files"
    (files / "deep").mkdir(parents=True)
    (files / "kept").touch()
    folder = DeviceFolder(tmp_path / "c1")
    folder.make(IdMap())
    source = detached.open_source(str(files))
    tree = detached.copied(source, detached.Options())
    folder.attach("disk.a", tree, private=True)
    os.close(tree)
    os.close(source)
    assert (folder.path / "disk.a/kept").exists()
    folder.remove()
    assert not folder.path.exists()
    assert {path.name for path in files.iterdir()} == {"deep", "kept"}
