"""A host whose dnsmasq is not there, or is taken away while networks are in use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.netbox import NetBox, until

pytestmark = pytest.mark.root

HIDE = """
mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work
mount -t overlay none -o lowerdir=/usr/sbin,upperdir=/mnt/upper,workdir=/mnt/work /usr/sbin
rm /usr/sbin/dnsmasq
"""


@contextmanager
def without_dnsmasq(box: NetBox) -> Iterator[None]:
    box.run("sh", "-ec", HIDE)
    try:
        yield
    finally:
        box.run("sh", "-ec", "umount /usr/sbin; umount /mnt")


def status(daemon: Daemon) -> str:
    return str(daemon.get("/1.0/networks/br")["status"])


def test_missing_dnsmasq_is_reported_and_retried() -> None:
    with boxed_daemon() as daemon:
        box = daemon.box
        assert box is not None
        links = box.links()
        with without_dnsmasq(box):
            refused = daemon.api("POST", "/1.0/networks", {"name": "br"})
            assert "dnsmasq: not found; install Debian's package 'dnsmasq-base'" in refused.error
            assert box.links() == links
            assert box.tables() == []
            assert list((daemon.dir / "networks").iterdir()) == []
        daemon.do("POST", "/1.0/networks", {"name": "br"})
        pid = int((daemon.dir / "networks/br/dnsmasq.pid").read_text())
        with without_dnsmasq(box):
            os.kill(pid, signal.SIGKILL)
            until(
                lambda: "dnsmasq of network 'br' does not start: dnsmasq: not found" in daemon.log.read_text()
            )
            daemon.restart()
            assert status(daemon) == "Unavailable"
        until(lambda: status(daemon) == "Created", 20)
        os.kill(int((daemon.dir / "networks/br/dnsmasq.pid").read_text()), 0)
