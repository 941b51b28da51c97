"""Fixtures of system tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support import images, pools
from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.disks import loop_ext4
from tests.support.faults import Faults
from tests.support.image_server import ImageServer, serving
from tests.support.images import Image
from tests.support.long import usually
from tests.support.networks import prepared
from tests.support.pools import WAYS, TestedPool, as_kernel_leaves_it, load, source
from tests.support.tls import Identity, make_identity
from utsuwa.core.image_source import ImageSource
from utsuwa.host.helper.client import Helper
from utsuwa.host.mounts import mounts
from utsuwa.host.mounts.userns import close_user_namespaces

USUAL = ("overlay", "overlay packed", "dir", "plain")
"""The ways of short runs: every driver, and of the default one both forms of images."""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archives of a small image: see `pools.make_files`."""
    return pools.make_files(tmp_path_factory.mktemp("image"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory for pools, below which nothing may be mounted at the end."""
    tmp_path.chmod(0o711)
    yield tmp_path
    mounts.unmount_below(tmp_path)
    close_user_namespaces()


@pytest.fixture(params=usually(USUAL, WAYS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way in which a driver may work: see `pools.WAYS`."""
    return as_kernel_leaves_it(request, monkeypatch)


@pytest.fixture
def pool(place: Path, way: str) -> TestedPool:
    """An empty pool of a way."""
    made = load(place / "pool", way)
    made.driver.create()
    return made


@pytest.fixture
def image(files: Path, way: str) -> ImageSource:
    """The small image in the form of a way."""
    return source(files, way)


@pytest.fixture
async def helper() -> AsyncIterator[Helper]:
    found = Helper()
    await found.start()
    yield found
    await found.close()


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """12 MB of ext4, which can be filled up."""
    with loop_ext4(place / "small", 12 << 20, "-O", "^has_journal") as folder:
        yield folder


@pytest.fixture(scope="module")
def dir_pool(module_daemon: Daemon) -> str:
    """The pool `dir` of the module's daemon, whose pool `default` has the driver `overlay`."""
    module_daemon.do("POST", "/1.0/storage-pools", {"name": "dir", "driver": "dir", "config": {}})
    return "dir"


@pytest.fixture(params=["default", "dir"])
def root_pool(request: pytest.FixtureRequest, dir_pool: str) -> str:
    """Each of the two pools, for the root disk of an instance."""
    return str(request.param)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """The fault points of a module's daemon."""
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def module_net(busybox_image: Image) -> Iterator[Daemon]:
    """A module's daemon in a network namespace, with the image `busybox`."""
    with boxed_daemon() as daemon:
        yield prepared(daemon, busybox_image)


@pytest.fixture(scope="session")
def image_identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("tls"), "images")


@pytest.fixture(scope="session")
def newer_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Another version of `busybox_image`."""
    return images.build_busybox(tmp_path_factory.mktemp("newer"), {"name": "newer"})


@pytest.fixture
def image_server(image_identity: Identity, busybox_image: Image) -> Iterator[ImageServer]:
    """An image server with the image `busybox`, of the version 20260101_0700."""
    with serving(image_identity) as found:
        found.publish(busybox_image, "20260101_0700")
        yield found
