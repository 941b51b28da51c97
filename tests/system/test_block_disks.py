"""Disks whose source is a block device with a file system, and limits of requests to disks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.system.test_host_disks import applied, change, disk, refusal, shell
from utsuwa.host.cgroups import tree as cgroups

pytestmark = pytest.mark.root


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device with an ext4 file system that has one file of the host's user 1000."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("on disk\n")
    os.chown(tree / "file", 1000, 1000)
    file = tmp_path / "image"
    file.touch()
    os.truncate(file, 16 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, file], check=True)
    made = subprocess.run(["losetup", "-f", "--show", file], check=True, capture_output=True, text=True)
    path = Path(made.stdout.strip())
    yield path
    subprocess.run(["losetup", "-d", path], check=True)


@pytest.mark.parametrize("way", ["started", "hot-plugged"])
def test_a_file_system_on_a_block_device(shared_daemon: Daemon, busybox: str, device: Path, way: str) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "c1")
    d.lxc("launch", busybox, "c2")
    options = "noexec,commit=77"
    applied(d, {"a": disk(device, "/mnt", shift="true", raw__mount__options=options)}, way)
    assert shell(d, "cat /mnt/file; stat -c %u /mnt/file") == "on disk\n1000\n"
    mounted = shell(d, "grep ' /mnt ' /proc/mounts").split()
    assert mounted[0] == str(device)
    assert {"noexec", "commit=77", "rw"} <= set(mounted[3].split(","))
    shell(d, "echo new >/mnt/new; sync /mnt/new")
    # The same file system in another container, owners as on the host.
    d.do("PATCH", "/1.0/instances/c2", {"devices": {"a": disk(device, "/srv")}})
    assert shell(d, "cat /srv/new; stat -c %u /srv/file", "c2") == "new\n65534\n"
    # Neither the host nor the daemon has it mounted.
    assert str(device) not in Path(f"/proc/{d.pid}/mounts").read_text()
    d.lxc("stop", "-f", "c1", "c2")
    subprocess.run(["e2fsck", "-fn", device], check=True, capture_output=True)


def test_failing_mounts_of_block_devices_are_rejected(
    shared_daemon: Daemon, busybox: str, device: Path
) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "c1")
    for options, wrong in (("uid=5", "uid"), ("data=none", "data")):
        error = refusal(d, {"a": disk(device, "/mnt", raw__mount__options=options)})
        assert f"'a': 'source' {device}" in error
        assert wrong in error
    subprocess.run(["dd", "if=/dev/zero", f"of={device}", "bs=1M", "count=1", "status=none"], check=True)
    error = refusal(d, {"a": disk(device, "/mnt")})
    assert "no file system was found" in error
    assert shell(d, "grep -c ' /mnt ' /proc/mounts", check=False) == "0\n"


def limits(daemon: Daemon) -> dict[str, str]:
    """What the cgroup of c1 holds: the lines of each file that has some."""
    pid = daemon.get("/1.0/instances/c1/state")["pid"]
    folders = cgroups.folders_of(pid)
    files = {"blkio": "blkio.throttle.*_device", "": "io.max"}
    return {
        path.name: path.read_text()
        for controller, pattern in files.items()
        if controller in folders
        for path in folders[controller].glob(pattern)
        if path.read_text()
    }


@pytest.mark.skipif(
    cgroups.controllers().get("blkio", (0,))[0] != 1, reason="this host has no blkio controller"
)
def test_limits_of_requests(shared_daemon: Daemon, busybox: str, device: Path) -> None:
    """At a start and live, of the root disk and another, and all of them or none."""
    d = shared_daemon
    loop = f"{os.major(device.stat().st_rdev)}:{os.minor(device.stat().st_rdev)}"
    d.lxc("launch", busybox, "c1")
    assert limits(d) == {}
    for way in ("started", "hot-plugged"):
        applied(d, {"a": disk(device, "/mnt", limits__read="1MB", limits__write="20iops")}, way)
        assert limits(d) == {
            "blkio.throttle.read_bps_device": f"{loop} 1000000\n",
            "blkio.throttle.write_iops_device": f"{loop} 20\n",
        }
        mounts = shell(d, "cat /proc/mounts")
        change(d, {"a": disk(device, "/mnt", limits__max="3MB")})
        assert limits(d) == {
            "blkio.throttle.read_bps_device": f"{loop} 3000000\n",
            "blkio.throttle.write_bps_device": f"{loop} 3000000\n",
        }
        bad = disk("/nowhere", "/srv")
        error = refusal(d, {"a": disk(device, "/mnt", limits__max="4MB"), "b": bad})
        assert limits(d)["blkio.throttle.read_bps_device"] == f"{loop} 3000000\n"
        assert shell(d, "cat /proc/mounts") == mounts
        change(d, {})
        assert limits(d) == {}
    root = d.get("/1.0/profiles/default")["devices"]["root"]
    change(d, {"root": root | {"limits.read": "50iops"}})
    (line,) = limits(d).items()
    assert line[0] == "blkio.throttle.read_iops_device"
    assert line[1].endswith(" 50\n")
    error = refusal(d, {"a": disk("/proc", "/mnt", limits__read="1MB")})
    assert "'a': its requests cannot be limited" in error
