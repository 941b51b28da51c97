"""`/1.0/images` at the wire: what clients other than `lxc` send, and what must not work."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support import tls
from tests.support.api import Reply
from tests.support.daemon import Daemon
from tests.support.images import Image

pytestmark = pytest.mark.root

STREAM = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def server(module_daemon: Daemon) -> Daemon:
    """The module's daemon, without images."""
    for image in module_daemon.get("/1.0/images?recursion=1"):
        module_daemon.do("DELETE", f"/1.0/images/{image['fingerprint']}")
    return module_daemon


@pytest.fixture
def unified(busybox_image: Image) -> bytes:
    assert busybox_image.unified is not None
    return busybox_image.unified.read_bytes()


def upload(server: Daemon, body: bytes, headers: Mapping[str, str] = STREAM) -> dict[str, Any]:
    """The ended operation."""
    reply = server.api("POST", "/1.0/images", body, headers=headers)
    assert reply.status == 202, reply.body
    return server.wait(reply)


def form(*parts: tuple[str, bytes], end: bytes = b"\r\n--xyz--\r\n") -> bytes:
    """A form as LXD's own test suite writes it, semicolon and all."""
    pieces = [
        b"\r\n--xyz\r\nContent-Disposition: form-data; name=%s;\r\n"
        b"Content-Type: application/octet-stream\r\n\r\n%s" % (name.encode(), content)
        for name, content in parts
    ]
    return b"".join(pieces)[2:] + end


FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}


def files(server: Daemon) -> list[str]:
    return sorted(path.name for path in (server.dir / "images").iterdir())


def test_headers_describe_the_image(server: Daemon, unified: bytes) -> None:
    fingerprint = hashlib.sha256(unified).hexdigest()
    headers = {
        **STREAM,
        "X-LXD-filename": "bb.tar.xz",
        "X-LXD-public": "1",
        "X-LXD-properties": urlencode({"os": "Mine", "user.foo": "a=b&c"}),
        "X-LXD-fingerprint": fingerprint,
        "X-LXD-aliases": urlencode([("alias", "one"), ("alias", "two/three")]),
    }
    ended = upload(server, unified, headers)
    assert ended["status_code"] == 200, ended
    assert ended["metadata"]["fingerprint"] == fingerprint
    assert ended["metadata"]["size"] == str(len(unified))
    image = server.get(f"/1.0/images/{fingerprint[:7]}")
    assert image["fingerprint"] == fingerprint
    assert (image["filename"], image["public"], image["size"]) == ("bb.tar.xz", True, len(unified))
    assert (image["properties"]["os"], image["properties"]["user.foo"]) == ("Mine", "a=b&c")
    assert [alias["name"] for alias in image["aliases"]] == ["one", "two/three"]
    assert (image["type"], image["profiles"], image["cached"]) == ("container", ["default"], False)
    assert server.get("/1.0/images") == [f"/1.0/images/{fingerprint}"]
    assert server.get("/1.0/images/aliases") == [
        "/1.0/images/aliases/one",
        "/1.0/images/aliases/two%2Fthree",
    ]
    assert server.get("/1.0/images/aliases/two/three") == server.get("/1.0/images/aliases/two%2Fthree")


def test_headers_of_incus(server: Daemon, unified: bytes) -> None:
    ended = upload(server, unified, {**STREAM, "X-Incus-filename": "x.tar.xz", "X-Incus-public": "true"})
    image = server.get(f"/1.0/images/{ended['metadata']['fingerprint']}")
    assert (image["filename"], image["public"]) == ("x.tar.xz", True)


def test_a_form_of_two_files(server: Daemon, busybox_image: Image) -> None:
    assert busybox_image.rootfs is not None
    metadata, rootfs = busybox_image.metadata.read_bytes(), busybox_image.rootfs.read_bytes()
    ended = upload(server, form(("metadata", metadata), ("rootfs", rootfs)), FORM)
    fingerprint = hashlib.sha256(metadata + rootfs).hexdigest()
    assert ended["metadata"]["fingerprint"] == fingerprint
    assert files(server) == [fingerprint, f"{fingerprint}.rootfs"]
    reply = server.api("GET", f"/1.0/images/{fingerprint}/export")
    assert reply.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert metadata in reply.body
    assert rootfs in reply.body
    assert f'name="rootfs"; filename="{fingerprint}.squashfs"'.encode() in reply.body
    assert f'name="metadata"; filename="meta-{fingerprint}.tar.xz"'.encode() in reply.body


