"""Fixtures for all tests, based on `tests/support`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support import guards, images, isolation, workers
from tests.support.daemon import Daemon
from tests.support.long import LONG
from tests.support.postgres import PostgresServer
from utsuwa.db.postgres import Postgres

UNIT, SYSTEM = (Path(__file__).parent / name for name in ("unit", "system"))
collect_ignore = [] if "UTSUWA_STOCK_HOST" in os.environ else ["stock"]
"""The tests of a stock host run alone: `scripts/test --stock-host`."""

# Tests share the processors with those of other workers, so no example has a deadline.
settings.register_profile("usual", deadline=None)
settings.load_profile("usual")
settings.register_profile("many", max_examples=5000, deadline=None)
"""For a longer search: `scripts/test --hypothesis-profile=many --timeout=0 tests/unit`."""


SHARED = pytest.StashKey[Path]()
"""A folder that the workers of this run have in common."""


def pytest_configure(config: pytest.Config) -> None:
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is not None:
        config.stash[SHARED] = Path(worker["shared"])
    else:
        shared = config.stash[SHARED] = Path(tempfile.mkdtemp(prefix="utsuwa-tests-"))
        config.add_cleanup(lambda: shutil.rmtree(shared))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist, in the process that controls the workers."""
    node.workerinput["shared"] = str(node.config.stash[SHARED])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Exclude waiting for other workers from the test's timeout."""
    with workers.turn(item.config.stash[SHARED], alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Enter separate network and mount namespaces before the fixtures of system tests."""
    if item.path.is_relative_to(SYSTEM) and os.geteuid() == 0:
        isolation.enter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip root tests for other users and long tests in short runs; Debian images take long to build."""
    for item in items:
        if item.get_closest_marker("long") and not LONG:
            item.add_marker(pytest.mark.skip(reason="takes long: scripts/test --long"))
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if item.get_closest_marker("debian") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(autouse=True)
def _guards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reject processes (without the marker `processes`) and blocked event loops in unit tests."""
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
    """`make_daemon(env={...}, arguments=(...))`: one not started yet, whose start is that of users; the test
    calls `close()` itself and asserts that the list of problems is empty, or better takes one of the fixtures
    below."""
    return partial(Daemon, warm=False)


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
    """A running daemon in its initial state: no pool, an empty default profile."""
    yield from _serve(defaults=False)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A running daemon for a single test, with the pool `default` (overlay) and a usable default profile."""
    yield from _serve(defaults=True)


@pytest.fixture(scope="module")
def module_daemon() -> Iterator[Daemon]:
    """As `daemon`, for all tests of a module."""
    yield from _serve(defaults=True)


@pytest.fixture
def shared_daemon(module_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon; remaining instances are deleted after each test."""
    yield module_daemon
    module_daemon.delete_instances()


# ---- databases


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, on which tests create their databases."""
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
def busybox_image(pytestconfig: pytest.Config) -> images.Image:
    """Files of a busybox image, unified and split; shared by all workers, so read-only."""
    folder = workers.once(pytestconfig.stash[SHARED], "busybox", images.build_busybox)
    return images.busybox_in(folder)


@pytest.fixture(scope="session")
def debian_image() -> images.Image:
    """Files of a Debian 12 image with systemd, which is cached, as building it takes a minute."""
    return images.debian()


@pytest.fixture(scope="session")
def cloud_image() -> images.Image:
    """The same with cloud-init."""
    return images.debian_with_cloud_init()


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
