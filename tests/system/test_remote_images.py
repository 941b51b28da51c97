"""Instances and images from a simplestreams server."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.support.daemon import Daemon
from tests.support.image_server import ImageServer, held, serving
from tests.support.image_server import body as reply
from tests.support.images import Image
from tests.support.tls import TestAuthority

pytestmark = pytest.mark.root


@pytest.fixture
def daemon(module_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon, whose instances and images are deleted after each test."""
    yield module_daemon
    module_daemon.delete_instances()
    for image in module_daemon.get("/1.0/images"):
        module_daemon.do("DELETE", image)


def create(daemon: Daemon, name: str, source: dict[str, str], **more: Any) -> None:
    daemon.do("POST", "/1.0/instances", {"name": name, "source": source, **more})


def only_image(daemon: Daemon) -> dict[str, Any]:
    (image,) = daemon.get("/1.0/images?recursion=1")
    return dict(image)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)


def stored(daemon: Daemon) -> set[str]:
    """The images that the pool has."""
    volumes = daemon.get("/1.0/storage-pools/default/volumes?recursion=1")
    return {volume["name"] for volume in volumes if volume["type"] == "image"}


def failure(daemon: Daemon, method: str, url: str, body: object) -> str:
    """Return the error of a request, or of its operation."""
    reply = daemon.api(method, url, body)
    return str(reply.error if reply.status >= 400 else daemon.wait(reply)["err"])


def test_an_instance_runs_from_an_image_of_the_server(daemon: Daemon, image_server: ImageServer) -> None:
    create(daemon, "c1", image_server.source("busybox/1"), start=True)
    instance = daemon.get("/1.0/instances/c1")
    assert instance["status"] == "Running"
    assert instance["config"]["image.serial"] == "20260101_0700"
    image = only_image(daemon)
    assert image["cached"]
    assert image["auto_update"]
    assert not image["public"]
    assert image["properties"]["description"] == "Busybox 1 amd64 (20260101_0700)"
    assert image["update_source"] == {
        "server": image_server.url,
        "protocol": "simplestreams",
        "certificate": image_server.certificate,
        "alias": "busybox/1",
        "image_type": "container",
    }
    assert daemon.lxc("exec", "c1", "--", "hostname").stdout == "c1\n"


def test_an_alias_prefers_the_cached_image(
    daemon: Daemon, image_server: ImageServer, newer_image: Image
) -> None:
    create(daemon, "c1", image_server.source("busybox"))
    image_server.publish(newer_image, "20260102_0700")
    asked = len(image_server.requests)
    create(daemon, "c2", image_server.source("busybox"))
    assert len(image_server.requests) == asked
    assert only_image(daemon)["properties"]["serial"] == "20260101_0700"


def test_two_launches_download_the_image_once(daemon: Daemon, image_server: ImageServer) -> None:
    name = next(path for path in image_server.files if path.endswith("rootfs.squashfs"))
    release = threading.Event()
    image_server.odd[name] = held(release, image_server.files[name], after=1000)
    with ThreadPoolExecutor() as pool:
        work = [
            pool.submit(create, daemon, name, image_server.source("busybox")) for name in ("c1", "c2", "c3")
        ]
        wait_for(lambda: image_server.count("rootfs.squashfs") > 0)
        release.set()
        for done in work:
            done.result()
    assert image_server.count("rootfs.squashfs") == 1
    assert len(daemon.get("/1.0/instances")) == 3


def test_a_cancelled_download_leaves_nothing(daemon: Daemon, image_server: ImageServer) -> None:
    name = next(path for path in image_server.files if path.endswith("rootfs.squashfs"))
    release = threading.Event()
    image_server.odd[name] = held(release, image_server.files[name], after=1000)
    reply = daemon.api("POST", "/1.0/instances", {"name": "c1", "source": image_server.source("busybox")})
    wait_for(lambda: image_server.count("rootfs.squashfs") > 0)
    assert daemon.get(reply.operation)["may_cancel"]
    daemon.do("DELETE", reply.operation)
    assert daemon.wait(reply)["status"] == "Cancelled"
    release.set()
    assert daemon.get("/1.0/instances") == []
    assert daemon.get("/1.0/images") == []
    assert list((daemon.dir / "images").iterdir()) == []


