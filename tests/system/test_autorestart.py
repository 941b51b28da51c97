"""Containers that are started again when they end by themselves (`boot.autorestart`)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support import images
from tests.support.daemon import Daemon
from tests.support.netbox import until
from utsuwa.instances.lifecycle.autorestart import MAX_RESTARTS

pytestmark = pytest.mark.root

ENDS = """#!/bin/sh
sleep 0.3
"""


def pid_of(daemon: Daemon, name: str) -> int:
    return int(daemon.get(f"/1.0/instances/{name}/state")["pid"])


def status_of(daemon: Daemon, name: str) -> str:
    return str(daemon.get(f"/1.0/instances/{name}")["status"])


def restarted(daemon: Daemon, name: str, before: int) -> bool:
    now = pid_of(daemon, name)
    return now > 0 and now != before


def test_a_container_is_started_again_unless_it_was_stopped(shared_daemon: Daemon, busybox: str) -> None:
    daemon = shared_daemon
    daemon.lxc("launch", "busybox", "c1", "-c", "boot.autorestart=true")
    first = pid_of(daemon, "c1")
    os.kill(first, signal.SIGKILL)
    until(lambda: restarted(daemon, "c1", first))
    second = pid_of(daemon, "c1")
    daemon.lxc("exec", "c1", "--", "poweroff", "-f", check=False)
    until(lambda: restarted(daemon, "c1", second))
    daemon.lxc("stop", "c1")
    assert status_of(daemon, "c1") == "Stopped"
    daemon.lxc("start", "c1")
    daemon.lxc("stop", "c1", "--force")
    assert status_of(daemon, "c1") == "Stopped"


def test_one_that_ends_while_the_daemon_is_down_is_started_again(shared_daemon: Daemon, busybox: str) -> None:
    daemon = shared_daemon
    daemon.lxc("launch", "busybox", "c1", "-c", "boot.autorestart=true")
    daemon.lxc("launch", "busybox", "c2")
    first, other = pid_of(daemon, "c1"), pid_of(daemon, "c2")
    daemon.kill()
    for pid in (first, other):
        os.kill(pid, signal.SIGKILL)
    daemon.start()
    until(lambda: restarted(daemon, "c1", first))
    until(lambda: status_of(daemon, "c2") == "Stopped")  # it may still be ending


def test_one_that_always_ends_is_given_up_with_a_warning(
    shared_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> None:
    daemon = shared_daemon
    folder: Path = tmp_path_factory.mktemp("inits")
    daemon.import_image(images.build_with_init(folder, "ends", ENDS), alias="ends")
    daemon.lxc("launch", "ends", "c1", "-c", "boot.autorestart=true")

    def warnings() -> list[str]:
        found = daemon.get("/1.0/warnings?recursion=1")
        return [w["last_message"] for w in found if w["type"] == "An instance ends again and again"]

    until(lambda: bool(warnings()), 40)
    assert f"'c1' has ended unexpectedly more than {MAX_RESTARTS} times within 60 s" in warnings()[0]
    until(lambda: status_of(daemon, "c1") == "Stopped")
