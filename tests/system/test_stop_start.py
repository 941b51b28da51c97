"""What stops a container, and who wins where several requests disagree: signals of its own, hung restarts."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import images
from tests.support.api import Reply
from tests.support.daemon import Daemon
from tests.support.long import amount
from tests.support.netbox import until

pytestmark = pytest.mark.root

DEAF = """#!/bin/sh
for number in 1 2 3 10 12 15 30 37; do trap '' $number; done
while :; do sleep 1; done
"""
LISTENS = """#!/bin/sh
trap 'echo heard USR1; exit 0' USR1
trap 'echo heard USR2; exit 0' USR2
trap 'echo heard 39; exit 0' 39
trap 'echo heard PWR' PWR
while :; do sleep 0.05; done
"""
REBOOTS = """#!/bin/sh
sleep 0.1
reboot -f
"""


@pytest.fixture(scope="module")
def own_inits(module_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Images whose inits ignore all signals, listen to some, or reboot at once."""
    folder = tmp_path_factory.mktemp("inits")
    for name, init in (("deaf", DEAF), ("listens", LISTENS), ("reboots", REBOOTS)):
        module_daemon.import_image(images.build_with_init(folder, name, init), alias=name)


@pytest.fixture
def daemon_with_inits(shared_daemon: Daemon, own_inits: None) -> Daemon:
    return shared_daemon


def launch(daemon: Daemon, image: str, name: str = "c1", **more: object) -> None:
    source = {"type": "image", "alias": image}
    daemon.do("POST", "/1.0/instances", {"name": name, "source": source, "start": True, **more})


def change(daemon: Daemon, action: str, name: str = "c1", **more: object) -> Reply:
    return daemon.api("PUT", f"/1.0/instances/{name}/state", {"action": action, **more})


def error(daemon: Daemon, reply: Reply) -> str:
    return str(daemon.wait(reply)["err"])


def status(daemon: Daemon, name: str = "c1") -> str:
    return str(daemon.get(f"/1.0/instances/{name}")["status"])


def console(daemon: Daemon, name: str = "c1") -> list[str]:
    return daemon.api("GET", f"/1.0/instances/{name}/console").body.decode().split("\r\n")[:-1]


def rootfs(daemon: Daemon) -> Path:
    return daemon.dir / "storage-pools/default/containers/c1/rootfs"


def is_marked(daemon: Daemon) -> bool:
    """Whether the files are still mounted as when the mount was marked, by an option of that mount."""
    return bool(os.statvfs(rootfs(daemon)).f_flag & os.ST_NOATIME)


def is_waiting(reply: Reply, daemon: Daemon) -> bool:
    """Whether a graceful operation has come so far that its container was asked to end."""
    time.sleep(0.3)
    return bool(daemon.get(reply.operation)["status"] == "Running")


# ---- signals of its own


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        ("lxc.signal.halt=SIGUSR2", "USR2"),
        ("lxc.signal.halt = 12", "USR2"),
        ("lxc.signal.halt = SIGRTMIN+5", "39"),
        ("lxc.signal.halt = SIGUSR1\nlxc.signal.halt = SIGUSR2", "USR2"),
    ],
)
def test_a_stop_sends_the_halt_signal_of_raw_lxc(daemon_with_inits: Daemon, line: str, heard: str) -> None:
    """Every spelling that liblxc takes, the last line counts (lxd#5592)."""
    d = daemon_with_inits
    launch(d, "listens", config={"raw.lxc": line})
    assert error(d, change(d, "stop", timeout=20)) == ""
    assert console(d) == [f"heard {heard}"]


def test_the_halt_signal_may_come_from_a_profile(daemon_with_inits: Daemon) -> None:
    d = daemon_with_inits
    profile = {"name": "usr2", "config": {"raw.lxc": "lxc.signal.halt=SIGUSR2"}}
    d.do("POST", "/1.0/profiles", profile)
    launch(d, "listens", profiles=["default", "usr2"])
    assert error(d, change(d, "stop", timeout=20)) == ""
    d.do("DELETE", "/1.0/instances/c1")
    d.do("DELETE", "/1.0/profiles/usr2")