def test_an_image_is_imported_with_its_settings(daemon: Daemon, image_server: ImageServer) -> None:
    body = {
        "source": image_server.source("busybox"),
        "aliases": [{"name": "mine", "description": "my own"}],
        "properties": {"os": "Other"},
        "public": True,
        "auto_update": True,
    }
    metadata = daemon.do("POST", "/1.0/images", body)
    image = only_image(daemon)
    assert metadata["fingerprint"] == image["fingerprint"]
    assert image["aliases"] == [{"name": "mine", "description": "my own"}]
    assert image["properties"]["os"] == "Other"
    assert (image["public"], image["auto_update"], image["cached"]) == (True, True, False)
    assert metadata["download_progress"].startswith("rootfs")


def test_a_cached_image_stays_when_it_is_imported(daemon: Daemon, image_server: ImageServer) -> None:
    create(daemon, "c1", image_server.source("busybox"))
    body = {"source": image_server.source("busybox"), "aliases": [{"name": "mine"}]}
    daemon.do("POST", "/1.0/images", body)
    image = only_image(daemon)
    assert not image["cached"]
    assert [alias["name"] for alias in image["aliases"]] == ["mine"]
    assert "already exists" in failure(daemon, "POST", "/1.0/instances", {"name": "c1", **body})


def test_a_refresh_replaces_the_image_and_keeps_its_aliases(
    daemon: Daemon, image_server: ImageServer, newer_image: Image
) -> None:
    """And with nothing new it keeps the image (lxd#3562, lxd#10120)."""
    create(daemon, "c1", image_server.source("busybox"), start=True)
    old = only_image(daemon)["fingerprint"]
    daemon.do("POST", "/1.0/images/aliases", {"name": "mine", "target": old})
    assert daemon.do("POST", f"/1.0/images/{old}/refresh") == {"refreshed": False}
    new = image_server.publish(newer_image, "20260102_0700")
    assert daemon.do("POST", f"/1.0/images/{old}/refresh")["refreshed"]
    image = only_image(daemon)
    assert image["fingerprint"] == new
    assert image["cached"]
    assert image["aliases"] == [{"name": "mine", "description": ""}]
    assert stored(daemon) == {old, new}
    assert daemon.lxc("exec", "c1", "--", "hostname").stdout == "c1\n"
    daemon.do("PUT", "/1.0/instances/c1/state", {"action": "restart", "force": True})
    create(daemon, "c2", {"type": "image", "alias": "mine"})
    assert daemon.get("/1.0/instances/c2")["config"]["volatile.base_image"] == new
    daemon.delete_instances()
    assert stored(daemon) == {new}


def test_an_uploaded_image_cannot_be_refreshed(daemon: Daemon, busybox_image: Image) -> None:
    fingerprint = daemon.import_image(busybox_image.metadata, busybox_image.rootfs)
    message = failure(daemon, "POST", f"/1.0/images/{fingerprint}/refresh", None)
    assert "was not downloaded by an alias" in message


def test_a_restart_updates_images(daemon: Daemon, image_server: ImageServer, newer_image: Image) -> None:
    create(daemon, "c1", image_server.source("busybox"))
    new = image_server.publish(newer_image, "20260102_0700")
    for document in (daemon.dir / "cache").iterdir():
        document.unlink()
    daemon.restart()
    wait_for(lambda: daemon.get("/1.0/images") == [f"/1.0/images/{new}"])


def test_unused_cached_images_expire(daemon: Daemon, image_server: ImageServer) -> None:
    create(daemon, "c1", image_server.source("busybox"), start=True)
    query = "UPDATE images SET last_use_date = '2020-01-01 00:00:00+00:00'"
    daemon.do("POST", "/internal/sql", {"database": "global", "query": query})
    daemon.do("PATCH", "/1.0", {"config": {"images.remote_cache_expiry": "1"}})
    wait_for(lambda: daemon.get("/1.0/images") == [])
    assert daemon.lxc("exec", "c1", "--", "hostname").stdout == "c1\n"


def test_an_instance_is_rebuilt_from_an_image_of_the_server(
    daemon: Daemon, image_server: ImageServer, newer_image: Image
) -> None:
    create(daemon, "c1", image_server.source("busybox"))
    new = image_server.publish(newer_image, "20260102_0700", release="2", aliases="busybox/2")
    daemon.do("POST", "/1.0/instances/c1/rebuild", {"source": image_server.source("busybox/2")})
    assert daemon.get("/1.0/instances/c1")["config"]["volatile.base_image"] == new