def test_an_export_is_the_file(server: Daemon, unified: bytes) -> None:
    fingerprint = upload(server, unified)["metadata"]["fingerprint"]
    reply = server.api("GET", f"/1.0/images/{fingerprint}/export")
    assert reply.body == unified
    assert reply.headers["content-disposition"] == f"inline;filename={fingerprint}.tar.xz"
    assert reply.headers["content-length"] == str(len(unified))


@pytest.mark.parametrize(
    ("parts", "end", "reason"),
    [
        ([("rootfs", b"x"), ("metadata", b"y")], None, "in this order"),
        ([("metadata", b"x")], None, "needs the parts"),
        ([("metadata", b"x"), ("metadata", b"y")], None, "in this order"),
        ([("metadata", b"x"), ("other", b"y")], None, "Unknown part"),
        ([("metadata", b"x"), ("../../evil", b"y")], None, "Unknown part"),
        ([], None, "multipart form|needs the parts"),
        ([("metadata", b"x"), ("rootfs", b"y" * 300_000)], b"", "not a complete multipart form"),
    ],
)
def test_forms_that_are_refused(
    server: Daemon, parts: list[tuple[str, bytes]], end: bytes | None, reason: str
) -> None:
    body = form(*parts) if end is None else form(*parts, end=end)
    reply = server.api("POST", "/1.0/images", body, headers=FORM)
    assert reply.status == 400, reply.body
    assert re.search(reason, reply.error), reply.error
    assert files(server) == []


def test_images_of_virtual_machines_are_refused(server: Daemon) -> None:
    body = form(("metadata", b"x"), ("rootfs.img", b"y"))
    reply = server.api("POST", "/1.0/images", body, headers=FORM)
    assert (reply.status, "containers only" in reply.error) == (501, True)
    assert files(server) == []


@pytest.mark.parametrize("kind", ["image", "url", "instance", "snapshot", "?", ""])
def test_missing_sources(server: Daemon, kind: str) -> None:
    reply = server.api("POST", "/1.0/images", {"source": {"type": kind}})
    assert reply.status == 400


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ({"alias": "x", "server": "images.example"}, 400, "Invalid URL"),
        ({"alias": "x", "server": "file:///etc"}, 400, "Invalid URL"),
        ({"alias": "x", "server": "https://user@images.example"}, 400, "Invalid URL"),
        ({"alias": "x", "server": "https://a b/"}, 400, "Invalid URL"),
        ({"server": "https://images.example"}, 400, "alias or fingerprint"),
        ({"alias": "a\nb", "server": "https://images.example"}, 400, "alias or fingerprint"),
        ({"alias": "x", "server": "https://a", "protocol": "direct"}, 400, "Unknown protocol"),
        ({"alias": "x", "server": "https://a", "protocol": "ftp"}, 400, "Unknown protocol"),
        ({"alias": "x", "server": "https://a", "image_type": "virtual-machine"}, 400, "container"),
        ({"alias": "x", "server": "https://a", "mode": "carry"}, 400, "use pull or push"),
        ({"type": "url", "url": "gopher://images.example"}, 400, "Invalid URL"),
    ],
)
def test_sources_on_other_servers_are_checked(
    server: Daemon, source: dict[str, str], status: int, message: str
) -> None:
    reply = server.api("POST", "/1.0/images", {"source": {"type": "image"} | source})
    assert (reply.status, message in reply.error) == (status, True)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X-LXD-public": "perhaps"}, "true or false"),
        ({"X-LXD-properties": "a=%ff"}, "not URL-encoded"),
        ({"X-LXD-properties": "a=1&" * 1100}, "too many fields"),
    ],
)
def test_headers_that_are_refused(
    server: Daemon, unified: bytes, headers: Mapping[str, str], reason: str
) -> None:
    reply = server.api("POST", "/1.0/images", unified, headers={**STREAM, **headers})
    assert reply.status == 400
    assert reason in reply.error
    assert files(server) == []


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X-LXD-fingerprint": "0" * 64}, "was announced"),
        ({"X-LXD-profiles": "profile=nowhere"}, "'nowhere' does not exist"),
        ({"X-LXD-aliases": "alias=%0a"}, "Invalid image alias"),
    ],
)
def test_uploads_that_fail_leave_nothing(
    server: Daemon, unified: bytes, headers: Mapping[str, str], reason: str
) -> None:
    ended = upload(server, unified, {**STREAM, **headers})
    assert ended["status_code"] == 400
    assert reason in ended["err"]
    assert files(server) == []
    assert server.get("/1.0/images") == []