def test_a_running_container_keeps_the_signal_that_it_was_started_with(daemon_with_inits: Daemon) -> None:
    d = daemon_with_inits
    launch(d, "listens", config={"raw.lxc": "lxc.signal.halt=SIGUSR2"})
    d.do("PATCH", "/1.0/instances/c1", {"config": {"raw.lxc": "lxc.signal.halt=SIGUSR1"}})
    d.restart()
    assert error(d, change(d, "stop", timeout=20)) == ""
    assert console(d) == ["heard USR2"]


@pytest.mark.parametrize(
    ("lines", "heard"),
    [
        ("lxc.signal.reboot=SIGUSR1\nlxc.signal.halt=SIGUSR2", "USR1"),
        ("lxc.signal.halt=SIGUSR2", "USR2"),
    ],
)
def test_a_restart_sends_the_reboot_signal_or_the_halt_signal(
    daemon_with_inits: Daemon, lines: str, heard: str
) -> None:
    d = daemon_with_inits
    launch(d, "listens", config={"raw.lxc": lines})
    assert error(d, change(d, "restart", timeout=20)) == ""
    assert status(d) == "Running"
    old = d.dir / "logs" / "c1" / "console.log.old"
    assert old.read_bytes().split() == [b"heard", heard.encode()]


@pytest.mark.parametrize(("signal", "heard"), [("SIGUSR1", ["heard USR1"]), ("SIGHUP", [])])
def test_a_forced_stop_tries_the_stop_signal_and_kills(
    daemon_with_inits: Daemon, signal: str, heard: list[str]
) -> None:
    d = daemon_with_inits
    launch(d, "listens", config={"raw.lxc": f"lxc.signal.stop={signal}"})
    until(lambda: listens_to(d, 10))
    assert error(d, change(d, "stop", force=True)) == ""
    assert status(d) == "Stopped"
    assert console(d) == heard


def listens_to(daemon: Daemon, number: int) -> bool:
    pid = daemon.get("/1.0/instances/c1/state")["pid"]
    (caught,) = (
        int(line.split()[1], 16)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt")
    )
    return bool(caught >> (number - 1) & 1)


def test_the_end_of_the_host_sends_it_too(daemon: Daemon, tmp_path: Path) -> None:
    daemon.import_image(images.build_with_init(tmp_path, "listens", LISTENS), alias="listens")
    config = {"raw.lxc": "lxc.signal.halt=SIGUSR2", "boot.host_shutdown_timeout": "60"}
    launch(daemon, "listens", config=config)
    daemon.stop(30)  # SIGPWR
    assert (daemon.dir / "logs" / "c1" / "console.log").read_bytes() == b"heard USR2\r\n"
    daemon.start()
    until(lambda: status(daemon) == "Running")


# ---- who wins


@pytest.mark.parametrize("round", range(amount(3, long=20)))
def test_a_forced_stop_wins_over_a_hung_restart(daemon_with_inits: Daemon, round: int) -> None:
    """It stays stopped, and the restart ends with an error (lxd#17568)."""
    d = daemon_with_inits
    launch(d, "deaf")
    restart = change(d, "restart", timeout=-1)
    time.sleep(random.uniform(0, 0.4))
    assert error(d, change(d, "stop", force=True)) == ""
    assert status(d) == "Stopped"
    assert "is not started again" in error(d, restart)
    assert status(d) == "Stopped"
    assert d.get("/1.0/instances/c1")["config"]["volatile.last_state.power"] == "STOPPED"


@pytest.mark.parametrize("action", ["restart", "stop"])
def test_a_forced_deletion_wins(daemon_with_inits: Daemon, action: str) -> None:
    d = daemon_with_inits
    launch(d, "deaf")
    hung = change(d, action, timeout=-1)
    assert is_waiting(hung, d)
    d.lxc("delete", "--force", "c1")
    assert bool(error(d, hung)) == (action == "restart")
    assert d.get("/1.0/instances") == []


@pytest.mark.parametrize("action", ["restart", "stop"])
def test_a_hung_stop_or_restart_can_be_cancelled(daemon_with_inits: Daemon, action: str) -> None:
    """The container runs on, untouched, and counts as running."""
    d = daemon_with_inits
    launch(d, "deaf")
    before = d.get("/1.0/instances/c1/state")["pid"], d.get("/1.0/instances/c1")["config"]
    hung = change(d, action, timeout=-1)
    assert is_waiting(hung, d)
    assert d.get(hung.operation)["may_cancel"] is True
    assert d.api("DELETE", hung.operation).status == 200
    assert error(d, hung) == "The operation was cancelled"
    assert (d.get("/1.0/instances/c1/state")["pid"], d.get("/1.0/instances/c1")["config"]) == before
    assert d.do("POST", "/1.0/instances/c1/exec", {"command": ["true"]}) == {"return": 0}
    assert error(d, change(d, "restart", force=True)) == ""
    assert status(d) == "Running"


