"""What takes long on a pool keeps nobody waiting who has nothing to do with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.disks import loop_ext4
from tests.support.images import Image
from tests.support.pools import everything
from utsuwa.host.processes.reading import bytes_read, family

pytestmark = pytest.mark.root

SLOW = 6
"""As many as the event loop has threads on the machines of most users, and more than on small ones."""


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """Whoever writes to a file system waits until the end of the block."""
    subprocess.run(["fsfreeze", "--freeze", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", folder], check=True)


def test_slow_creations_do_not_block_other_requests(
    daemon: Daemon, busybox_image: Image, tmp_path: Path
) -> None:
    with loop_ext4(tmp_path / "slow", 64 << 20) as disk, ThreadPoolExecutor(SLOW) as clients:
        busybox = "busybox"
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias=busybox)
        daemon.lxc("storage", "create", "slow", "dir", f"source={disk}")
        daemon.lxc("launch", busybox, "quick")
        before = everything(disk)
        names = [f"slow{number}" for number in range(SLOW)]
        with frozen(disk):
            creations = [
                clients.submit(daemon.lxc, "init", busybox, name, "--storage", "slow") for name in names
            ]
            while len(daemon.get("/1.0/operations").get("running", [])) < SLOW:
                assert not any(creation.done() for creation in creations)
            assert "quick" in daemon.lxc("list", "--format", "csv").stdout
            assert daemon.lxc("exec", "quick", "--", "echo", "runs").stdout == "runs\n"
            daemon.lxc("stop", "quick", "--force")
            daemon.lxc("start", "quick")
            daemon.lxc("launch", busybox, "another")
            daemon.lxc("delete", "another", "--force")
            assert not any(creation.done() for creation in creations)
            assert everything(disk) == before
        for creation in creations:
            creation.result()
        assert sorted(path.name for path in (disk / "containers").iterdir()) == names
        daemon.lxc("delete", *names)
        daemon.lxc("storage", "delete", "slow")


def unpacking(daemon: Daemon) -> int | None:
    """The process that unpacks the rootfs of a squashfs for the daemon."""
    for process in family(daemon.pid):
        with suppress(OSError):
            argv = (process / "cmdline").read_bytes().split(b"\0")
            if argv[0] == b"unsquashfs" and b"-dest" in argv:
                return int(process.name)
    return None


def test_a_slow_unpacking_shows_how_far_it_is(daemon: Daemon, busybox_image: Image, tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    for number in range(3000):  # read at once, but written one by one
        (tmp_path / f"rootfs/{number}").write_bytes(os.urandom(6000))
    pack = ["mksquashfs", str(tmp_path / "rootfs"), str(tmp_path / "rootfs.squashfs"), "-noD", "-noF"]
    subprocess.run([*pack, "-quiet", "-no-progress"], check=True)
    daemon.lxc("storage", "create", "slow", "dir")
    daemon.import_image(busybox_image.metadata, tmp_path / "rootfs.squashfs", alias="large")
    body = {
        "name": "c1",
        "source": {"type": "image", "alias": "large"},
        "devices": {"root": {"type": "disk", "path": "/", "pool": "slow"}},
    }
    operation = daemon.api("POST", "/1.0/instances", body).operation
    while (pid := unpacking(daemon)) is None:
        pass
    os.kill(pid, signal.SIGSTOP)
    while bytes_read(pid, "unsquashfs") < 1 << 20:  # in small steps, so that it does not get to its end
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGSTOP)
    try:
        while "percent" not in (metadata := daemon.get(operation)["metadata"] or {}).get("progress", {}):
            assert daemon.get(operation)["status"] == "Running"
    finally:
        os.kill(pid, signal.SIGCONT)
    shown, progress = metadata["create_instance_from_image_unpack_progress"], metadata["progress"]
    assert shown.startswith(f"Unpack: {progress['percent']}%")
    assert progress["stage"] == "create_instance_from_image_unpack"
    assert 0 < int(progress["percent"]) < 100
    assert int(progress["processed"]) > 0
    assert daemon.get(f"{operation}/wait")["status"] == "Success"
    daemon.lxc("delete", "c1")
    daemon.lxc("storage", "delete", "slow")
