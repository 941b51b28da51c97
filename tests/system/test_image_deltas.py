"""Images that are received as the difference to one that is here already, with real deltas of xdelta3."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.image_server import ImageServer
from tests.support.images import Image

pytestmark = pytest.mark.root

OLD, NEW = "20260101_0700", "20260102_0700"


def make_delta(base: Path, wanted: Path, folder: Path, *options: str) -> bytes:
    target = folder / "delta"
    command = ["xdelta3", "-e", "-f", "-q", *options, "-s", str(base), str(wanted), str(target)]
    subprocess.run(command, check=True, timeout=60)
    return target.read_bytes()


@pytest.fixture(scope="module")
def changed_image(
    busybox_image: Image, newer_image: Image, tmp_path_factory: pytest.TempPathFactory
) -> Image:
    """Another version, with one more file in its root file system."""
    folder = tmp_path_factory.mktemp("changed")
    shutil.copyfile(busybox_image.rootfs, folder / "rootfs.squashfs")
    (folder / "more").mkdir()
    (folder / "more" / "added").write_text("by the newer version\n")
    command = ["mksquashfs", str(folder / "more"), str(folder / "rootfs.squashfs"), "-no-progress", "-quiet"]
    subprocess.run(command, check=True, timeout=60)
    return Image(newer_image.metadata, folder / "rootfs.squashfs")


@pytest.fixture
def daemon(module_daemon: Daemon, image_server: ImageServer) -> Iterator[Daemon]:
    """A daemon with the old version of the image."""
    fetch(module_daemon, image_server)
    yield module_daemon
    module_daemon.delete_instances()
    for image in module_daemon.get("/1.0/images"):
        module_daemon.do("DELETE", image)


def fetch(daemon: Daemon, server: ImageServer) -> str:
    """Import the newest version; return its fingerprint."""
    for document in (daemon.dir / "cache").iterdir():
        document.unlink()
    metadata = daemon.do("POST", "/1.0/images", {"source": server.source("busybox")})
    return str(metadata["fingerprint"])


def transferred(server: ImageServer, since: int) -> int:
    """The bytes of the files of images that were requested."""
    return sum(len(server.files[path]) for path in server.requests[since:] if path.startswith("images/"))


@pytest.mark.parametrize("options", [(), ("-A=//G/",)])
def test_only_the_difference_is_transferred(
    daemon: Daemon,
    image_server: ImageServer,
    busybox_image: Image,
    changed_image: Image,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    """A delta that asks for a program which compresses the result does not get it."""
    wanted = image_server.publish(changed_image, NEW)
    data = make_delta(busybox_image.rootfs, changed_image.rootfs, tmp_path, *options)
    image_server.publish_delta(OLD, data)
    begin = len(image_server.requests)
    assert fetch(daemon, image_server) == wanted
    assert image_server.count("rootfs.squashfs") == 1  # that of the old version
    whole = changed_image.metadata.stat().st_size + changed_image.rootfs.stat().st_size
    assert 0 < transferred(image_server, begin) < whole / 10
    daemon.do("POST", "/1.0/instances", {"name": "c1", "source": {"type": "image", "fingerprint": wanted}})
    assert daemon.lxc("file", "pull", "c1/added", "-").stdout == "by the newer version\n"
    fingerprints = [url.rpartition("/")[2] for url in daemon.get("/1.0/images")]
    files = {path.name for path in (daemon.dir / "images").iterdir()}
    assert files == {*fingerprints, *(f"{fingerprint}.rootfs" for fingerprint in fingerprints)}


@pytest.mark.parametrize("wrong", ["other file", "other base", "no delta", "larger", "cut off"])
def test_otherwise_the_whole_file_is_received(
    daemon: Daemon,
    image_server: ImageServer,
    busybox_image: Image,
    changed_image: Image,
    tmp_path: Path,
    wrong: str,
) -> None:
    """With the reason in the log. The image is what it was announced to be."""
    base, other, large = (tmp_path / name for name in ("base", "other", "large"))
    base.write_bytes(busybox_image.rootfs.read_bytes()[::-1])
    other.write_bytes(changed_image.rootfs.read_bytes() + b"x")
    with large.open("wb") as file:
        file.truncate(2**25)
    right = busybox_image.rootfs, changed_image.rootfs
    pairs = {"other file": (right[0], other), "other base": (base, right[1]), "larger": (right[0], large)}
    data = make_delta(*pairs.get(wrong, right), tmp_path)
    data = {"no delta": b"not a delta", "cut off": data[:-5]}.get(wrong, data)
    wanted = image_server.publish(changed_image, NEW)
    path = image_server.publish_delta(OLD, data)
    assert fetch(daemon, image_server) == wanted
    assert path in image_server.requests
    assert image_server.count("rootfs.squashfs") == 2
    assert "the delta of an image is not used" in daemon.log_tail()
    assert not list((daemon.dir / "images").glob(".*"))


def test_deltas_from_images_that_are_not_here_are_not_requested(
    daemon: Daemon, image_server: ImageServer, busybox_image: Image, changed_image: Image, tmp_path: Path
) -> None:
    wanted = image_server.publish(changed_image, NEW)
    path = image_server.publish_delta(OLD, make_delta(busybox_image.rootfs, changed_image.rootfs, tmp_path))
    (old,) = daemon.get("/1.0/images")
    daemon.do("DELETE", old)
    assert fetch(daemon, image_server) == wanted
    assert path not in image_server.requests
