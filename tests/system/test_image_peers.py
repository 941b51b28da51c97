"""Images between Utsuwa, LXD and Incus, each as a remote of the others, with the clients of all three."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import images
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.world import CLIENTS, NAMES, WAYS, World, three_servers

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900),
    pytest.mark.long,
]


@pytest.fixture(scope="module")
def world(module_daemon: Daemon) -> Iterator[World]:
    with three_servers(module_daemon) as found:
        yield found


def put(world: World, server: str, image: Image, form: str, *, public: bool) -> str:
    """Import an image into a server that has none; return its fingerprint."""
    assert image.unified is not None
    files = (image.unified,) if form == "unified" else (image.metadata, image.rootfs)
    more = ("--public",) if public else ()
    client = "incus" if server == "incus" else "lxc"
    world.run(client, "image", "import", *map(str, files), f"{server}:", "--alias", "original", *more)
    (found,) = world.images(server)
    return str(found["fingerprint"])


@pytest.mark.parametrize(("source", "target"), WAYS)
@pytest.mark.parametrize("form", ["unified", "split"])
@pytest.mark.parametrize("public", [False, True], ids=["private", "public"])
def test_images_are_copied_by_every_client_in_every_mode(
    world: World, busybox_image: Image, source: str, target: str, form: str, public: bool
) -> None:
    fingerprint = put(world, source, busybox_image, form, public=public)
    failed = []
    for client in CLIENTS:
        for mode in ("pull", "push", "relay"):
            if (client, target, mode) == ("incus", "lxd", "pull"):
                continue  # it calls the protocol incus, which LXD does not know
            if (client, target, mode, public) == ("lxc", "incus", "pull", True):
                continue  # it calls the protocol lxd, which Incus does not know
            # Of public images, the clients of both pass the alias on, which is no fingerprint.
            name = fingerprint if public and client != "utsuwa" and mode != "pull" else "original"
            words = ("image", "copy", f"{source}:{name}", f"{target}:", "--mode", mode, "--copy-aliases")
            try:
                world.run(client, *words)
                (copy,) = world.images(target)
                assert (copy["fingerprint"], copy["public"]) == (fingerprint, False)
                assert [alias["name"] for alias in copy["aliases"]] == ["original"]
                assert copy["properties"]["os"] == "BusyBox"
            except (AssertionError, ValueError) as error:
                failed.append(f"{client} {mode}: {error}")
            world.empty(target)
    world.empty(source)
    assert failed == []


@pytest.mark.parametrize("server", NAMES)
@pytest.mark.parametrize("client", CLIENTS)
def test_images_of_a_remote_are_listed_described_exported_and_named(
    world: World, busybox_image: Image, tmp_path: Path, client: str, server: str
) -> None:
    fingerprint = put(world, server, busybox_image, "unified", public=False)

    def run(*words: str) -> str:
        return world.run(client, "image", *words)

    (listed,) = json.loads(run("list", f"{server}:", "--format", "json"))
    assert listed["fingerprint"] == fingerprint
    assert f"Fingerprint: {fingerprint}" in run("info", f"{server}:original")
    run("export", f"{server}:original", str(tmp_path / "image"))
    (file,) = tmp_path.iterdir()
    assert busybox_image.unified is not None
    assert file.read_bytes() == busybox_image.unified.read_bytes()
    run("alias", "create", f"{server}:more", fingerprint)
    run("alias", "rename", f"{server}:more", "other")
    assert "other" in run("alias", "list", f"{server}:", "--format", "csv")
    run("alias", "delete", f"{server}:other")
    run("delete", f"{server}:original")
    assert world.images(server) == []


@pytest.mark.parametrize("server", ["lxd", "incus"])
def test_an_image_follows_its_alias_on_a_peer(
    world: World, busybox_image: Image, server: str, tmp_path: Path
) -> None:
    old = put(world, server, busybox_image, "split", public=True)
    world.run("utsuwa", "image", "copy", f"{server}:original", "utsuwa:", "--auto-update", "--alias", "mine")
    newer = images.build_busybox(tmp_path, {"name": "newer"})
    client = "incus" if server == "incus" else "lxc"
    files = (str(newer.metadata), str(newer.rootfs))
    world.run(client, "image", "import", *files, f"{server}:", "--public", "--alias", "new")
    new = world.servers[server].get("/1.0/images/aliases/new")["target"]
    world.servers[server].do("PUT", "/1.0/images/aliases/original", {"target": new})
    assert world.daemon.do("POST", f"/1.0/images/{old}/refresh")["refreshed"]
    assert [image["fingerprint"] for image in world.images("utsuwa")] == [new]
    world.run("utsuwa", "launch", "mine", "c1")
    world.run("utsuwa", "delete", "--force", "c1")
    world.empty("utsuwa")
    world.run("utsuwa", "launch", f"{server}:original", "c1")
    assert world.run("utsuwa", "exec", "c1", "--", "hostname") == "c1\n"
    world.run("utsuwa", "delete", "--force", "c1")
    world.empty("utsuwa")
    world.empty(server)
