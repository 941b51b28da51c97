"""A daemon that is killed while it changes the disks of an instance: its next start takes the change back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.boxed import daemon_with_faults
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image
from tests.system.test_host_disks import change, disk, shell

pytestmark = pytest.mark.root

ROW = "before update instance"
"""The point before the row is stored: all else is done."""


@pytest.fixture(scope="module")
def daemon(busybox_image: Image, faults: Faults) -> Iterator[Daemon]:
    """A daemon with the running container c1."""
    with daemon_with_faults(busybox_image, faults, {"name": "c1"}) as daemon:
        yield daemon


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    found = (tmp_path / "one", tmp_path / "two")
    for path in found:
        (path / "below").mkdir(parents=True)
        (path / path.name).touch()
    return found


def state(daemon: Daemon) -> tuple[object, str, list[str]]:
    """The devices, what is mounted inside and what it shows, and what the host has for the devices."""
    shown = shell(
        daemon, "mkdir -p /srv; grep ' /mnt' /proc/mounts; ls /mnt /mnt/below /srv 2>/dev/null", check=False
    )
    folder = daemon.dir / "devices/c1"
    on_host = sorted(path.name for path in folder.iterdir() if path.name.startswith(("disk", "unix")))
    instance = daemon.get("/1.0/instances/c1")
    return instance["devices"], shown, [*on_host, instance["config"].get("volatile.last_state.change", "")]


def test_interrupted_changes_are_reverted(daemon: Daemon, faults: Faults, sources: tuple[Path, Path]) -> None:
    one, two = sources
    first = {"a": disk(two, "/mnt/below"), "z": disk(one, "/mnt")}
    changes = {
        "add": {**first, "more": disk(two, "/srv")},
        "remove": {"z": first["z"]},
        "exchange": {**first, "z": disk(two, "/mnt")},
        "device": {**first, "char": {"type": "unix-char", "source": "/dev/zero", "path": "/mnt/zero"}},
        "move": {**first, "a": disk(two, "/srv")},
        "read-only": {**first, "z": first["z"] | {"readonly": "true"}},
    }
    change(daemon, first)
    before = state(daemon)
    assert before[2] == ["disk.a", "disk.z", ""]
    for name, wanted in changes.items():
        with faults.kill_at(daemon, ROW):
            change(daemon, wanted)
        assert state(daemon) == before, name
    change(daemon, {})


def test_a_start_that_was_not_finished_is(daemon: Daemon, faults: Faults, sources: tuple[Path, Path]) -> None:
    """What was prepared on the host is gone, the container has its disk."""
    daemon.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    change(daemon, {"a": disk(sources[0], "/mnt")})
    for point in ("container started", "before start instance"):
        with faults.kill_at(daemon, point):
            daemon.do("PUT", "/1.0/instances/c1/state", {"action": "start"})
        if daemon.get("/1.0/instances/c1")["status"] == "Running":
            assert shell(daemon, "ls /mnt") == "below\none\n"
            daemon.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
        assert not (daemon.dir / "devices/c1").exists(), point
        assert str(daemon.dir / "devices") not in Path(f"/proc/{daemon.pid}/mounts").read_text()
    assert (sources[0] / "one").exists()
