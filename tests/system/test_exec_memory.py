"""What many commands leave in the daemon: no memory, no connections, no words in its log."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.long import usually
from tests.support.netbox import until
from tests.support.tls import free_address
from tests.system.test_lxc_https import PASSWORD, add_remote

pytestmark = pytest.mark.root

COMMANDS = 120
AT_ONCE = 10
ALLOWED = 1.3
"""How many times as much memory the daemon may have as at its start. Unbounded it were twice as much."""
REST_SECONDS = 90


def resident(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


@pytest.fixture
def near(shared_daemon: Daemon, busybox: str) -> Iterator[Daemon]:
    """A daemon that serves its container c1 over HTTPS to its own client, as far:c1."""
    address = free_address()
    for key, value in (("core.https_address", address), ("core.trust_password", PASSWORD)):
        shared_daemon.lxc("config", "set", key, value)
    add_remote(shared_daemon, address)
    shared_daemon.lxc("launch", busybox, "c1")
    yield shared_daemon
    shared_daemon.lxc("remote", "remove", "far")
    shared_daemon.lxc("config", "unset", "core.https_address")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", usually(["c1"], ["c1", "far:c1"]))
def test_commands_that_do_not_read_their_input(near: Daemon, target: str) -> None:
    """Each has a full buffer of input when it ends, for `true` reads nothing."""
    d = near
    d.lxc("exec", target, "--", "true")
    before = resident(d)
    command = ["lxc", "exec", target, "--", "true"]
    with Path("/dev/zero").open("rb") as zeros:
        for _ in range(0, COMMANDS, AT_ONCE):
            clients = [
                subprocess.Popen(command, env=d.lxc_environment(), stdin=zeros) for _ in range(AT_ONCE)
            ]
            assert [client.wait(60) for client in clients] == [0] * AT_ONCE
    until(lambda: resident(d) < before * ALLOWED, REST_SECONDS)
    assert "SSL connection is closed" not in d.log.read_text()