def test_an_empty_upload_is_refused(server: Daemon) -> None:
    assert server.api("POST", "/1.0/images", b"", headers=STREAM).status == 400
    assert files(server) == []


def test_no_profiles(server: Daemon, unified: bytes) -> None:
    ended = upload(server, unified, {**STREAM, "X-LXD-profiles": urlencode({"profile": "default"})})
    fingerprint = ended["metadata"]["fingerprint"]
    assert server.get(f"/1.0/images/{fingerprint}")["profiles"] == ["default"]


def head(kind: str, length: int = 99_999_999) -> bytes:
    lines = ("POST /1.0/images HTTP/1.1", "Host: x", f"Content-Length: {length}", f"Content-Type: {kind}")
    return "\r\n".join((*lines, "", "")).encode()


def test_a_disconnected_client_leaves_nothing(server: Daemon) -> None:
    for kind in ("application/octet-stream", "multipart/form-data; boundary=xyz"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(server.socket))
            client.sendall(head(kind) + form(("metadata", b"x" * 3_000_000), end=b""))
            deadline = time.monotonic() + 30
            while not files(server) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert files(server)
        deadline = time.monotonic() + 30
        while files(server) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert files(server) == []


def test_an_upload_that_is_too_large_is_rejected_before_it_is_sent(server: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server.socket))
        client.sendall(head("application/octet-stream", 999_999_999_999_999))
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert files(server) == []


def test_a_kill_in_an_upload_leaves_nothing(bare_daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(bare_daemon.socket))
        client.sendall(
            b"POST /1.0/images HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 3_000_000
        )
        deadline = time.monotonic() + 30
        while not files(bare_daemon) and time.monotonic() < deadline:
            time.sleep(0.01)
        bare_daemon.kill()
    assert files(bare_daemon)
    bare_daemon.start()
    assert files(bare_daemon) == []


def etag(reply: Reply) -> dict[str, str]:
    return {"If-Match": reply.headers["etag"]}


def test_put_and_patch_heed_the_etag(server: Daemon, unified: bytes) -> None:
    url = f"/1.0/images/{upload(server, unified)['metadata']['fingerprint']}"
    old = etag(server.api("GET", url))
    assert server.api("PATCH", url, {"properties": {"a": "b"}}, headers=old).status == 200
    assert server.api("PATCH", url, {"public": True}, headers=old).status == 412
    assert server.api("PUT", url, {"public": True}, headers=old).status == 412
    image = server.get(url)
    assert (image["properties"]["a"], image["properties"]["os"], image["public"]) == ("b", "BusyBox", False)
    now = etag(server.api("GET", url))
    body = {"public": True, "properties": {"x": "y"}, "expires_at": "2031-01-01T00:00:00Z", "profiles": None}
    assert server.api("PUT", url, body, headers=now).status == 200
    image = server.get(url)
    assert (image["public"], image["properties"]) == (True, {"x": "y"})
    assert (image["expires_at"], image["profiles"]) == ("2031-01-01T00:00:00Z", ["default"])
    assert server.api("PUT", url, {"expires_at": "soon"}).status == 400
    assert server.api("PUT", url, {"profiles": ["nowhere"]}).status == 404
    assert server.get(url) == image


def test_aliases_heed_the_etag(server: Daemon, unified: bytes) -> None:
    target = upload(server, unified)["metadata"]["fingerprint"]
    made = server.api("POST", "/1.0/images/aliases", {"name": "a b", "target": target, "description": "d"})
    assert (made.status, made.headers["location"]) == (201, "/1.0/images/aliases/a%20b")
    url = made.headers["location"]
    assert server.get(url) == {"name": "a b", "description": "d", "target": target, "type": "container"}
    old = etag(server.api("GET", url))
    assert server.api("PATCH", url, {"description": "e"}, headers=old).status == 200
    assert server.api("PUT", url, {"target": target}, headers=old).status == 412
    assert server.api("PUT", url, {"target": target}).status == 200
    assert server.get(url)["description"] == ""
    assert server.api("PUT", url, {"description": "no target"}).status == 400
    renamed = server.api("POST", url, {"name": "c"})
    assert (renamed.status, renamed.headers["location"]) == (201, "/1.0/images/aliases/c")
    assert server.api("GET", url).status == 404
    assert server.api("DELETE", "/1.0/images/aliases/c").status == 200
    assert server.api("DELETE", "/1.0/images/aliases/c").status == 404


