"""Images of other servers with the same API: by alias, fingerprint, secret, or URL."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator

import pytest

from tests.support import images, tls
from tests.support.daemon import Daemon
from tests.support.image_server import body, serving
from tests.support.images import Image
from tests.support.tls import make_identity

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def far(busybox_image: Image) -> Iterator[Daemon]:
    """Another daemon, on HTTPS, with the public image `public` and the private image `private`."""
    other = Daemon()
    try:
        other.start()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        other.do("PATCH", "/1.0", {"config": {"core.https_address": address}})
        assert busybox_image.unified is not None
        other.import_image(busybox_image.metadata, busybox_image.rootfs, alias="public")
        other.import_image(busybox_image.unified, alias="private")
        public = other.get("/1.0/images/aliases/public")["target"]
        other.do("PATCH", f"/1.0/images/{public}", {"public": True})
        yield other
    finally:
        problems = other.close()
    assert problems == []


@pytest.fixture
def near(module_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon, whose instances and images are deleted after each test."""
    yield module_daemon
    module_daemon.delete_instances()
    for image in module_daemon.get("/1.0/images"):
        module_daemon.do("DELETE", image)


def address(far: Daemon) -> str:
    return str(far.get("/1.0")["config"]["core.https_address"])


def source(far: Daemon, **more: str) -> dict[str, str]:
    pinned = (far.dir / "server.crt").read_text()
    return {"type": "image", "server": f"https://{address(far)}", "certificate": pinned} | more


def error_of(daemon: Daemon, given: dict[str, str]) -> str:
    reply = daemon.api("POST", "/1.0/images", {"source": given})
    return str(reply.error if reply.status >= 400 else daemon.wait(reply)["err"])


def target(far: Daemon, alias: str) -> str:
    return str(far.get(f"/1.0/images/aliases/{alias}")["target"])


@pytest.mark.parametrize("protocol", ["lxd", "incus", ""])
def test_a_public_image_is_found_by_its_alias(far: Daemon, near: Daemon, protocol: str) -> None:
    near.do("POST", "/1.0/images", {"source": source(far, alias="public", protocol=protocol)})
    (image,) = near.get("/1.0/images?recursion=1")
    assert image["fingerprint"] == target(far, "public")
    assert image["update_source"]["alias"] == "public"
    assert image["update_source"]["protocol"] == "lxd"
    assert not image["public"]


def test_a_private_image_needs_a_secret_which_works_once(far: Daemon, near: Daemon) -> None:
    private = target(far, "private")
    assert "does not exist (404)" in error_of(near, source(far, fingerprint=private))
    assert "does not exist (404)" in error_of(near, source(far, fingerprint=private, secret="guessed"))
    made = far.api("POST", f"/1.0/images/{private}/secret")
    operation = far.get(made.operation)
    assert operation["class"] == "token"
    secret = operation["metadata"]["secret"]
    near.do("POST", "/1.0/images", {"source": source(far, fingerprint=private, secret=secret)})
    (image,) = near.get("/1.0/images?recursion=1")
    assert (image["fingerprint"], image.get("update_source")) == (private, None)
    assert far.wait(made)["status"] == "Success"
    near.do("DELETE", f"/1.0/images/{private}")
    assert "does not exist (404)" in error_of(near, source(far, fingerprint=private, secret=secret))
    assert secret not in near.log.read_text()


def test_a_secret_is_for_one_image_and_can_be_revoked(far: Daemon, near: Daemon) -> None:
    private = target(far, "private")
    made = far.api("POST", f"/1.0/images/{target(far, 'public')}/secret")
    secret = far.get(made.operation)["metadata"]["secret"]
    url = f"/1.0/images/{private}?secret={secret}"
    assert tls.request(address(far), "GET", url).status == 404
    far.do("DELETE", made.operation)
    assert far.wait(made)["status"] == "Cancelled"
    made = far.api("POST", f"/1.0/images/{private}/secret")
    secret = far.get(made.operation)["metadata"]["secret"]
    url = f"/1.0/images/{private}?secret={secret}"
    assert tls.request(address(far), "GET", url).status == 200
    far.do("DELETE", made.operation)
    assert tls.request(address(far), "GET", url).status == 404


def test_a_trusted_server_needs_no_secret(far: Daemon, near: Daemon) -> None:
    """The daemon shows its own certificate."""
    pem = (near.dir / "server.crt").read_text()
    far.do("POST", "/1.0/certificates", {"type": "client", "certificate": pem, "name": "near"})
    try:
        near.do("POST", "/1.0/images", {"source": source(far, alias="private")})
    finally:
        for url in far.get("/1.0/certificates"):
            far.do("DELETE", url)
    assert near.get("/1.0/images") == [f"/1.0/images/{target(far, 'private')}"]


def test_another_certificate_is_refused(far: Daemon, near: Daemon) -> None:
    other = {"certificate": (near.dir / "server.crt").read_text()}
    assert "another certificate" in error_of(near, source(far, alias="public") | other)
    assert "not accepted" in error_of(near, source(far, alias="public") | {"certificate": ""})
    assert "format PEM" in error_of(near, source(far, alias="public") | {"certificate": "nothing"})


def test_a_refresh_follows_the_alias(
    far: Daemon, near: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> None:
    near.do("POST", "/1.0/instances", {"name": "c1", "source": source(far, alias="public")})
    old = target(far, "public")
    newer = images.build_busybox(tmp_path_factory.mktemp("newer"), {"name": "newer"})
    new = far.import_image(newer.metadata, newer.rootfs)
    far.do("PATCH", f"/1.0/images/{new}", {"public": True})
    far.do("PATCH", "/1.0/images/aliases/public", {"target": new})
    assert near.do("POST", f"/1.0/images/{old}/refresh")["refreshed"]
    assert near.get("/1.0/images") == [f"/1.0/images/{new}"]


def test_the_client_copies_a_private_image_between_servers(far: Daemon, near: Daemon) -> None:
    far.do("PATCH", "/1.0", {"config": {"core.trust_password": "open"}})
    url = f"https://{address(far)}"
    near.lxc("remote", "add", "far", url, "--accept-certificate", "--password", "open")
    try:
        near.lxc("image", "copy", "far:private", "local:", "--alias", "mine")
        near.lxc("launch", "far:private", "c2")
        assert near.lxc("exec", "c2", "--", "hostname").stdout == "c2\n"
    finally:
        near.lxc("remote", "remove", "far")
        for certificate in far.get("/1.0/certificates"):
            far.do("DELETE", certificate)


def test_an_image_by_url(
    near: Daemon, busybox_image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By http only what the hash of a server by https proves."""
    assert busybox_image.unified is not None
    data = busybox_image.unified.read_bytes()
    fingerprint = hashlib.sha256(data).hexdigest()
    identity = make_identity(tmp_path_factory.mktemp("tls"), "url")
    with serving() as plain, serving(identity) as safe:
        plain.files["busybox.tar.xz"] = data
        headers = {"LXD-Image-Hash": fingerprint, "LXD-Image-URL": f"{plain.url}/busybox.tar.xz"}
        plain.odd["image"] = safe.odd["image"] = body(b"", length=0, headers=headers)
        assert "use https" in error_of(near, {"type": "url", "url": f"{plain.url}/image"})
        assert "not accepted" in error_of(near, {"type": "url", "url": f"{safe.url}/image"})
        given = {"type": "image", "server": plain.url, "fingerprint": fingerprint}
        assert "404" in error_of(near, given)
