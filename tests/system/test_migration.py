"""Copies and moves of instances and custom volumes between two daemons, with Debian's `lxc`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.long import usually
from tests.support.servers import Servers, servers

pytestmark = pytest.mark.root

MODES = ("pull", "push", "relay")


@pytest.fixture(scope="module")
def module_servers(module_daemon: Daemon, busybox_image: Image) -> Iterator[Servers]:
    with servers(module_daemon, busybox_image) as found:
        yield found


@pytest.fixture
def both(module_servers: Servers) -> Iterator[Servers]:
    """Both servers, whose instances and volumes are deleted after each test."""
    yield module_servers
    module_servers.clean()


def write(daemon: Daemon, name: str, path: str, text: str) -> None:
    daemon.lxc("file", "push", "-", f"{name}{path}", input=text)


def read(daemon: Daemon, name: str, path: str) -> str:
    return daemon.lxc("file", "pull", f"{name}{path}", "-").stdout


@pytest.mark.parametrize("mode", MODES)
def test_an_instance_is_copied_with_its_snapshots(both: Servers, mode: str) -> None:
    both.lxc("init", "busybox", "c1", "-c", "user.tester=foo")
    write(both.near, "c1", "/root/state", "before")
    both.lxc("snapshot", "c1", "first")
    both.lxc("config", "unset", "c1", "user.tester")
    write(both.near, "c1", "/root/state", "after")
    both.lxc("copy", "near:c1", "far:c2", "--mode", mode)
    (copy,) = both.far.get("/1.0/instances?recursion=1")
    source = both.near.get("/1.0/instances/c1")
    assert (copy["name"], copy["status"]) == ("c2", "Stopped")
    for key in ("volatile.eth0.hwaddr", "volatile.uuid", "volatile.cloud-init.instance-id"):
        assert copy["config"][key] != source["config"][key]
    assert copy["config"]["volatile.base_image"] == source["config"]["volatile.base_image"]
    assert read(both.far, "c2", "/root/state") == "after"
    (snapshot,) = both.far.get("/1.0/instances/c2/snapshots?recursion=1")
    assert snapshot["config"]["user.tester"] == "foo"
    assert (
        snapshot["created_at"][:19] == both.near.get("/1.0/instances/c1/snapshots/first")["created_at"][:19]
    )
    both.lxc("start", "far:c2")
    both.lxc("stop", "far:c2", "--force")
    both.lxc("restore", "far:c2", "first")
    assert read(both.far, "c2", "/root/state") == "before"


def test_a_move_leaves_nothing_behind_and_keeps_the_identity(both: Servers) -> None:
    both.lxc("init", "busybox", "c1")
    config = both.near.get("/1.0/instances/c1")["config"]
    both.lxc("move", "near:c1", "far:", "--mode", "push")
    moved = both.far.get("/1.0/instances/c1")["config"]
    assert moved["volatile.eth0.hwaddr"] == config["volatile.eth0.hwaddr"]
    assert moved["volatile.cloud-init.instance-id"] == config["volatile.cloud-init.instance-id"]
    assert both.near.get("/1.0/instances") == []


def test_a_running_instance_is_copied_without_its_state(both: Servers) -> None:
    both.lxc("launch", "busybox", "c1")
    write(both.near, "c1", "/root/state", "running")
    both.lxc("snapshot", "near:c1", "first")
    assert "use --stateless" in both.lxc("copy", "near:c1", "far:c2", check=False)
    both.lxc("copy", "near:c1", "far:c2", "--stateless")
    assert read(both.far, "c2", "/root/state") == "running"
    both.lxc("restore", "far:c2", "first")
    assert read(both.far, "c2", "/root/state") == "running"
    both.lxc("start", "far:c2")
    assert both.near.get("/1.0/instances/c1/state")["status"] == "Running"


def test_a_snapshot_becomes_an_instance(both: Servers) -> None:
    both.lxc("init", "busybox", "c1")
    write(both.near, "c1", "/root/state", "before")
    both.lxc("snapshot", "c1", "first")
    write(both.near, "c1", "/root/state", "after")
    both.lxc("copy", "near:c1/first", "far:c2", "--mode", "push")
    assert read(both.far, "c2", "/root/state") == "before"
    assert both.far.get("/1.0/instances/c2/snapshots") == []


def test_a_copy_without_snapshots(both: Servers) -> None:
    both.lxc("init", "busybox", "c1")
    both.lxc("snapshot", "c1", "first")
    both.lxc("copy", "near:c1", "far:c2", "--instance-only")
    assert both.far.get("/1.0/instances/c2/snapshots") == []


def test_a_refresh_brings_files_and_snapshots_up_to_date(both: Servers) -> None:
    both.lxc("init", "busybox", "c1")
    both.lxc("snapshot", "c1", "kept")
    both.lxc("snapshot", "c1", "gone")
    both.lxc("copy", "near:c1", "far:c2")
    both.lxc("delete", "near:c1/gone")
    write(both.near, "c1", "/root/state", "one")
    both.lxc("snapshot", "c1", "new")
    write(both.near, "c1", "/root/state", "two")
    both.lxc("snapshot", "far:c2", "own")
    both.lxc("copy", "near:c1", "far:c2", "--refresh")
    assert [s["name"] for s in both.far.get("/1.0/instances/c2/snapshots?recursion=1")] == ["kept", "new"]
    assert read(both.far, "c2", "/root/state") == "two"
    both.lxc("start", "far:c2")
    assert "stop it first" in both.lxc("copy", "near:c1", "far:c2", "--refresh", check=False)
    both.lxc("stop", "far:c2", "--force")
    both.lxc("restore", "far:c2", "new")
    assert read(both.far, "c2", "/root/state") == "one"
    both.lxc("copy", "near:c1", "far:c2", "--refresh")


def test_custom_volumes_are_copied_and_moved_with_their_snapshots(both: Servers) -> None:
    both.lxc("storage", "volume", "create", "default", "v1", "user.foo=old")
    both.lxc("storage", "volume", "snapshot", "default", "v1", "first")
    both.lxc("storage", "volume", "set", "default", "v1", "user.foo=new")
    both.lxc("storage", "volume", "copy", "near:default/v1", "far:default/v2", "--mode", "push")
    assert both.lxc("storage", "volume", "get", "far:default", "v2", "user.foo") == "new\n"
    assert both.lxc("storage", "volume", "get", "far:default", "v2/first", "user.foo") == "old\n"
    both.lxc("storage", "volume", "copy", "near:default/v1", "far:default/v3", "--volume-only")
    assert both.far.get("/1.0/storage-pools/default/volumes/custom/v3/snapshots") == []
    both.lxc("storage", "volume", "move", "near:default/v1", "far:default/v4", "--mode", "relay")
    assert both.near.get("/1.0/storage-pools/default/volumes/custom") == []


def utsuwa(both: Servers, *words: str, check: bool = True) -> str:
    """Run the own client, with the remotes of the other one; return stdout, or without `check` stderr."""
    env = {"UTSUWA_CONF": str(both.near.conf)}
    ended = utsuwa_client(both.near, *words, check=check, env=env, timeout=120)
    return ended.stdout if check else ended.stderr


@pytest.mark.parametrize("mode", usually(["push"], MODES))
def test_the_own_client_copies_refreshes_and_moves(both: Servers, mode: str) -> None:
    words = ("--mode", mode)
    utsuwa(both, "init", "busybox", "near:c1")
    write(both.near, "c1", "/root/state", "one")
    utsuwa(both, "snapshot", "near:c1", "first")
    utsuwa(both, "copy", "near:c1", "far:", *words, "-c", "user.x=1")
    assert both.far.get("/1.0/instances/c1")["config"]["user.x"] == "1"
    write(both.near, "c1", "/root/state", "two")
    utsuwa(both, "copy", "near:c1", "far:c1", "--refresh", *words)
    assert read(both.far, "c1", "/root/state") == "two"
    utsuwa(both, "copy", "near:c1/first", "far:c2", *words)
    assert read(both.far, "c2", "/root/state") == "one"
    config = both.near.get("/1.0/instances/c1")["config"]
    utsuwa(both, "move", "near:c1", "far:c3", *words)
    assert both.near.get("/1.0/instances") == []
    moved = both.far.get("/1.0/instances/c3")["config"]
    assert moved["volatile.eth0.hwaddr"] == config["volatile.eth0.hwaddr"]


def test_a_move_that_fails_leaves_the_source(both: Servers) -> None:
    both.lxc("init", "busybox", "c1")
    both.lxc("init", "busybox", "far:c1")
    assert "already exists" in utsuwa(both, "move", "near:c1", "far:", check=False)
    both.lxc("config", "set", "c1", "security.protection.delete", "true")
    assert "is protected" in utsuwa(both, "move", "near:c1", "far:c2", check=False)
    both.lxc("config", "unset", "c1", "security.protection.delete")
    assert both.near.get("/1.0/instances") == ["/1.0/instances/c1"]
    assert both.far.get("/1.0/instances") == ["/1.0/instances/c1"]


@pytest.mark.parametrize("mode", usually(["pull"], ["pull", "relay"]))
def test_the_own_client_copies_and_moves_volumes(both: Servers, mode: str) -> None:
    words = ("--mode", mode)
    utsuwa(both, "storage", "volume", "create", "near:default", "v1")
    utsuwa(both, "storage", "volume", "snapshot", "near:default", "v1", "first")
    utsuwa(both, "storage", "volume", "copy", "near:default/v1", "far:default/v2", *words)
    utsuwa(both, "storage", "volume", "snapshot", "near:default", "v1", "second")
    utsuwa(both, "storage", "volume", "copy", "near:default/v1", "far:default/v2", "--refresh", *words)
    found = both.far.get("/1.0/storage-pools/default/volumes/custom/v2/snapshots?recursion=1")
    assert [snapshot["name"] for snapshot in found] == ["v2/first", "v2/second"]
    utsuwa(both, "storage", "volume", "move", "near:default/v1", "far:default/v1", *words)
    assert both.near.get("/1.0/storage-pools/default/volumes/custom") == []


def test_hard_links_capabilities_and_lists_of_access_are_kept(both: Servers) -> None:
    folder = both.near.dir / "storage-pools" / "default" / "custom" / "default_v1" / "rootfs"
    both.lxc("storage", "volume", "create", "default", "v1")
    file = folder / "file"
    file.write_text("x")
    os.chown(file, 1000, 1001)
    (folder / "link").hardlink_to(file)
    subprocess.run(["setcap", "cap_net_raw=ep", str(file)], check=True)
    subprocess.run(["setfacl", "-m", "u:7:r", str(file)], check=True)
    os.setxattr(file, "user.x", b"1")
    os.truncate(folder / "file", 3 * 2**20)
    both.lxc("storage", "volume", "copy", "near:default/v1", "far:default/v1")
    copy = both.far.dir / "storage-pools" / "default" / "custom" / "default_v1" / "rootfs" / "file"
    assert (copy.stat().st_uid, copy.stat().st_gid, copy.stat().st_nlink) == (1000, 1001, 2)
    assert sorted(os.listxattr(copy)) == sorted(os.listxattr(file))
    assert copy.stat().st_blocks * 512 < 2**20