def check_images_by_url(daemon: Daemon, server: ImageServer, image: Image) -> None:
    """Its headers state the hash of an image at a URL; another file is refused."""
    assert image.unified is not None
    server.files["busybox.tar.xz"] = data = image.unified.read_bytes()
    right = hashlib.sha256(data).hexdigest()
    for stated, message in (("0" * 64, "with the fingerprint"), (f"../{right}", "invalid hash"), (right, "")):
        headers = {"LXD-Image-Hash": stated, "LXD-Image-URL": f"{server.url}/busybox.tar.xz"}
        server.odd["image"] = reply(b"", length=0, headers=headers)
        body = {"source": {"type": "url", "url": f"{server.url}/image"}}
        assert message in failure(daemon, "POST", "/1.0/images", body)
        assert daemon.get("/1.0/images") == ([] if message else [f"/1.0/images/{right}"])


def test_the_client_launches_from_a_server_that_an_authority_has_signed(
    make_daemon: Callable[..., Daemon],
    busybox_image: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With Debian's client, which resolves nothing itself and passes the alias on."""
    authority, trusted = TestAuthority(), tmp_path / "authority.crt"
    trusted.write_bytes(authority.pem)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    with serving(authority.issue(tmp_path, "server", (address, False))) as server:
        server.publish(busybox_image, "20260101_0700")
        daemon = make_daemon(env={"SSL_CERT_FILE": str(trusted)})
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))  # for the client
        try:
            daemon.start()
            daemon.make_defaults()
            daemon.lxc("remote", "add", "mine", server.url, "--protocol", "simplestreams")
            daemon.lxc("launch", "mine:busybox/1", "c1")
            assert daemon.lxc("exec", "c1", "--", "hostname").stdout == "c1\n"
            daemon.lxc("image", "copy", "mine:busybox/1", "local:", "--alias", "here", "--auto-update")
            assert "Alias: busybox/1" in daemon.lxc("image", "info", "here").stdout
            for url in daemon.get("/1.0/images"):
                daemon.do("DELETE", url)
            check_images_by_url(daemon, server, busybox_image)
        finally:
            problems = daemon.close()
        assert problems == []


@pytest.fixture
def restricted(daemon: Daemon) -> Iterator[Daemon]:
    """The daemon with the project `web`, which may fetch images from nowhere but images.example."""
    config = {"restricted": "true", "restricted.images.servers": "images.example"}
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": config})
    yield daemon
    daemon.delete_instances()
    for image in daemon.get("/1.0/images?project=web"):
        daemon.do("DELETE", f"{image.partition('?')[0]}?project=web")
    daemon.do("DELETE", "/1.0/projects/web")


def test_a_project_fetches_images_from_its_servers_only(
    restricted: Daemon, image_server: ImageServer
) -> None:
    """Nothing is requested from others (CVE-2026-35527), and images that are here can be used."""
    daemon, source = restricted, image_server.source("busybox")
    daemon.do("POST", "/1.0/images", {"source": source})  # in the project `default`
    image_server.requests.clear()
    requests: list[tuple[str, dict[str, Any]]] = [
        ("images", {"source": source}),
        ("images", {"source": {"type": "url", "url": f"{image_server.url}/image"}}),
        ("instances", {"name": "c1", "source": source}),
        ("instances", {"name": "c1", "source": source | {"protocol": "lxd"}}),
    ]
    for kind, body in requests:
        refused = daemon.api("POST", f"/1.0/{kind}?project=web", body)
        assert refused.status == 403, body
        assert "restricted.images.servers=images.example" in refused.error
    assert image_server.requests == []

    servers = "images.example, 127.0.0.1"
    daemon.do("PATCH", "/1.0/projects/web", {"config": {"restricted.images.servers": servers}})
    fingerprint = daemon.do("POST", "/1.0/images?project=web", {"source": source})["fingerprint"]
    daemon.do("PATCH", "/1.0/projects/web", {"config": {"restricted.images.servers": "images.example"}})
    image_server.requests.clear()
    refused = daemon.api("POST", f"/1.0/images/{fingerprint}/refresh?project=web")
    assert refused.status == 403
    devices = {"root": {"type": "disk", "path": "/", "pool": "default"}}
    local = {"type": "image", "fingerprint": fingerprint}
    daemon.do("POST", "/1.0/instances?project=web", {"name": "c1", "source": local, "devices": devices})
    refused_rebuild = daemon.api("POST", "/1.0/instances/c1/rebuild?project=web", {"source": source})
    ended = refused_rebuild.error or daemon.wait(refused_rebuild)["err"]
    assert "does not allow images of the server '127.0.0.1'" in ended
    assert image_server.requests == []
