"""`security.protection.shift`: an instance does not start where owners of its files would change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image

pytestmark = pytest.mark.root

PROTECTED = {"security.protection.shift": "true"}


@pytest.fixture(params=["without idmapped mounts", "with idmapped mounts"])
def daemon_and_mapped(request: pytest.FixtureRequest, busybox_image: Image) -> Iterator[tuple[Daemon, bool]]:
    """A daemon with the image `busybox` on a pool of directories, and whether its mounts are idmapped."""
    mapped = request.param == "with idmapped mounts"
    daemon = Daemon(env={} if mapped else {"UTSUWA_IDMAPPED_MOUNTS_DISABLE": "1"})
    try:
        daemon.start()
        daemon.make_defaults("dir")
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        yield daemon, mapped
    finally:
        problems = daemon.close()
    assert problems == []


def start(daemon: Daemon) -> str:
    """Start the instance and stop it again; return the error, if any."""
    ended = daemon.wait(daemon.api("PUT", "/1.0/instances/c1/state", {"action": "start"}))
    if not ended["err"]:
        daemon.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    return str(ended["err"])


def configure(daemon: Daemon, **config: str) -> None:
    keys = {f"security.{key}": value for key, value in config.items()}
    daemon.do("PATCH", "/1.0/instances/c1", {"config": keys})


def test_the_id_map_of_a_protected_instance_stays(daemon_and_mapped: tuple[Daemon, bool]) -> None:
    daemon, mapped = daemon_and_mapped
    source = {"type": "image", "alias": "busybox"}
    daemon.do("POST", "/1.0/instances", {"name": "c1", "source": source})
    assert start(daemon) == ""
    daemon.do("PATCH", "/1.0/instances/c1", {"config": PROTECTED})
    assert start(daemon) == ""
    configure(daemon, privileged="true")
    refused = start(daemon)
    assert ("is protected against shifting the owners of its files" in refused) is not mapped
    file = daemon.api("GET", "/1.0/instances/c1/files?path=/etc/passwd")
    assert file.status == (200 if mapped else 400)
    configure(daemon, privileged="false")
    assert start(daemon) == ""
    daemon.do("PATCH", "/1.0/instances/c1", {"config": {"security.protection.shift": ""}})
    configure(daemon, privileged="true")
    assert start(daemon) == ""
