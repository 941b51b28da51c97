"""Copies of instances between Utsuwa, LXD and Incus, with the clients of all three."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
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
    pytest.mark.long,
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
    if source == "utsuwa":  # what it notes of a running instance, others do not know
        world.run(near, "start", f"{source}:c1")
    world.run(near, *words, f"{source}:c1", "first")
    if source == "utsuwa":
        world.run(near, "stop", f"{source}:c1", "--force")
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


CUSTOM = "/1.0/storage-pools/default/volumes/custom"


@pytest.mark.parametrize("mode", MODES)
def test_a_custom_volume_is_copied_with_snapshots_and_moved(
    world: World, way: tuple[str, str], mode: str
) -> None:
    source, target = way
    near, far = (world.servers[name] for name in way)
    client = client_of(source, target)
    try:
        near.do("POST", CUSTOM, {"name": "v1", "config": {"user.x": "1"}})
        write_to_volume(world, source, "v1", "content")
        near.do("POST", f"{CUSTOM}/v1/snapshots", {"name": "first"})
        words = ("storage", "volume")
        world.run(client, *words, "copy", f"{source}:default/v1", f"{target}:default/v2", "--mode", mode)
        world.run(client, *words, "move", f"{source}:default/v1", f"{target}:default/v3", "--mode", mode)
        assert volumes(near) == []
        for name in ("v2", "v3"):
            assert far.get(f"{CUSTOM}/{name}")["config"]["user.x"] == "1"
            snapshots = far.get(f"{CUSTOM}/{name}/snapshots?recursion=1")
            assert [snapshot["name"].rpartition("/")[2] for snapshot in snapshots] == ["first"]
            assert read_from_volume(world, target, name) == "content"
    finally:
        for server in (near, far):
            for url in volumes(server):
                server.do("DELETE", url)


def volumes(server: Endpoint) -> list[str]:
    """Return the URLs of the custom volumes, among which are those of their snapshots."""
    return [url for url in server.get(CUSTOM) if "/snapshots/" not in url]


def folder_of_volume(world: World, server: str, name: str) -> Path:
    folder = world.servers[server].socket.parent / "storage-pools" / "default" / "custom" / f"default_{name}"
    return folder / "rootfs" if server == "utsuwa" else folder


def write_to_volume(world: World, server: str, name: str, text: str) -> None:
    (folder_of_volume(world, server, name) / "file").write_text(text)


def read_from_volume(world: World, server: str, name: str) -> str:
    return (folder_of_volume(world, server, name) / "file").read_text()


@pytest.mark.parametrize("way", [("lxd", "incus"), ("incus", "lxd")], ids="-".join)
def test_the_own_client_copies_between_the_others(world: World, way: tuple[str, str]) -> None:
    source, target = way
    world.run(client_of(source), "init", f"{source}:busybox", f"{source}:c1")
    try:
        write(world, source, OWNERS, "before")
        world.run("utsuwa", "copy", f"{source}:c1", f"{target}:c2", "--mode", "relay")
        assert read(world, target, "c2", OWNERS) == ("before", "1000")
        write(world, source, OWNERS, "after")
        world.run("utsuwa", "copy", f"{source}:c1", f"{target}:c2", "--refresh")
        assert read(world, target, "c2", OWNERS) == ("after", "1000")
    finally:
        for name in way:
            delete_all(world.servers[name])


@pytest.mark.parametrize("target", ["lxd", "incus"])
def test_the_own_client_moves_a_running_instance_without_its_state(world: World, target: str) -> None:
    world.run("utsuwa", "launch", "utsuwa:busybox", "utsuwa:c1")
    try:
        write(world, "utsuwa", OWNERS, "running")
        world.run("utsuwa", "snapshot", "utsuwa:c1", "first")
        world.run("utsuwa", "move", "utsuwa:c1", f"{target}:c2", "--stateless")
        assert read(world, target, "c2", OWNERS) == ("running", "1000")
        assert world.daemon.get("/1.0/instances") == []
    finally:
        world.daemon.delete_instances()
        delete_all(world.servers[target])


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
