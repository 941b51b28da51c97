"""A daemon that is killed while it downloads or replaces an image: its next start leaves one, or none."""

from __future__ import annotations

import threading

import pytest

from tests.support.crash_steps import patiently
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.image_server import ImageServer, held
from tests.support.images import Image

pytestmark = pytest.mark.root

POINTS = (
    "before put",
    "after put",
    "after image is ready",
    "before supersede image",
    "after supersede image",
)


@pytest.fixture(scope="module")
def killed(module_daemon: Daemon, faults: Faults) -> Daemon:
    """A daemon that can be killed at its fault points, and updates images on request only."""
    module_daemon.do("PATCH", "/1.0", {"config": {"images.auto_update_interval": "0"}})
    module_daemon.env |= faults.env
    module_daemon.restart()
    return module_daemon


def consistent(daemon: Daemon) -> list[str]:
    """Return the fingerprints of the images, of which all files and no others are there."""
    found = [url.rpartition("/")[2] for url in daemon.get("/1.0/images")]
    expected = {*found, *(f"{fingerprint}.rootfs" for fingerprint in found)}
    assert {path.name for path in (daemon.dir / "images").iterdir()} == expected
    assert not list((daemon.dir / "cache").glob(".*"))
    return found


def test_a_kill_during_a_download_leaves_nothing(killed: Daemon, image_server: ImageServer) -> None:
    name = next(path for path in image_server.files if path.endswith("rootfs.squashfs"))
    release = threading.Event()
    image_server.odd[name] = held(release, image_server.files[name], after=500_000)
    killed.api("POST", "/1.0/instances", {"name": "c1", "source": image_server.source("busybox")})
    patiently(lambda: assert_begun(image_server))
    killed.kill()
    release.set()
    killed.start()
    assert consistent(killed) == []
    assert killed.get("/1.0/instances") == []
    del image_server.odd[name]
    killed.do("POST", "/1.0/instances", {"name": "c1", "source": image_server.source("busybox")})
    killed.do("DELETE", "/1.0/instances/c1")
    (fingerprint,) = consistent(killed)
    killed.do("DELETE", f"/1.0/images/{fingerprint}")


def assert_begun(image_server: ImageServer) -> None:
    assert image_server.count("rootfs.squashfs")


def test_a_kill_during_a_refresh_leaves_one_image_with_the_alias(
    killed: Daemon, image_server: ImageServer, busybox_image: Image, newer_image: Image, faults: Faults
) -> None:
    def prepare() -> str:
        """Import the older version, and publish the newer one; return the older one's fingerprint."""
        for url in killed.get("/1.0/images"):
            killed.do("DELETE", url)
        image_server.products.clear()
        image_server.publish(busybox_image, "20260101_0700")
        source = image_server.source("busybox")
        for document in (killed.dir / "cache").iterdir():
            document.unlink()
        body = {"source": source, "aliases": [{"name": "mine"}], "auto_update": True}
        old = killed.do("POST", "/1.0/images", body)["fingerprint"]
        image_server.publish(newer_image, "20260102_0700")
        return str(old)

    old = prepare()
    assert killed.do("POST", f"/1.0/images/{old}/refresh")["refreshed"]
    (new,) = consistent(killed)
    for point in POINTS:
        prepare()
        with faults.kill_at(killed, point):
            killed.do("POST", f"/1.0/images/{old}/refresh")
        target = killed.get("/1.0/images/aliases/mine")["target"]
        assert target in consistent(killed), point
        if target == old:
            killed.do("POST", f"/1.0/images/{old}/refresh")
        assert consistent(killed) == [new], point
        assert killed.get("/1.0/images/aliases/mine")["target"] == new
    killed.do("DELETE", f"/1.0/images/{new}")
