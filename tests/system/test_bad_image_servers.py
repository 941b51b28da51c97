"""Image servers that lie about an image, or change it: nothing is left of what they sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest

from tests.support.daemon import Daemon
from tests.support.image_server import PRODUCTS, ImageServer, body
from tests.support.images import Image

pytestmark = pytest.mark.root

Change = Callable[[ImageServer], None]
SERIAL = "20260101_0700"
META, ROOT = "lxd.tar.xz", "rootfs.squashfs"


def item(name: str, **changes: object) -> Change:
    def change(server: ImageServer) -> None:
        server.item(name).update(changes)
        server.write()

    return change


def content(name: str, data: bytes) -> Change:
    """Replace a file by one with the hashes that the server states for it, but not for the whole."""

    def change(server: ImageServer) -> None:
        path = str(server.item(name)["path"])
        server.files[path] = data
        server.item(name).update(sha256="", size=len(data))
        server.write()

    return change


def reply(name: str, data: bytes, *, length: int, status: int = 200) -> Change:
    def change(server: ImageServer) -> None:
        server.odd[str(server.item(name)["path"])] = body(data, length=length, status=status)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (item(META, combined_squashfs_sha256="0" * 64), "with the fingerprint"),
        (item(META, combined_squashfs_sha256="../../../etc/passwd"), "has no image"),
        (item(META, sha256="0" * 64), "but the server states"),
        (item(ROOT, sha256="0" * 64), "but the server states"),
        (item(ROOT, path="../../etc/passwd"), "its path is not one below"),
        (item(META, path="/etc/passwd"), "its path is not one below"),
        (item(ROOT, size=10), "instead of 10"),
        (content(META, b"not an archive"), "with the fingerprint"),
        (content(ROOT, b"not a file system"), "with the fingerprint"),
        (reply(META, b"short", length=1000), "bytes instead of"),
        (reply(ROOT, b"short", status=404, length=5), "does not exist (404)"),
        (reply(ROOT, b"short", status=500, length=5), "status 500"),
    ],
)
def test_images_that_are_not_as_stated(
    module_daemon: Daemon, image_server: ImageServer, change: Change, message: str
) -> None:
    change(image_server)
    for request in (
        ("/1.0/images", {"source": image_server.source("busybox")}),
        ("/1.0/instances", {"name": "c1", "source": image_server.source("busybox")}),
    ):
        ended = module_daemon.wait(module_daemon.api("POST", *request))
        assert message in ended["err"], ended["err"]
    assert module_daemon.get("/1.0/images") == []
    assert module_daemon.get("/1.0/instances") == []
    assert list((module_daemon.dir / "images").iterdir()) == []


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("asked for", "with the fingerprint"),
        ("another", "another image"),
        ("../../../etc", "invalid fingerprint"),
    ],
)
def test_another_image_than_its_fingerprint_says(
    module_daemon: Daemon, image_server: ImageServer, newer_image: Image, described: str, message: str
) -> None:
    """From a server with the API of LXD, which sends what it describes, or something else."""
    assert newer_image.unified is not None
    data, wanted = newer_image.unified.read_bytes(), "5" * 64
    stated = {"asked for": wanted, "another": hashlib.sha256(data).hexdigest()}.get(described, described)
    record = {"fingerprint": stated, "size": len(data), "type": "container"}
    image_server.files[f"1.0/images/{wanted}"] = json.dumps({"type": "sync", "metadata": record}).encode()
    for fingerprint in (wanted, stated):
        image_server.files[f"1.0/images/{fingerprint}/export"] = data
    source = image_server.source("", protocol="lxd", fingerprint=wanted)
    for request in (
        ("/1.0/images", {"source": source}),
        ("/1.0/instances", {"name": "c1", "source": source}),
    ):
        ended = module_daemon.wait(module_daemon.api("POST", *request))
        assert message in ended["err"], ended["err"]
    assert module_daemon.get("/1.0/images") == []
    assert module_daemon.get("/1.0/instances") == []
    assert list((module_daemon.dir / "images").iterdir()) == []


def test_an_archive_with_the_stated_hashes_is_checked_too(
    module_daemon: Daemon, image_server: ImageServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "meta").write_bytes(b"not an archive")
    (folder / "root").write_bytes(b"not a file system")
    image_server.publish(Image(folder / "meta", folder / "root"), SERIAL, release="2", aliases="broken")
    reply = module_daemon.api("POST", "/1.0/images", {"source": image_server.source("broken")})
    assert module_daemon.wait(reply)["status"] == "Failure"
    assert list((module_daemon.dir / "images").iterdir()) == []


def test_a_server_that_changes_an_alias_between_two_requests(
    module_daemon: Daemon, image_server: ImageServer, newer_image: Image
) -> None:
    """The image that was found first is received, or none."""
    old = dict(image_server.files)
    new = image_server.publish(newer_image, "20260102_0700")
    listed = [image_server.files[PRODUCTS], old[PRODUCTS]]

    def alternate(handler: BaseHTTPRequestHandler) -> None:
        body(listed[image_server.count("images.json") % 2])(handler)

    image_server.odd[PRODUCTS] = alternate
    for path in old:
        if path.endswith(ROOT):
            image_server.odd[path] = body(b"", status=404, length=0)
    found = set()
    for _ in range(4):
        for document in (module_daemon.dir / "cache").iterdir():
            document.unlink()
        reply = module_daemon.api("POST", "/1.0/images", {"source": image_server.source("busybox")})
        found.add(module_daemon.wait(reply)["err"].rpartition(" ")[2])
    assert found == {"", "(404)"}
    assert module_daemon.get("/1.0/images") == [f"/1.0/images/{new}"]
    module_daemon.do("DELETE", f"/1.0/images/{new}")
