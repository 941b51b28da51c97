"""Copies between two daemons without rsync: layers between overlay pools, archives between others."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.long import usually
from tests.support.servers import Servers, servers
from tests.support.whole_trees import differences, tree

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def module_servers(module_daemon: Daemon, busybox_image: Image) -> Iterator[Servers]:
    with servers(module_daemon, busybox_image) as found:
        found.lxc("storage", "create", "near:plain", "dir")
        found.lxc("storage", "create", "far:plain", "dir")
        yield found


@pytest.fixture
def both(module_servers: Servers) -> Iterator[Servers]:
    yield module_servers
    module_servers.clean()
    for daemon in (module_servers.near, module_servers.far):
        assert layers(daemon) == {}


def layers(daemon: Daemon) -> dict[str, str]:
    """The layers of a server, each with the name that it has where it comes from."""
    folders = (daemon.dir / "storage-pools" / "default" / "layers").iterdir()
    return {folder.name: _identity(folder) for folder in folders}


def _identity(folder: Path) -> str:
    file = folder / "identity"
    return file.read_text() if file.exists() else ""


def write(daemon: Daemon, name: str, text: str) -> None:
    daemon.lxc("file", "push", "-", f"{name}/root/state", input=text)


def read(daemon: Daemon, name: str) -> str:
    return daemon.lxc("file", "pull", f"{name}/root/state", "-").stdout


def received(daemon: Daemon) -> dict[str, str]:
    """The layers that came from the other server, by the names that they have there."""
    return {identity: name for name, identity in layers(daemon).items() if identity}


def make_history(both: Servers) -> None:
    both.lxc("init", "busybox", "c1")
    for snapshot in ("one", "two"):
        write(both.near, "c1", snapshot)
        both.lxc("snapshot", "c1", snapshot)
    write(both.near, "c1", "three")


def test_each_layer_is_sent_once_and_refreshes_send_new_ones(both: Servers) -> None:
    make_history(both)
    both.lxc("copy", "near:c1", "far:c2")
    first = received(both.far)
    assert len(first) == 3
    assert first.keys() < layers(both.near).keys()
    both.lxc("copy", "near:c1", "far:c2", "--refresh")
    assert received(both.far) == first
    write(both.near, "c1", "four")
    both.lxc("snapshot", "near:c1", "four")
    both.lxc("copy", "near:c1", "far:c2", "--refresh")
    assert first.items() < received(both.far).items()
    assert len(received(both.far)) == 4
    assert read(both.far, "c2") == "four"
    for snapshot in ("two", "one"):
        both.lxc("restore", "far:c2", snapshot)
        assert read(both.far, "c2") == snapshot


def test_what_was_changed_in_a_copy_is_gone_after_a_refresh_in_either_direction(both: Servers) -> None:
    make_history(both)
    both.lxc("copy", "near:c1", "far:c1")
    write(both.far, "c1", "changed there")
    before = set(layers(both.near))
    both.lxc("copy", "far:c1", "near:c1", "--refresh")
    assert read(both.near, "c1") == "changed there"
    assert len(received(both.near)) == 1
    assert len(before & set(layers(both.near))) >= 3
    write(both.far, "c1", "again")
    both.lxc("copy", "near:c1", "far:c1", "--refresh")
    assert read(both.far, "c1") == "changed there"


def test_an_image_that_is_not_there_is_a_layer(both: Servers, busybox_image: Image) -> None:
    both.lxc("image", "delete", "far:busybox")
    try:
        make_history(both)
        both.lxc("copy", "near:c1", "far:c2")
        first = received(both.far)
        assert [identity for identity in first if identity.startswith("image-")] != []
        both.lxc("copy", "near:c1", "far:c2", "--refresh")
        assert received(both.far) == first
        both.lxc("start", "far:c2")
        assert read(both.far, "c2") == "three"
    finally:
        both.far.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")


def test_a_running_instance_is_copied_and_a_snapshot_becomes_an_instance(both: Servers) -> None:
    make_history(both)
    both.lxc("start", "near:c1")
    both.lxc("copy", "near:c1", "far:c2", "--stateless")
    both.lxc("copy", "near:c1/one", "far:c3")
    assert (read(both.far, "c2"), read(both.far, "c3")) == ("three", "one")
    assert len(layers(both.far)) == 4
    write(both.near, "c1", "four")
    both.lxc("copy", "near:c1", "far:c2", "--stateless", "--refresh")
    assert read(both.far, "c2") == "four"
    both.lxc("start", "far:c2", "far:c3")
    assert both.near.get("/1.0/instances/c1/state")["status"] == "Running"


def test_metadata_and_templates_are_copied(both: Servers) -> None:
    both.lxc("init", "busybox", "c1")
    folder = both.near.dir / "storage-pools" / "default" / "containers" / "c1"
    (folder / "templates").mkdir(exist_ok=True)
    (folder / "templates" / "own.tpl").write_text("own")
    both.lxc("snapshot", "c1", "one")
    both.lxc("copy", "near:c1", "far:c1")
    pool = both.far.dir / "storage-pools" / "default"
    for copy in (pool / "containers" / "c1", pool / "containers-snapshots" / "c1" / "one"):
        assert (copy / "templates" / "own.tpl").read_text() == "own"
        assert (copy / "metadata.yaml").read_text() == (folder / "metadata.yaml").read_text()


def odd_tree(folder: Path) -> None:
    for name in ("new\nline", os.fsdecode(b"\xff\xfe"), "l" * 255):
        (folder / name).mkdir()
        (folder / name / name).write_text("x")
    file = folder / "file"
    file.write_text("x")
    os.truncate(file, 3 * 2**20)
    os.chown(file, 1000, 1001)
    (folder / "link").hardlink_to(file)
    os.setxattr(file, "user.x", b"\0\n")
    subprocess.run(["setcap", "cap_net_raw=ep", str(file)], check=True)
    subprocess.run(["setfacl", "-m", "u:7:r,d:u:8:rwx", str(folder)], check=True)
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (folder / "symlink").symlink_to("/etc/passwd")


@pytest.mark.parametrize("mode", usually(["push"], ["pull", "push", "relay"]))
def test_trees_on_other_pools_arrive_as_they_are(both: Servers, mode: str, busybox_image: Image) -> None:
    both.lxc("image", "delete", "far:busybox")
    try:
        both.lxc("init", "busybox", "c1", "-s", "plain", "-c", "security.privileged=true")
        rootfs = Path("storage-pools/plain/containers/c1/rootfs")
        odd_tree(both.near.dir / rootfs / "root")
        both.lxc("copy", "near:c1", "far:c1", "-s", "plain", "--mode", mode)
        assert differences(tree(both.near.dir / rootfs), tree(both.far.dir / rootfs)) == []
    finally:
        both.far.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")


@pytest.mark.parametrize(("source", "target"), [("default", "plain"), ("plain", "default")])
def test_pools_need_not_have_the_same_driver(both: Servers, source: str, target: str) -> None:
    both.lxc("init", "busybox", "c1", "-s", source)
    write(both.near, "c1", "one")
    both.lxc("snapshot", "c1", "one")
    write(both.near, "c1", "two")
    both.lxc("copy", "near:c1", "far:c1", "-s", target)
    assert read(both.far, "c1") == "two"
    both.lxc("start", "far:c1")
    both.lxc("stop", "far:c1", "--force")
    both.lxc("restore", "far:c1", "one")
    assert read(both.far, "c1") == "one"
