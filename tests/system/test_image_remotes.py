"""The images of another server, as `lxc`, `incus` and `utsuwa` show and change them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import tls
from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.incus import incus

pytestmark = pytest.mark.root

Client = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def far(busybox_image: Image) -> Iterator[Daemon]:
    """Another daemon, with the public image `public` and the private one `private`."""
    other = Daemon()
    try:
        other.start()
        config = {"core.https_address": tls.free_address()}
        other.do("PATCH", "/1.0", {"config": config})
        assert busybox_image.unified is not None
        other.import_image(busybox_image.unified, alias="private")
        public = other.import_image(busybox_image.metadata, busybox_image.rootfs, alias="public")
        other.do("PATCH", f"/1.0/images/{public}", {"public": True})
        yield other
    finally:
        problems = other.close()
    assert problems == []


@pytest.fixture(scope="module", params=["lxc", "incus", "utsuwa"])
def client(request: pytest.FixtureRequest, module_daemon: Daemon, far: Daemon) -> Iterator[Client]:
    """A client that knows the other daemon as `far`, by a token."""
    runs: dict[str, Client] = {
        "lxc": module_daemon.lxc,
        "incus": lambda *words, **more: incus(module_daemon, *words, **more),
        "utsuwa": lambda *words, **more: utsuwa_client(module_daemon, *words, **more),
    }
    run = runs[request.param]
    token = far.lxc("config", "trust", "add", "--name", request.param).stdout.splitlines()[-1]
    run("remote", "add", "far", token)
    yield run
    run("remote", "remove", "far")


def url_of(far: Daemon) -> str:
    return f"https://{far.get('/1.0')['config']['core.https_address']}"


def target(far: Daemon, alias: str) -> str:
    return str(far.get(f"/1.0/images/aliases/{alias}")["target"])


def listed(client: Client, remote: str = "far:") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(client("image", "list", remote, "--format", "json").stdout)
    return found


def test_images_are_listed_and_described(client: Client, far: Daemon) -> None:
    found = {image["fingerprint"]: image for image in listed(client)}
    assert set(found) == {target(far, "private"), target(far, "public")}
    assert [found[target(far, name)]["public"] for name in ("private", "public")] == [False, True]
    for name in ("private", "public"):
        assert f"Fingerprint: {target(far, name)}" in client("image", "info", f"far:{name}").stdout
        assert "os: BusyBox" in client("image", "show", f"far:{target(far, name)[:12]}").stdout
    missing = client("image", "info", "far:missing", check=False)
    assert (missing.returncode, "not found" in missing.stderr) == (1, True)


@pytest.mark.parametrize("name", ["private", "public"])
def test_images_are_exported(
    client: Client, far: Daemon, busybox_image: Image, tmp_path: Path, name: str
) -> None:
    client("image", "export", f"far:{name}", str(tmp_path / "image"))
    files = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert busybox_image.unified is not None
    parts = (busybox_image.metadata, busybox_image.rootfs) if name == "public" else (busybox_image.unified,)
    assert sorted(files) == sorted(part.read_bytes() for part in parts)


def test_aliases_and_properties_are_changed(client: Client, far: Daemon) -> None:
    fingerprint = target(far, "private")
    client("image", "alias", "create", "far:more", fingerprint)
    assert "more" in client("image", "alias", "list", "far:", "--format", "csv").stdout
    client("image", "alias", "rename", "far:more", "other")
    assert target(far, "other") == fingerprint
    client("image", "alias", "delete", "far:other")
    assert far.api("GET", "/1.0/images/aliases/other").status == 404
    client("image", "set-property", "far:private", "color", "blue")
    assert client("image", "get-property", "far:private", "color").stdout == "blue\n"
    client("image", "unset-property", "far:private", "color")
    assert "color" not in far.get(f"/1.0/images/{fingerprint}")["properties"]


def test_an_image_is_copied_and_deleted(client: Client, module_daemon: Daemon, far: Daemon) -> None:
    for name in ("private", "public"):
        client("image", "copy", f"far:{name}", "local:", "--copy-aliases")
        (copy,) = module_daemon.get("/1.0/images?recursion=1")
        assert (copy["fingerprint"], [alias["name"] for alias in copy["aliases"]]) == (
            target(far, name),
            [name],
        )
        client("image", "delete", name)


def test_strangers_see_public_images_alone(client: Client, module_daemon: Daemon, far: Daemon) -> None:
    for certificate in far.get("/1.0/certificates"):
        far.do("DELETE", certificate)
    client("remote", "add", "shop", url_of(far), "--accept-certificate", "--public")
    try:
        assert [image["fingerprint"] for image in listed(client, "shop:")] == [target(far, "public")]
        assert client("image", "info", "shop:private", check=False).returncode == 1
        client("launch", "shop:public", "c1")
        assert module_daemon.get("/1.0/instances/c1")["status"] == "Running"
        module_daemon.delete_instances()
        module_daemon.do("DELETE", f"/1.0/images/{target(far, 'public')}")
        client("image", "copy", "shop:public", "local:")
        assert module_daemon.get("/1.0/images") == [f"/1.0/images/{target(far, 'public')}"]
        module_daemon.do("DELETE", f"/1.0/images/{target(far, 'public')}")
        refused = client("image", "delete", "shop:public", check=False)
        assert refused.returncode == 1
    finally:
        client("remote", "remove", "shop")
