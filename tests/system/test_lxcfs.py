"""lxcfs under a daemon of its own: instances show their limits, also after lxcfs was restarted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.box import Lxcfs
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("lxcfs") is None or not Path("/dev/fuse").exists(), reason="lxcfs does not run here"
    ),
]

WARNING = "Instances see the resources of the whole host"
TOTAL = f"MemTotal:{100 << 10:>15} kB\n"


@pytest.fixture
def lxcfs() -> Iterator[Lxcfs]:
    with Lxcfs() as made:
        yield made


def status(daemon: Daemon) -> str:
    """Return the status of the warning about lxcfs; empty if there is none."""
    found = [w for w in daemon.get("/1.0/warnings?recursion=1") if w["type"] == WARNING]
    return str(found[0]["status"]) if found else ""


@pytest.fixture
def daemon(lxcfs: Lxcfs, busybox_image: Image) -> Iterator[Daemon]:
    made = Daemon(env={"UTSUWA_LXCFS": str(lxcfs.mount)})
    try:
        made.start()
        made.make_defaults()
        made.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        yield made
    finally:
        problems = made.close()
    assert problems == []


def test_running_instances_follow_a_restart(daemon: Daemon, lxcfs: Lxcfs) -> None:
    d = daemon
    for name, config in (("c1", "user.a=b"), ("nested", "security.nesting=true")):
        d.lxc("launch", "busybox", name, "-c", "limits.memory=100MiB", "-c", config)

    def memory(name: str) -> str:
        return d.lxc("exec", name, "--", "head", "-n1", "/proc/meminfo", check=False).stdout

    assert memory("c1") == memory("nested") == TOTAL
    assert status(d) in ("", "resolved")

    lxcfs.kill()
    assert memory("c1") == ""
    until(lambda: status(d) == "new", seconds=60)
    lxcfs.start()
    until(lambda: memory("c1") == memory("nested") == TOTAL, seconds=60)
    until(lambda: status(d) == "resolved")  # lxcfs may have started after it was judged, but before a look
    inside = d.lxc("exec", "nested", "--", "cat", "/proc/mounts").stdout
    assert inside.count(" /proc/meminfo fuse.lxcfs ") == 1
    assert inside.count(" /var/lib/lxcfs fuse.lxcfs ") == inside.count(" /var/lib/lxcfs ")
