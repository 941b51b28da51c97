"""Migrations of which one side is killed: nothing is left on the target, and the source can be used again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.crash_steps import patiently
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image
from tests.support.long import usually
from tests.support.servers import Servers, servers

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

AT_TARGET = (
    *("migration agreed", "migration received layer", "migration received snapshot", "migration received"),
    "instance is received",
)
AT_SOURCE = ("migration agreed", "migration sent")


@pytest.fixture(scope="module")
def both(module_daemon: Daemon, busybox_image: Image, faults: Faults) -> Iterator[Servers]:
    """Two servers, of which `far` has fault points, each with an instance `c1` that has a snapshot."""
    with servers(module_daemon, busybox_image, env=faults.env) as found:
        for server in ("near", "far"):
            found.lxc("init", f"{server}:busybox", f"{server}:c1")
            found.near.lxc("file", "push", "-", f"{server}:c1/root/old", input="old")
            found.lxc("snapshot", f"{server}:c1", "first")
        yield found


def settled(daemon: Daemon) -> None:
    """Wait until a server whose peer was killed has noticed that, or has completed its part."""
    patiently(lambda: idle(daemon))


def idle(daemon: Daemon) -> None:
    running = daemon.get("/1.0/operations?recursion=1").get("running", [])
    assert [operation["description"] for operation in running] == []


def only_c1(daemon: Daemon) -> None:
    """Nothing but the instance `c1` with its snapshot is on a server, which can be started and stopped."""
    assert daemon.get("/1.0/instances") == ["/1.0/instances/c1"]
    pool = daemon.dir / "storage-pools" / "default"
    for folder in ("containers", "containers-snapshots"):
        assert [path.name for path in (pool / folder).iterdir()] == ["c1"]
    used = "".join(record.read_text() for record in pool.glob("containers*/**/volume.json"))
    assert [path.name for path in (pool / "layers").iterdir() if path.name not in used] == []
    assert list((daemon.dir / "migration").iterdir()) == []
    for action in ("start", "stop"):
        daemon.do("PUT", "/1.0/instances/c1/state", {"action": action, "force": True, "timeout": 20})


@pytest.mark.parametrize("mode", usually(["pull"], ["pull", "push"]))
@pytest.mark.parametrize("point", usually(["migration received layer", "instance is received"], AT_TARGET))
def test_a_killed_target_has_nothing_of_it(both: Servers, faults: Faults, point: str, mode: str) -> None:
    with faults.kill_at(both.far, point):
        both.lxc("copy", "near:c1", "far:c2", "--mode", mode, check=False)
    settled(both.near)
    only_c1(both.far)
    only_c1(both.near)


@pytest.mark.parametrize("mode", usually(["push"], ["pull", "push"]))
@pytest.mark.parametrize("point", usually(["migration sent"], AT_SOURCE))
def test_a_killed_source_still_has_it(both: Servers, faults: Faults, point: str, mode: str) -> None:
    with faults.kill_at(both.far, point):
        both.lxc("copy", "far:c1", "near:c2", "--mode", mode, check=False)
    settled(both.near)
    only_c1(both.far)
    if point == "migration sent":  # the target may have all of it, and is complete then
        for url in set(both.near.get("/1.0/instances")) - {"/1.0/instances/c1"}:
            both.near.do("DELETE", url)
    only_c1(both.near)


@pytest.mark.parametrize(
    "point",
    usually(["migration received"], ["migration agreed", "migration received layer", "migration received"]),
)
def test_a_killed_refresh_leaves_the_copy_as_it_was(both: Servers, faults: Faults, point: str) -> None:
    both.lxc("copy", "near:c1", "far:c2")
    both.near.lxc("file", "push", "-", "c1/root/new", input=point)
    both.lxc("snapshot", "near:c1", "second")
    with faults.kill_at(both.far, point):
        both.lxc("copy", "near:c1", "far:c2", "--refresh", check=False)
    assert [s["name"] for s in both.far.get("/1.0/instances/c2/snapshots?recursion=1")] == ["first"]
    assert both.far.lxc("file", "pull", "c2/root/new", "-", check=False).stdout != point
    both.lxc("copy", "near:c1", "far:c2", "--refresh")
    assert both.far.lxc("file", "pull", "c2/root/new", "-").stdout == point
    both.lxc("delete", "far:c2")
    both.lxc("delete", "near:c1/second")