def test_forced_changes_cannot_be_cancelled(daemon_with_inits: Daemon) -> None:
    d = daemon_with_inits
    launch(d, "deaf")
    reply = change(d, "restart", force=True)
    assert reply.metadata["may_cancel"] is False
    assert error(d, reply) == ""


def test_a_forced_restart_wins_over_a_hung_one(daemon_with_inits: Daemon) -> None:
    d = daemon_with_inits
    launch(d, "deaf", ephemeral=True)
    hung = change(d, "restart", timeout=-1)
    assert is_waiting(hung, d)
    assert error(d, change(d, "restart", force=True)) == ""
    assert "is not started again" in error(d, hung)
    assert status(d) == "Running"


def test_stop_during_a_restart_deletes_an_ephemeral_instance(
    daemon_with_inits: Daemon,
) -> None:
    d = daemon_with_inits
    for _ in range(5):
        launch(d, "deaf", ephemeral=True)
        restart = change(d, "restart", timeout=-1)
        time.sleep(random.uniform(0, 0.3))
        assert error(d, change(d, "stop", force=True)) == ""
        assert d.get("/1.0/instances") == []
        assert error(d, restart)


def test_one_that_reboots_again_and_again_can_be_stopped(daemon_with_inits: Daemon) -> None:
    """Whenever the request comes: also between an end and the start that follows it."""
    d = daemon_with_inits
    launch(d, "reboots")
    for _ in range(15):
        time.sleep(random.uniform(0, 0.4))
        assert error(d, change(d, "stop", force=True)) == ""
        assert status(d) == "Stopped"
        time.sleep(0.2)
        assert status(d) == "Stopped"
        d.do("PUT", "/1.0/instances/c1/state", {"action": "start"})


def test_hung_restart_ends_with_one_error(daemon_with_inits: Daemon) -> None:
    d = daemon_with_inits
    launch(d, "deaf")
    restart = change(d, "restart", timeout=1)
    assert "utsuwa stop --force c1" in error(d, restart)
    assert status(d) == "Running"
    assert error(d, change(d, "stop", force=True)) == ""
    assert status(d) == "Stopped"


# ---- their files


def test_files_stay_mounted_for_a_restart_unless_the_id_map_changes(daemon_with_inits: Daemon) -> None:
    """A restart that is given up, at whatever time, leaves them unmounted."""
    d = daemon_with_inits
    launch(d, "deaf")
    subprocess.run(["mount", "-o", "remount,bind,noatime", rootfs(d)], check=True)
    assert error(d, change(d, "restart", force=True)) == ""
    assert is_marked(d)
    d.do("PATCH", "/1.0/instances/c1", {"config": {"security.privileged": "true"}})
    assert error(d, change(d, "restart", force=True)) == ""
    assert not is_marked(d)
    for _ in range(8):
        restart = change(d, "restart", force=True)
        time.sleep(random.uniform(0, 0.15))
        assert error(d, change(d, "stop", force=True)) == ""
        d.wait(restart)
        assert status(d) == "Stopped"
        assert not rootfs(d).is_mount()
        d.do("PUT", "/1.0/instances/c1/state", {"action": "start"})


# ---- frozen ones


@pytest.mark.parametrize(
    "ask",
    [
        lambda d: d.api("POST", "/1.0/instances/c1/exec", {"command": ["true"]}).error,
        lambda d: error(d, change(d, "stop", timeout=5)),
        lambda d: error(d, change(d, "restart", timeout=5)),
    ],
)
def test_a_refusal_for_a_frozen_one_names_the_command_that_resumes_it(
    daemon_with_inits: Daemon, ask: Callable[[Daemon], str]
) -> None:
    d = daemon_with_inits
    launch(d, "listens")
    d.lxc("pause", "c1")
    said = ask(d)
    assert "frozen" in said
    assert "`utsuwa start c1`" in said
    d.lxc("start", "c1")
    assert status(d) == "Running"
