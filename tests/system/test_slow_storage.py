"""What takes long on a pool keeps nobody waiting who has nothing to do with it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.disks import loop_ext4
from tests.support.images import Image
from tests.support.pools import everything

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


def test_slow_creations_keep_nobody_waiting(daemon: Daemon, busybox_image: Image, tmp_path: Path) -> None:
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
