"""Servers with the API of LXD that are not what they should be."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.image_server import ImageServer, Reply, body, endless, redirect, serving
from tests.support.tls import make_identity
from utsuwa.core.errors import InvalidImage, InvalidRequest, NotFound, TooLarge, Unavailable, UtsuwaError
from utsuwa.core.proxies import Proxies
from utsuwa.images.remote.lxd import MAX_REPLY, LxdServer
from utsuwa.images.remote.records import RemoteSource
from utsuwa.images.remote.web import Web
from utsuwa.images.upload import Upload
from utsuwa.security.remote_tls import client_context

DATA = b"an image" * 1000
FINGERPRINT = hashlib.sha256(DATA).hexdigest()
OTHER = hashlib.sha256(b"another one").hexdigest()
ALIAS, IMAGE = "1.0/images/aliases/web", f"1.0/images/{FINGERPRINT}"
EXPORT = f"{IMAGE}/export"


class Silent:
    """Looks at no progress."""

    def begin(self, label: str, total: int) -> None:
        pass

    def add(self, count: int) -> None:
        pass


def reply(metadata: object) -> bytes:
    return json.dumps({"type": "sync", "status_code": 200, "metadata": metadata}).encode()


def record(**changes: object) -> bytes:
    return reply({"fingerprint": FINGERPRINT, "size": len(DATA), "type": "container"} | changes)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageServer]:
    with serving(make_identity(tmp_path_factory.mktemp("tls"))) as found:
        yield found


@pytest.fixture(autouse=True)
def sound(server: ImageServer) -> None:
    """Have the server be a good one, for the test to change."""
    server.odd.clear()
    server.requests.clear()
    server.files = {ALIAS: reply({"target": FINGERPRINT}), IMAGE: record(), EXPORT: DATA}


async def fetch(server: ImageServer, folder: Path, wanted: str, **more: Any) -> tuple[str, str]:
    """Return the fingerprint that is stated, and that of what was received; nothing may be left."""
    source = RemoteSource(server.url, "lxd", wanted, server.certificate, **more)
    context = await asyncio.to_thread(client_context, server.certificate, None)
    try:
        async with Web(Proxies(), context, redirects=False) as web:
            found = await LxdServer(web, source).find()
            async with Upload(folder, 10**6) as upload:
                await found.download(upload, Silent())
                return found.fingerprint, upload.fingerprint
    finally:
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("wanted", ["web", FINGERPRINT])
async def test_an_image_by_its_alias_or_fingerprint(server: ImageServer, tmp_path: Path, wanted: str) -> None:
    assert await fetch(server, tmp_path, wanted) == (FINGERPRINT, FINGERPRINT)


@pytest.mark.parametrize("wanted", ["web", FINGERPRINT, FINGERPRINT[:12]])
async def test_another_image_than_the_one_that_was_asked_for_is_refused(
    server: ImageServer, tmp_path: Path, wanted: str
) -> None:
    """A fingerprint says which files are meant, whatever the server would rather send."""
    server.files[f"1.0/images/{wanted}"] = server.files[IMAGE] = record(fingerprint=OTHER)
    with pytest.raises(InvalidImage, match="another image"):
        await fetch(server, tmp_path, wanted)
    assert not server.count("/export")


@pytest.mark.parametrize(
    "stated", ["../../../etc/passwd", "", "0" * 63, f"{FINGERPRINT}/../x", FINGERPRINT.upper()]
)
async def test_what_is_no_fingerprint_is_refused(server: ImageServer, tmp_path: Path, stated: str) -> None:
    server.files[IMAGE] = record(fingerprint=stated)
    with pytest.raises(InvalidImage, match="fingerprint"):
        await fetch(server, tmp_path, FINGERPRINT)


@pytest.mark.parametrize("target", ["../../../etc/passwd", "..", "none\r\nX: y", "%2e%2e"])
async def test_an_alias_leads_to_an_image_of_its_server(
    server: ImageServer, tmp_path: Path, target: str
) -> None:
    server.files[ALIAS] = reply({"target": target})
    with pytest.raises((NotFound, InvalidImage)):
        await fetch(server, tmp_path, "web")
    assert all(path.startswith("1.0/") for path in server.requests), server.requests


@pytest.mark.parametrize(
    ("path", "odd", "error", "message"),
    [
        (IMAGE, body(b"<html>", length=6), Unavailable, "not an image server"),
        (IMAGE, body(b"[" * 100_000, length=100_000), Unavailable, "not an image server"),
        (IMAGE, body(b"", length=MAX_REPLY + 1), TooLarge, "larger than"),
        (IMAGE, body(record(type="virtual-machine")), InvalidRequest, "containers only"),
        (IMAGE, redirect("https://127.0.0.1/x"), InvalidRequest, "redirects"),
        (EXPORT, redirect("file:///etc/shadow"), InvalidRequest, "redirects|invalid URL"),
        (EXPORT, body(DATA[:-1], length=len(DATA)), Unavailable, "export: "),
        (EXPORT, body(DATA, headers={"Content-Encoding": "gzip"}), Unavailable, "compressed"),
        (
            EXPORT,
            body(DATA, headers={"Content-Type": "multipart/form-data; boundary=x"}),
            InvalidImage,
            "invalid image",
        ),
    ],
)
async def test_replies_of_another_form_are_refused(
    server: ImageServer, tmp_path: Path, path: str, odd: Reply, error: type[UtsuwaError], message: str
) -> None:
    server.odd[path] = odd
    with pytest.raises(error, match=message):
        await fetch(server, tmp_path, FINGERPRINT)


@pytest.mark.parametrize("path", [IMAGE, EXPORT])
async def test_an_endless_reply_ends_at_the_limit(server: ImageServer, tmp_path: Path, path: str) -> None:
    ended = threading.Event()
    server.odd[path] = endless(ended)
    with pytest.raises(TooLarge):
        await fetch(server, tmp_path, FINGERPRINT)
    assert await asyncio.to_thread(ended.wait, 60)


async def test_an_alias_that_moves_meanwhile(server: ImageServer, tmp_path: Path) -> None:
    """What the alias meant first is fetched; its files belong to that fingerprint."""
    server.files[f"1.0/images/{OTHER}"] = record(fingerprint=OTHER)
    targets = iter([FINGERPRINT, OTHER, OTHER])

    def move(handler: Any) -> None:
        body(reply({"target": next(targets)}))(handler)

    server.odd[ALIAS] = move
    assert await fetch(server, tmp_path, "web") == (FINGERPRINT, FINGERPRINT)
    assert server.count("aliases/web") == 1
