"""Images that are copied between servers: pulled, pushed, or relayed by the client."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import tls
from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.long import usually
from tests.support.netbox import until

pytestmark = pytest.mark.root

Client = Callable[..., "subprocess.CompletedProcess[str]"]


def listening(daemon: Daemon) -> str:
    """Have a daemon listen on HTTPS; return the address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {"core.https_address": address, "core.trust_password": "open"}
    daemon.do("PATCH", "/1.0", {"config": config})
    return address


@pytest.fixture(scope="module")
def far() -> Iterator[Daemon]:
    """Another daemon, to which images are copied."""
    other = Daemon()
    try:
        other.start()
        yield other
    finally:
        problems = other.close()
    assert problems == []


@pytest.fixture(scope="module")
def near(module_daemon: Daemon, far: Daemon, busybox_image: Image) -> Daemon:
    """The module's daemon with the images `one` and `two`; `lxc` and `utsuwa` know the other one as `far`."""
    d, address = module_daemon, listening(far)
    here = listening(d)
    assert busybox_image.unified is not None
    d.import_image(busybox_image.unified, alias="one")
    d.import_image(busybox_image.metadata, busybox_image.rootfs, alias="two")
    for conf in ("lxc", "u"):
        (d.home / conf).mkdir(exist_ok=True)
    for name, url in (("far", address), ("near", here)):
        d.lxc("remote", "add", name, f"https://{url}", "--accept-certificate", "--password", "open")
        utsuwa_client(d, "remote", "add", name, url, "--accept-certificate", "--password", "open")
    return d


@pytest.fixture(autouse=True)
def emptied(far: Daemon) -> Iterator[None]:
    yield
    far.delete_projects()
    for image in far.get("/1.0/images"):
        far.do("DELETE", image)