@pytest.mark.parametrize(
    ("method", "suffix", "status"),
    [
        ("GET", "", 404),
        ("DELETE", "", 404),
        ("GET", "/export", 404),
        ("POST", "/refresh", 404),
        ("POST", "/secret", 404),
    ],
)
def test_missing_images(server: Daemon, method: str, suffix: str, status: int) -> None:
    assert server.api(method, f"/1.0/images/{'0' * 64}{suffix}").status == status


def test_push_without_target_is_refused(server: Daemon, unified: bytes) -> None:
    url = f"/1.0/images/{upload(server, unified)['metadata']['fingerprint']}"
    reply = server.api("POST", f"{url}/export", {})
    assert (reply.status, "use https://HOST[:PORT]" in reply.error) == (400, True)


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fx", "xyz", "ABC", "'; drop table images", "%00"])
def test_fingerprints_are_checked(server: Daemon, name: str) -> None:
    assert server.api("GET", f"/1.0/images/{name.replace(' ', '%20')}").status in (400, 404)


def test_lists_can_be_filtered(server: Daemon, unified: bytes) -> None:
    upload(server, unified)
    for text, number in (("properties.os eq BusyBox", 1), ("properties.os eq Ubuntu", 0)):
        for recursion in (0, 1):
            query = urlencode({"filter": text, "recursion": recursion})
            assert len(server.get(f"/1.0/images?{query}")) == number
    assert server.api("GET", "/1.0/images?filter=nonsense").status == 400


def test_only_known_projects(server: Daemon) -> None:
    assert server.api("GET", "/1.0/images?project=nowhere").status == 404


def test_the_importer_of_lxds_suite_would_work(server: Daemon, busybox_image: Image, tmp_path: Path) -> None:
    """A file in a form by chunked encoding, as curl sends it."""
    assert busybox_image.rootfs is not None
    ended = subprocess.run(
        [
            *("curl", "-s", "--unix-socket", str(server.socket), "http://x/1.0/images"),
            *("-H", "Transfer-Encoding: chunked"),
            *("-F", f"metadata=@{busybox_image.metadata}", "-F", f"rootfs=@{busybox_image.rootfs}"),
        ],
        capture_output=True,
        check=True,
    )
    metadata = server.do("GET", json.loads(ended.stdout)["operation"] + "/wait")
    assert metadata["status_code"] == 200
    assert server.get(f"/1.0/images/{metadata['metadata']['fingerprint']}")["filename"] == "rootfs.squashfs"


@pytest.fixture(scope="module")
def address(module_daemon: Daemon) -> str:
    """Where the module's daemon serves HTTPS, to which no client is trusted."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        chosen = f"127.0.0.1:{probe.getsockname()[1]}"
    module_daemon.do("PATCH", "/1.0", {"config": {"core.https_address": chosen}})
    return chosen


def test_strangers_get_public_images_and_change_none(
    server: Daemon, address: str, busybox_image: Image
) -> None:
    assert busybox_image.unified is not None
    private = server.import_image(busybox_image.unified, alias="private")
    public = server.import_image(busybox_image.metadata, busybox_image.rootfs, alias="public")
    server.do("PATCH", f"/1.0/images/{public}", {"public": True})
    ask = partial(tls.request, address)
    assert ask("GET", "/1.0/images").metadata == [f"/1.0/images/{public}"]
    assert [image["fingerprint"] for image in ask("GET", "/1.0/images?recursion=1").metadata] == [public]
    assert ask("GET", "/1.0/images/aliases").metadata == ["/1.0/images/aliases/public"]
    assert ask("GET", f"/1.0/images/{public[:9]}").status == 200
    assert ask("GET", f"/1.0/images/{public}/export").status == 200
    for url in (private, private[:9], f"{private}/export", "aliases/private"):
        assert ask("GET", f"/1.0/images/{url}").status == 404
    for method, url in (
        ("POST", ""),
        ("PUT", f"/{public}"),
        ("PATCH", f"/{public}"),
        ("DELETE", f"/{public}"),
        ("POST", f"/{public}/refresh"),
        ("POST", "/aliases"),
        ("PATCH", "/aliases/public"),
        ("DELETE", "/aliases/public"),
    ):
        assert ask(method, f"/1.0/images{url}", {}).status == 403
    assert len(server.get("/1.0/images")) == 2
