"""Containers outlive their daemon, and a new one finds them again."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.system.test_lxc_instances import status, until

pytestmark = pytest.mark.root


@pytest.fixture
def c1(daemon: Daemon, busybox_image: Image) -> str:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    daemon.lxc("launch", "busybox", "c1")
    return "c1"


def crash(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()


@pytest.mark.parametrize("bounce", [Daemon.restart, crash])
def test_they_run_on(daemon: Daemon, c1: str, bounce: Callable[[Daemon], None]) -> None:
    daemon.lxc("exec", c1, "--", "touch", "/root/before")
    pid = daemon.get(f"/1.0/instances/{c1}/state")["pid"]
    bounce(daemon)
    assert daemon.get(f"/1.0/instances/{c1}/state")["pid"] == pid
    assert daemon.lxc("exec", c1, "--", "ls", "/root").stdout == "before\n"
    daemon.lxc("stop", c1, "--force")
    daemon.lxc("start", c1)
    assert daemon.lxc("exec", c1, "--", "ls", "/root").stdout == "before\n"


def test_instance_killed_while_the_daemon_is_down_is_stopped(daemon: Daemon, c1: str) -> None:
    pid = daemon.get(f"/1.0/instances/{c1}/state")["pid"]
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    daemon.start()
    until(lambda: status(daemon, c1) == "Stopped")  # it may still be ending
    daemon.lxc("start", c1)
    assert status(daemon, c1) == "Running"


def test_instance_rebooted_while_the_daemon_is_down_runs(daemon: Daemon, c1: str) -> None:
    pid = daemon.get(f"/1.0/instances/{c1}/state")["pid"]
    daemon.kill()
    os.kill(pid, signal.SIGTERM)  # busybox's init reboots

    def gone() -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return False
        return True

    until(gone, 20)
    daemon.start()
    until(lambda: status(daemon, c1) == "Running")
    assert daemon.get(f"/1.0/instances/{c1}/state")["pid"] not in (0, pid)


def test_sigpwr_stops_containers_and_the_next_start_starts_them(daemon: Daemon, c1: str) -> None:
    pid = daemon.get(f"/1.0/instances/{c1}/state")["pid"]
    assert daemon.stop(signal.SIGPWR) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    daemon.start()
    until(lambda: status(daemon, c1) == "Running")


def test_boot_autostart_false_keeps_instances_stopped(daemon: Daemon, c1: str) -> None:
    daemon.lxc("config", "set", c1, "boot.autostart", "false")
    assert daemon.stop(signal.SIGPWR) == 0
    daemon.start()
    assert status(daemon, c1) == "Stopped"


def test_two_daemons_cannot_share_a_folder(daemon: Daemon) -> None:
    second = Daemon()
    try:
        second.dir, second.socket = daemon.dir, daemon.socket
        second.start(wait=False)
        assert second.process is not None
        assert second.process.wait(20) != 0
        second.process = None
        assert str(daemon.dir) in second.log_tail()
        assert daemon.get("/1.0")["api_version"] == "1.0"
    finally:
        second.faults_expected = True
        assert second.close() == []