def images(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.get("/1.0/images?recursion=1")
    return found


COPIES = list(itertools.product(("pull", "push", "relay"), ("one", "two"), ("lxc", "utsuwa")))
USUAL = (
    ("pull", "one", "lxc"),
    ("push", "two", "lxc"),
    ("relay", "one", "utsuwa"),
    ("push", "one", "utsuwa"),
)


@pytest.mark.parametrize(("mode", "name", "client"), usually(USUAL, COPIES))
def test_private_images_are_copied_in_every_mode(
    near: Daemon, far: Daemon, mode: str, name: str, client: str
) -> None:
    words = ("image", "copy", f"near:{name}", "far:", "--mode", mode, "--public", "--copy-aliases")
    run = near.lxc if client == "lxc" else lambda *words: utsuwa_client(near, *words)
    run(*words, "--alias", "more")
    (copy,) = images(far)
    (original,) = (image for image in images(near) if name in str(image["aliases"]))
    for key in ("fingerprint", "properties", "architecture", "size"):
        assert copy[key] == original[key], key
    assert copy["public"]
    assert {alias["name"] for alias in copy["aliases"]} == {name, "more"}
    tokens = [op for ops in near.get("/1.0/operations?recursion=1").values() for op in ops]
    assert not [op for op in tokens if op["class"] == "token" and op["status"] == "Running"]


def test_a_copy_goes_into_another_project(near: Daemon, far: Daemon) -> None:
    far.do("POST", "/1.0/projects", {"name": "p", "config": {"features.profiles": "false"}})
    for mode in ("push", "relay"):
        utsuwa_client(near, "image", "copy", "one", "far:", "--mode", mode, "--target-project", "p")
        (copy,) = far.get("/1.0/images?recursion=1&project=p")
        assert copy["project"] == "p"
        assert images(far) == []
        far.do("DELETE", f"/1.0/images/{copy['fingerprint']}?project=p")
    near.lxc("image", "copy", "near:one", "far:", "--mode", "push", "--target-project", "p")
    (copy,) = far.get("/1.0/images?recursion=1&project=p")


def test_an_instance_is_published_on_another_server(near: Daemon, far: Daemon) -> None:
    near.lxc("init", "one", "c1")
    for client in (near.lxc, lambda *words: utsuwa_client(near, *words)):
        client("publish", "near:c1", "far:", "--alias", "published", "--public", "a=b")
        (copy,) = images(far)
        assert (copy["properties"], copy["public"]) == ({"a": "b"}, True)
        assert [alias["name"] for alias in copy["aliases"]] == ["published"]
        until(lambda: len(images(near)) == 2)  # `lxc` does not wait for the removal
        far.do("DELETE", f"/1.0/images/{copy['fingerprint']}")
    near.delete_instances()


def address_of(daemon: Daemon) -> str:
    return str(daemon.get("/1.0")["config"]["core.https_address"])


def test_a_push_needs_what_was_agreed_on_and_once(near: Daemon, far: Daemon, busybox_image: Image) -> None:
    assert busybox_image.unified is not None
    data, address = busybox_image.unified.read_bytes(), address_of(far)
    (one,) = (image for image in images(near) if "one" in str(image["aliases"]))
    body = {
        "source": {"type": "image", "mode": "push", "fingerprint": one["fingerprint"]},
        "aliases": [{"name": "agreed", "description": "by its owner"}],
        "properties": {"color": "blue"},
    }
    token = far.get(far.api("POST", "/1.0/images", body).operation)
    assert (token["class"], token["resources"]) == (
        "token",
        {"images": [f"/1.0/images/{one['fingerprint']}"]},
    )
    good = {"X-LXD-fingerprint": one["fingerprint"], "X-LXD-secret": token["metadata"]["secret"]}
    kind = {"Content-Type": "application/octet-stream"}
    for bad in (
        {},
        {"X-LXD-secret": good["X-LXD-secret"]},
        good | {"X-LXD-secret": "guessed"},
        good | {"X-LXD-fingerprint": "0" * 64},
    ):
        assert tls.request(address, "POST", "/1.0/images", data, headers=kind | bad).status == 403
    assert tls.request(address, "POST", "/1.0/images?project=p", data, headers=kind | good).status == 403
    own = {"X-LXD-public": "true", "X-LXD-aliases": "alias=mine", "X-LXD-profiles": "profile=x"}
    accepted = tls.request(address, "POST", "/1.0/images", data, headers=kind | good | own)
    assert accepted.status == 202
    operation = json.loads(accepted.body)
    url = f"{operation['operation']}/wait"
    assert tls.request(address, "GET", url).status == 403
    secret = operation["metadata"]["metadata"]["secret"]
    ended = tls.request(address, "GET", f"{url}?secret={secret}")
    assert json.loads(ended.body)["metadata"]["status"] == "Success"
    (copy,) = images(far)
    assert (copy["public"], copy["properties"]["color"], copy["profiles"]) == (False, "blue", ["default"])
    assert copy["aliases"] == [{"name": "agreed", "description": "by its owner"}]
    assert tls.request(address, "POST", "/1.0/images", data, headers=kind | good).status == 403


def test_a_failed_push_says_why_and_leaves_nothing(near: Daemon, far: Daemon) -> None:
    one = near.get("/1.0/images/aliases/one")["target"]
    certificate = (far.dir / "server.crt").read_text()
    url, address = f"/1.0/images/{one}/export", f"https://{address_of(far)}"
    for request, why in (
        (
            {"target": address, "certificate": certificate, "secret": "no"},
            "not authorized",
        ),
        ({"target": address, "secret": "no"}, "certificate is not accepted"),
        ({"target": "https://127.0.0.1:1", "certificate": certificate}, "https://127.0.0.1:1"),
        ({"target": "http://127.0.0.1:1"}, "use https"),
        ({}, "Invalid URL"),
    ):
        reply = near.api("POST", url, request)
        error = reply.error if reply.status >= 400 else near.wait(reply)["err"]
        assert why in error
    assert images(far) == []
    assert near.api("POST", f"/1.0/images/{'0' * 64}/export", {"target": "https://a"}).status == 404
    short = {"source": {"type": "image", "mode": "push", "fingerprint": "abc"}}
    assert "full fingerprint" in far.api("POST", "/1.0/images", short).error
