"""Copies of instances between Utsuwa, LXD and Incus, with the clients of all three."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.support import peers, tls
from tests.support.api import Endpoint
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.world import NAMES, WAYS, World, three_servers

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900),
    pytest.mark.skipif("UTSUWA_LONG" not in os.environ, reason="takes minutes: scripts/test --long"),
]

MODES = ("pull", "push", "relay")
OWNERS = "/root/owned"


@pytest.fixture(scope="module")
def world(module_daemon: Daemon, busybox_image: Image) -> Iterator[World]:
    with three_servers(module_daemon) as found:
        for name, server in found.servers.items():
            if name != "utsuwa":
                server.do("POST", "/1.0/storage-pools", {"name": "default", "driver": "dir"})
                root = {"type": "disk", "path": "/", "pool": "default"}
                server.do("PATCH", "/1.0/profiles/default", {"devices": {"root": root}})
            client = "incus" if name == "incus" else "lxc"
            files = (str(busybox_image.metadata), str(busybox_image.rootfs))
            found.run(client, "image", "import", *files, f"{name}:", "--alias", "busybox")
        yield found


def client_of(*names: str) -> str:
    """Return the client that knows these servers."""
    return "incus" if "incus" in names else "lxc"


def delete_all(server: Endpoint) -> None:
    for url in server.get("/1.0/instances"):
        server.do("DELETE", url)


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest, world: World) -> Iterator[tuple[str, str]]:
    """Source and target, which have no instances after the test."""
    yield request.param
    for name in request.param:
        delete_all(world.servers[name])


def write(world: World, server: str, path: str, text: str) -> None:
    """Write a file of the user 1000."""
    source = world.daemon.home / "pushed"
    source.write_text(text)
    url = f"{server}:c1{path}"
    world.run(client_of(server), "file", "push", str(source), url, "--uid", "1000", "--gid", "1000")


def read(world: World, server: str, name: str, path: str) -> tuple[str, str]:
    """Return the content of a file, and its owner as the container sees it."""
    url = f"/1.0/instances/{name}/files?path={quote(path)}"
    reply = world.servers[server].api("GET", url)
    assert reply.status == 200, reply.body
    kind = "x-incus-uid" if server == "incus" else "x-lxd-uid"
    return reply.body.decode(), reply.headers[kind]


@pytest.mark.parametrize("mode", MODES)
def test_an_instance_is_copied_with_snapshots_and_refreshed(
    world: World, way: tuple[str, str], mode: str
) -> None:
    source, target = way
    client = client_of(source, target)
    near = client_of(source)
    world.run(near, "init", f"{source}:busybox", f"{source}:c1")
    write(world, source, OWNERS, "before")
    words = ("snapshot", "create") if near == "incus" else ("snapshot",)
    world.run(near, *words, f"{source}:c1", "first")
    write(world, source, OWNERS, "after")
    world.run(client, "copy", f"{source}:c1", f"{target}:c2", "--mode", mode)
    assert read(world, target, "c2", OWNERS) == ("after", "1000")
    snapshots = world.servers[target].get("/1.0/instances/c2/snapshots?recursion=1")
    assert [snapshot["name"].rpartition("/")[2] for snapshot in snapshots] == ["first"]
    for action in ("start", "stop") if target == "utsuwa" else ():
        body = {"action": action, "timeout": 30, "force": True}
        world.servers[target].do("PUT", "/1.0/instances/c2/state", body)
    write(world, source, OWNERS, "refreshed")
    world.run(client, "copy", f"{source}:c1", f"{target}:c2", "--refresh", "--mode", mode)
    assert read(world, target, "c2", OWNERS) == ("refreshed", "1000")
    world.servers[target].do("PUT", "/1.0/instances/c2", {"restore": "first"})
    assert read(world, target, "c2", OWNERS) == ("before", "1000")
    assert json.loads(world.run(client_of(target), "list", f"{target}:", "--format", "json"))


@pytest.fixture
def shifted(world: World) -> Iterator[Endpoint]:
    """An LXD that shifts owners on disk, as the remote `shifted` of `lxc`."""
    peer = peers.lxd({"LXD_IDMAPPED_MOUNTS_DISABLE": "1", "LXD_SHIFTFS_DISABLE": "1"})
    try:
        address = tls.free_address()
        config = {"core.https_address": address, "core.trust_password": "open"}
        peer.do("PATCH", "/1.0", {"config": config})
        peer.do("POST", "/1.0/storage-pools", {"name": "default", "driver": "dir"})
        root = {"type": "disk", "path": "/", "pool": "default"}
        peer.do("PATCH", "/1.0/profiles/default", {"devices": {"root": root}})
        words = ("remote", "add", "shifted", f"https://{address}", "--accept-certificate")
        world.run("lxc", *words, "--password", "open")
        yield peer
        for url in peer.get("/1.0/instances"):
            peer.do("DELETE", url)
        world.run("lxc", "remote", "remove", "shifted")
    finally:
        peer.close()


def test_owners_that_are_shifted_on_disk_are_mapped(
    world: World, shifted: peers.Peer, busybox_image: Image
) -> None:
    files = (str(busybox_image.metadata), str(busybox_image.rootfs))
    world.run("lxc", "image", "import", *files, "shifted:", "--alias", "busybox")
    world.run("lxc", "init", "shifted:busybox", "shifted:c1")
    # It shifts the files before it starts the container, which not every machine lets it do.
    shifted.wait(shifted.api("PUT", "/1.0/instances/c1/state", {"action": "start", "timeout": 30}))
    shifted.wait(shifted.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True}))
    rootfs = shifted.dir / "containers" / "c1" / "rootfs"
    assert rootfs.lstat().st_uid > 0
    world.run("lxc", "copy", "shifted:c1", "utsuwa:c2")
    try:
        copy = world.daemon.dir / "storage-pools" / "default" / "containers" / "c2"
        for path in (copy / "layer" / "upper").rglob("*"):
            assert path.lstat().st_uid < 65536
        assert world.daemon.api("GET", "/1.0/instances/c2/files?path=/bin").headers["x-lxd-uid"] == "0"
        for action in ("start", "stop"):
            body = {"action": action, "timeout": 30, "force": True}
            world.daemon.do("PUT", "/1.0/instances/c2/state", body)
        world.run("lxc", "copy", "shifted:c1", "utsuwa:c2", "--refresh")
        world.run("lxc", "copy", "utsuwa:c2", "shifted:c3")
        assert shifted.api("GET", "/1.0/instances/c3/files?path=/bin").headers["x-lxd-uid"] == "0"
    finally:
        delete_all(world.daemon)


def test_the_names_of_all_servers_are_covered() -> None:
    assert {name for way in WAYS for name in way} == set(NAMES)
