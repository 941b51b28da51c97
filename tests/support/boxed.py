"""Daemons in network namespaces of their own, for tests that create networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image
from tests.support.netbox import NetBox


@contextmanager
def boxed_daemon(log: Path | None = None) -> Iterator[Daemon]:
    """Run a daemon with a pool and a usable default profile; fail if it leaves anything behind.

    `log` is the path of its log, by default next to the state directory.
    """
    box = NetBox()
    try:
        before = set(box.links())
        daemon = Daemon(box=box)
        daemon.log = log or daemon.log
        try:
            daemon.start()
            daemon.make_defaults()
            yield daemon
        finally:
            problems = daemon.close()
        problems += box.leaks(before)
        assert not problems, "\n".join(["the daemon left behind or did wrong:", *problems])
    finally:
        box.close()


@contextmanager
def daemon_with_faults(
    image: Image, faults: Faults, body: dict[str, Any], *networks: str
) -> Iterator[Daemon]:
    """Run a boxed daemon with fault points, and an instance created with `body`.

    The image has the alias `busybox`. Of `networks`, the first one has the subnet 10.77.0.0/24.
    """
    with boxed_daemon() as daemon:
        daemon.import_image(image.metadata, image.rootfs, alias="busybox")
        config = {"ipv4.address": "10.77.0.1/24", "ipv6.address": "none"}
        for name in networks:
            daemon.do("POST", "/1.0/networks", {"name": name, "config": config})
            config = {"ipv6.address": "none"}
        source = {"type": "image", "alias": "busybox"}
        daemon.do("POST", "/1.0/instances", {"source": source, **body})
        daemon.do("PUT", f"/1.0/instances/{body['name']}/state", {"action": "start"})
        daemon.env |= faults.env
        daemon.restart()
        yield daemon
