"""Images that are no images, or that mean harm: refused with a reason, and nothing of them stays."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image, build_with_init
from tests.support.traces import nothing_changes
from tests.system.test_bad_instances import check_sentence, failed, refused

pytestmark = pytest.mark.root

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> Member:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, len(content)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, content


def archive(*members: Member) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def described(**metadata: Any) -> Member:
    whole = {"architecture": "x86_64", "creation_date": 1, "properties": {}, **metadata}
    return member("metadata.yaml", json.dumps(whole).encode())


def document(text: bytes) -> bytes:
    """An image whose metadata.yaml has this text."""
    return archive(member("metadata.yaml", text), ROOTFS)


META = described()
ROOTFS = member("rootfs", kind=tarfile.DIRTYPE, mode=0o755)
SOUND = archive(META, ROOTFS, member("rootfs/file", os.urandom(50_000)))

IMAGES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("empty",)),
    "no archive": (b"PK\x03\x04" * 100, ("format", "squashfs", "tar")),
    "text": (b"not an image\n" * 100, ("format",)),
    "nothing but a magic number": (b"hsqs" + b"\0" * 4000, ("squashfs",)),
    "truncated tar": (SOUND[:20_000], ("damaged",)),
    "truncated xz": (lzma.compress(SOUND)[:20_000], ("damaged",)),
    "truncated gzip": (gzip.compress(SOUND)[:-3000], ("damaged",)),
    "flipped bits in xz": (lzma.compress(SOUND)[:-3000] + b"\xff" * 3000, ("damaged",)),
    "gzip of no tar": (gzip.compress(b"no tar" * 1000), ("tar",)),
    "dots": (archive(META, ROOTFS, member("rootfs/../../evil", b"x")), ("leads out",)),
    "dots at the beginning": (archive(META, ROOTFS, member("../evil", b"x")), ("leads out",)),
    "an absolute hard link": (
        archive(META, ROOTFS, member("rootfs/a", kind=tarfile.LNKTYPE, linkname="/etc/shadow")),
        ("points outside",),
    ),
    "a hard link that leads out": (
        archive(META, ROOTFS, member("rootfs/a", kind=tarfile.LNKTYPE, linkname="../../etc/shadow")),
        ("leads out",),
    ),
    "a file behind a link that leads out": (
        archive(
            META,
            ROOTFS,
            member("rootfs/a", kind=tarfile.SYMTYPE, linkname="/"),
            member("rootfs/a/evil", b"x"),
        ),
        ("symbolic link",),
    ),
    "a link as rootfs": (archive(META, member("rootfs", kind=tarfile.SYMTYPE, linkname="/")), ("rootfs",)),
    "a file as rootfs": (archive(META, member("rootfs", b"x")), ("rootfs",)),
    "no rootfs": (archive(META), ("rootfs",)),
    "a block device": (
        archive(META, ROOTFS, member("sda", kind=tarfile.BLKTYPE, devmajor=8)),
        ("device node", "sda"),
    ),
    "a character device": (
        archive(META, ROOTFS, member("templates/mem", kind=tarfile.CHRTYPE, devmajor=1, devminor=1)),
        ("device node", "templates/mem"),
    ),
    "no metadata": (archive(ROOTFS), ("metadata.yaml",)),
    "metadata in a folder": (archive(member("a/metadata.yaml", b"{}"), ROOTFS), ("metadata.yaml",)),
    "a link as metadata": (
        archive(member("metadata.yaml", kind=tarfile.SYMTYPE, linkname="/etc/shadow"), ROOTFS),
        ("metadata.yaml", "regular file"),
    ),
    "a hard link as metadata": (
        archive(
            ROOTFS,
            member("rootfs/m", b"{}"),
            member("metadata.yaml", kind=tarfile.LNKTYPE, linkname="rootfs/m"),
        ),
        ("metadata.yaml", "link"),
    ),
    "a FIFO as metadata": (
        archive(member("metadata.yaml", kind=tarfile.FIFOTYPE), ROOTFS),
        ("metadata.yaml",),
    ),
    "a folder as metadata": (
        archive(member("metadata.yaml", kind=tarfile.DIRTYPE), ROOTFS),
        ("metadata.yaml",),
    ),
    "metadata of 2 MiB": (document(b"# " + b"x" * (2 << 20) + b"\n"), ("metadata.yaml", "larger")),
    "empty metadata": (document(b""), ("metadata.yaml",)),
    "a list": (document(b"- architecture\n"), ("metadata.yaml", "mapping")),
    "a string": (document(b"architecture\n"), ("metadata.yaml", "mapping")),
    "no YAML": (document(b"{ a: [\n"), ("metadata.yaml", "YAML")),
    "no UTF-8": (document(b"architecture: \xff\xfe\n"), ("metadata.yaml",)),
    "nested 5,000 deep": (document(b"properties: " + b"[" * 5000 + b"]" * 5000), ("metadata.yaml",)),
    "a Python object": (document(b"a: !!python/object/apply:os.system [id]\n"), ("metadata.yaml",)),
    "no architecture": (document(b"properties: {}\n"), ("architecture",)),
    "an unknown architecture": (archive(described(architecture="pdp11"), ROOTFS), ("architecture", "pdp11")),
    "a list as properties": (archive(described(properties=["os"]), ROOTFS), ("properties",)),
    "a word as date": (archive(described(creation_date="today"), ROOTFS), ("creation_date",)),
    "templates of another form": (archive(described(templates=["hostname"]), ROOTFS), ("templates",)),
    "a template outside": (
        archive(described(templates={"/x": {"when": ["create"], "template": "../../shadow"}}), ROOTFS),
        ("templates./x", "file name"),
    ),
}  # fmt: skip


@pytest.fixture
def d(module_daemon: Daemon) -> Iterator[Daemon]:
    with nothing_changes(module_daemon):
        yield module_daemon


def upload(daemon: Daemon, data: bytes, **headers: str) -> Any:
    return daemon.api(
        "POST", "/1.0/images", data, headers={"Content-Type": "application/octet-stream", **headers}
    )


def test_nodes_and_linked_symlinks_come_in_and_harm_nobody(module_daemon: Daemon, tmp_path: Path) -> None:
    """Outside of /dev, too (lxd#10449): a device that the container may not use stays closed."""
    d, path = module_daemon, build_with_init(tmp_path, "nodes", "#!/bin/sh\nexec sleep 600\n")
    with tarfile.open(path, "a") as tar:
        for entry, _ in (
            member("rootfs/v", kind=tarfile.DIRTYPE, mode=0o755),
            member("rootfs/v/mem", kind=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=1),
            member("rootfs/v/null", kind=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
            member("rootfs/v/link", kind=tarfile.SYMTYPE, linkname="/nowhere"),
            member("rootfs/v/second", kind=tarfile.LNKTYPE, linkname="rootfs/v/link"),
        ):
            tar.addfile(entry)
    with nothing_changes(d):
        fingerprint = d.import_image(path, alias="nodes")
        d.lxc("launch", "nodes", "c1")
        look = "head -c 1 /v/mem; echo $?; readlink /v/second; ls /v"
        ended = d.lxc("exec", "c1", "--", "sh", "-c", look)
        assert ended.stdout.split() == ["1", "/nowhere", "link", "mem", "null", "second"]
        assert "mem" in ended.stderr
        d.lxc("delete", "--force", "c1")
        d.do("DELETE", f"/1.0/images/{fingerprint}")


@pytest.mark.parametrize("what", IMAGES)
def test_uploads_that_are_no_image(d: Daemon, what: str) -> None:
    data, words = IMAGES[what]
    reply = upload(d, data)
    if reply.status == 202:
        failed(d, reply, *words)
    else:
        refused(reply, 400, *words)
    assert d.get("/1.0/images") == []


def test_an_absolute_path_stays_inside(module_daemon: Daemon) -> None:
    """As tar does, the slash at the beginning is dropped: the file lands in the image, not on the host."""
    name = f"/rootfs/{module_daemon.home.name}-outside"
    data = archive(META, ROOTFS, member(name, b"x"), member("/etc/outside", b"x"))
    with nothing_changes(module_daemon):
        reply = upload(module_daemon, data)
        ended = module_daemon.wait(reply)
        if ended["status_code"] == 200:
            fingerprint = ended["metadata"]["fingerprint"]
            source = {"type": "image", "fingerprint": fingerprint}
            module_daemon.do("POST", "/1.0/instances", {"name": "c1", "source": source})
            module_daemon.do("DELETE", "/1.0/instances/c1")
            module_daemon.do("DELETE", f"/1.0/images/{fingerprint}")
        else:
            check_sentence(ended["err"], "path")
    assert not Path(name).exists()
    assert not Path("/etc/outside").exists()


@pytest.mark.parametrize("what", ["truncated xz", "dots", "no metadata", "a list"])
def test_the_client_shows_the_reason(d: Daemon, tmp_path: Path, what: str) -> None:
    data, words = IMAGES[what]
    file = tmp_path / "image.tar"
    file.write_bytes(data)
    ended = d.lxc("image", "import", str(file), "--alias", "bad", check=False)
    assert ended.returncode != 0
    check_sentence(ended.stderr, *words)
    assert d.get("/1.0/images/aliases") == []


# ---- split images


def form(*parts: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    boundary = "----------0123456789"
    head = '--{}\r\nContent-Disposition: form-data; name="{}"; filename="{}"\r\n\r\n'
    pieces = [head.format(boundary, name, name).encode() + data + b"\r\n" for name, data in parts]
    body = b"".join([*pieces, f"--{boundary}--\r\n".encode()])
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def squashfs(folder: Path, build: Callable[[Path], None]) -> bytes:
    tree, file = folder / "tree", folder / "rootfs.squashfs"
    tree.mkdir()
    build(tree)
    subprocess.run(["mksquashfs", tree, file, "-quiet", "-no-progress"], check=True, capture_output=True)
    return file.read_bytes()


def test_invalid_split_images(d: Daemon, tmp_path: Path) -> None:
    meta = archive(META)

    def noise(tree: Path) -> None:
        (tree / "noise").write_bytes(os.urandom(200_000))

    whole = squashfs(tmp_path, noise)
    cases: list[tuple[list[tuple[str, bytes]], tuple[str, ...]]] = [
        ([("metadata", meta), ("rootfs", whole[:100_000])], ("damaged", "corruption")),
        ([("metadata", meta), ("rootfs", b"junk" * 1000)], ("format",)),
        ([("metadata", b"junk" * 1000), ("rootfs", whole)], ("format",)),
        ([("metadata", archive(ROOTFS)), ("rootfs", whole)], ("metadata.yaml",)),
        ([("metadata", meta)], ("rootfs",)),
        ([("rootfs", whole)], ("metadata",)),
        ([("rootfs", whole), ("metadata", meta)], ("order",)),
        ([("metadata", meta), ("evil", whole)], ("evil",)),
        ([("metadata", meta), ("metadata", meta)], ("order",)),
    ]
    for parts, words in cases:
        body, headers = form(*parts)
        reply = d.api("POST", "/1.0/images", body, headers=headers)
        if reply.status == 202:
            failed(d, reply, *words)
        else:
            refused(reply, 400, *words)
    body, headers = form(("metadata", meta), ("rootfs", whole))
    reply = d.api("POST", "/1.0/images", body[:-5000], headers=headers)
    refused(reply, 400, "form")


# ---- what comes with an upload


def test_headers_that_cannot_be(d: Daemon) -> None:
    for headers, words in [
        ({"X-LXD-fingerprint": "0" * 64}, ("fingerprint", "announced")),
        ({"X-LXD-public": "perhaps"}, ("X-LXD-public", "true or false")),
        ({"X-LXD-properties": "a&" * 1500}, ("header",)),
        ({"X-LXD-aliases": "alias=%2f..%00"}, ("alias",)),
        ({"X-LXD-profiles": "profile=none"}, ("none", "profile")),
    ]:
        reply = upload(d, SOUND, **headers)
        if reply.status == 202:
            failed(d, reply, *words)
        else:
            assert reply.status in (400, 404)
            check_sentence(reply.error, *words)


def test_an_upload_that_is_cut_off(d: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(d.socket))
        client.sendall(
            b"POST /1.0/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: 10000000\r\n\r\n" + SOUND
        )
    assert d.get("/1.0/images") == []


def test_upload_with_too_large_content_length(d: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(d.socket))
        client.sendall(
            b"POST /1.0/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: 99999999999999\r\n\r\n"
        )
        client.settimeout(20)
        answer = client.recv(4096)
    assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 507 ")), answer
    assert b"larger" in answer or b"No space" in answer


def test_requests_about_missing_images(d: Daemon) -> None:
    for url in ("/1.0/images/0123", "/1.0/images/0123/export", "/1.0/images/aliases/none"):
        refused(d.api("GET", url), 404, "not found")
    refused(d.api("DELETE", "/1.0/images/0123"), 404, "not found")
    refused(d.api("GET", "/1.0/images/xyz"), 404, "fingerprint")
    refused(d.api("POST", "/1.0/images/aliases", {"name": "a", "target": "0123"}), 404, "not found")
    for body in (b"[]", b"{", b"[" * 5000, b'{"source": []}'):
        reply = d.api("POST", "/1.0/images", body, headers={"Content-Type": "application/json"})
        refused(reply, 400)


def test_an_image_that_is_damaged_on_the_disk(module_daemon: Daemon, busybox_image: Image) -> None:
    """What was whole at its import may be lost later: the launch says so, and leaves nothing."""
    d = module_daemon
    d.lxc("storage", "create", "copies", "dir")
    fingerprint = d.import_image(busybox_image.metadata, busybox_image.rootfs)
    stored = d.dir / "images" / f"{fingerprint}.rootfs"
    volumes = "/1.0/storage-pools/default/volumes"
    deadline = time.monotonic() + 60
    while not any(url.endswith(fingerprint) for url in d.get(volumes)):  # unpacked in the background
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with stored.open("r+b") as file:
        file.truncate(100_000)
    with nothing_changes(d):
        request = {
            "name": "c1",
            "source": {"type": "image", "fingerprint": fingerprint},
            "devices": {"root": {"type": "disk", "path": "/", "pool": "copies"}},
        }
        failed(d, d.api("POST", "/1.0/instances", request), "image", "damaged")
    d.do("DELETE", f"/1.0/images/{fingerprint}")
    d.lxc("storage", "delete", "copies")
