"""Fixtures of all tests; what they are made of lies in `tests/support`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import guards, images
from tests.support.daemon import Daemon
from tests.support.postgres import PostgresServer
from utsuwa.db.postgres import Postgres

UNIT = Path(__file__).parent / "unit"
collect_ignore = [] if "UTSUWA_STOCK_HOST" in os.environ else ["stock"]
"""The tests of a stock host run alone: `scripts/test --stock-host`."""

settings.register_profile("many", max_examples=5000)
"""For a longer search: `scripts/test --hypothesis-profile=many --timeout=0 tests/unit`."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "processes: a unit test that means to start real processes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Root tests are skipped for other users; a Debian test gets time for building the image."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if item.get_closest_marker("debian") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(autouse=True)
def _guards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Unit tests start no processes (marker `processes` lifts it) and block no event loop."""
    if not request.path.is_relative_to(UNIT):
        yield
    elif request.node.get_closest_marker("processes"):
        with guards.watch_loops():
            yield
    else:
        with guards.watch_loops(), guards.refuse_processes():
            yield


# ---- daemons


@pytest.fixture(scope="session")
def make_daemon() -> Callable[..., Daemon]:
    """`make_daemon(env={...}, arguments=(...))`: one not started yet; the test calls `close()` itself
    and asserts that the list of problems is empty, or better takes one of the fixtures below."""
    return Daemon


def _serve(defaults: bool) -> Iterator[Daemon]:
    daemon = Daemon()
    try:
        daemon.start()
        if defaults:
            daemon.make_defaults()
        yield daemon
    finally:
        problems = daemon.close()
    if problems:
        pytest.fail("\n".join(["the daemon left behind or did wrong:", *problems]), pytrace=False)


@pytest.fixture
def bare_daemon() -> Iterator[Daemon]:
    """A running daemon as it comes: no pool, an empty default profile."""
    yield from _serve(defaults=False)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A running daemon of the test's own with pool `default` (overlay) and a usable default profile."""
    yield from _serve(defaults=True)


@pytest.fixture(scope="module")
def module_daemon() -> Iterator[Daemon]:
    """As `daemon`, one for all tests of a module."""
    yield from _serve(defaults=True)


@pytest.fixture
def shared_daemon(module_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon; instances that the test leaves are deleted after it."""
    yield module_daemon
    module_daemon.delete_instances()


# ---- databases


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, for whoever makes databases of its own on it."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    """The URL of a database with the tables of this version, to be copied."""
    url = postgres.new_database()
    Postgres(url).prepare()
    return url


# ---- images


@pytest.fixture(scope="session")
def busybox_image(tmp_path_factory: pytest.TempPathFactory) -> images.Image:
    """Files of a busybox image, unified and split."""
    return images.build_busybox(tmp_path_factory.mktemp("busybox"))


@pytest.fixture(scope="session")
def debian_image() -> images.Image:
    """Files of a Debian 12 image with systemd; building it takes a minute, the result is kept."""
    return images.debian()


@pytest.fixture(scope="module")
def busybox(module_daemon: Daemon, busybox_image: images.Image) -> str:
    """The alias `busybox` in the module's daemon."""
    module_daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    return "busybox"


@pytest.fixture(scope="module")
def debian(module_daemon: Daemon, debian_image: images.Image) -> str:
    """The alias `debian/12` in the module's daemon."""
    module_daemon.import_image(debian_image.metadata, debian_image.rootfs, alias="debian/12")
    return "debian/12"
