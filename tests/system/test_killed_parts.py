"""What a daemon works with is killed: a container's monitor, in every state, dnsmasq, and the helper."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leaks
from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.networks import create, dnsmasq_pid, launch, lease
from utsuwa.core.paths import StatePaths
from utsuwa.daemon.app import owner_name
from utsuwa.host import lxc
from utsuwa.networks.drivers.bridge import lease_file

pytestmark = pytest.mark.root

PATIENCE = 30.0


@pytest.fixture(scope="module")
def module_net(busybox_image: Image) -> Iterator[Daemon]:
    with boxed_daemon() as daemon:
        daemon.do("PATCH", "/1.0/profiles/default", {"devices": {"eth0": {"type": "none"}}})
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        create(daemon, "br", ipv4_address="10.77.0.1/24", ipv6_address="none")
        yield daemon


@pytest.fixture
def net(module_net: Daemon) -> Iterator[Daemon]:
    yield module_net
    module_net.delete_instances()


def until(condition: Any, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


# ---- monitors


def change_state(daemon: Daemon, action: str, **more: object) -> str:
    """The operation's error, empty where it succeeds."""
    reply = daemon.api("PUT", "/1.0/instances/c1/state", {"action": action, **more})
    return str(daemon.wait(reply)["err"]) if reply.status == 202 else reply.error


def status(daemon: Daemon) -> str:
    return str(daemon.get("/1.0/instances/c1")["status"])


def liblxc_processes(daemon: Daemon) -> list[int]:
    return lxc.active(daemon.dir / "containers").get("c1", [])


def kill_monitor(daemon: Daemon) -> None:
    pids = liblxc_processes(daemon)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def remains(daemon: Daemon) -> list[str]:
    """What is there of a container that does not run."""
    box = daemon.box
    assert box is not None
    owner = owner_name(StatePaths(daemon.dir))
    found = [f"cgroup {path}" for top in leaks.cgroups_of(owner) for path in Path(top).glob("lxc.*.c1*")]
    found += [f"mount {m}" for m in leaks.mounts_below(daemon.home, box.pid) if "/containers/" in m]
    found += [f"interface {name}" for name in box.links() if name.startswith("veth")]
    found += [f"monitor {pid}" for pid in liblxc_processes(daemon)]
    return found


def check_that_it_starts_again(daemon: Daemon) -> None:
    """Found stopped with nothing left over; it runs again, with its files, and stops."""
    until(lambda: status(daemon) == "Stopped")
    assert remains(daemon) == []
    assert change_state(daemon, "start") == ""
    assert daemon.lxc("exec", "c1", "--", "cat", "/root/mark").stdout == "here\n"
    assert change_state(daemon, "stop", force=True) == ""
    assert remains(daemon) == []


@pytest.fixture
def c1(net: Daemon) -> int:
    """The pid of the init of a running container."""
    launch(net, "c1", "br", dhcp=False)
    net.lxc("exec", "c1", "--", "sh", "-c", "echo here >/root/mark; sleep 600 >/dev/null 2>&1 &")
    return int(net.get("/1.0/instances/c1/state")["pid"])


def gone(pid: int) -> bool:
    return not Path("/proc", str(pid)).exists()


@pytest.mark.parametrize("daemon_is", ["there", "away"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_monitor_of_one_that_runs(net: Daemon, c1: int, frozen: bool, daemon_is: str) -> None:
    if frozen:
        assert change_state(net, "freeze") == ""
    if daemon_is == "away":
        net.kill()
    kill_monitor(net)
    if daemon_is == "away":
        net.start()
    until(lambda: gone(c1))
    if frozen:  # the kernel kills it, which it does not notice as long as it is frozen
        assert "killing its processes" in net.log.read_text()
    check_that_it_starts_again(net)


def test_the_monitor_of_one_that_stops(net: Daemon, c1: int) -> None:
    """It was asked to, and takes its time."""
    net.lxc("exec", "c1", "--", "sh", "-c", "echo '::shutdown:/bin/sleep 600' >>/etc/inittab; kill -HUP 1")
    errors: list[str] = []
    stopping = threading.Thread(target=lambda: errors.append(change_state(net, "stop", timeout=60)))
    stopping.start()
    until(lambda: "/bin/sleep 600" in net.lxc("exec", "c1", "--", "ps").stdout)
    assert status(net) == "Running"
    kill_monitor(net)
    stopping.join(30)
    assert errors == [""]
    net.lxc("start", "c1")
    net.lxc("exec", "c1", "--", "sed", "-i", "/shutdown/d", "/etc/inittab")
    assert change_state(net, "stop", force=True) == ""
    check_that_it_starts_again(net)


@pytest.mark.parametrize("daemon_is", ["there", "away"])
def test_the_monitor_of_one_that_starts(net: Daemon, c1: int, tmp_path: Path, daemon_is: str) -> None:
    assert change_state(net, "stop", force=True) == ""
    hook, here = tmp_path / "hook", tmp_path / "here"
    hook.write_text(f"#!/bin/sh\ntouch {here}\nexec sleep 1\n")
    hook.chmod(0o755)
    net.do("PATCH", "/1.0/instances/c1", {"config": {"raw.lxc": f"lxc.hook.pre-start = {hook}"}})
    errors: list[str] = []

    def start() -> None:
        try:
            errors.append(change_state(net, "start"))
        except OSError:
            errors.append("the daemon was killed")

    starting = threading.Thread(target=start)
    starting.start()
    until(here.exists)
    if daemon_is == "away":
        net.kill()
    kill_monitor(net)
    starting.join(30)
    assert errors != [""]
    if daemon_is == "away":
        net.start()
    assert status(net) == "Stopped"
    net.do("PATCH", "/1.0/instances/c1", {"config": {"raw.lxc": ""}})
    check_that_it_starts_again(net)


# ---- dnsmasq


def test_dnsmasq_is_restarted_with_its_leases(net: Daemon) -> None:
    address = launch(net, "c1", "br")
    old, file = dnsmasq_pid(net, "br"), net.dir / "networks" / "br" / "dnsmasq.leases"
    known = [(lease.mac, lease.address) for lease in lease_file.parse(file.read_text(), time.time())]
    assert address in dict(known).values()
    os.kill(old, signal.SIGKILL)

    def back() -> bool:
        try:
            return dnsmasq_pid(net, "br") != old
        except (OSError, ValueError):
            return False

    until(back)
    assert "dnsmasq of network 'br' has ended: restarting it" in net.log.read_text()
    assert [(lease.mac, lease.address) for lease in lease_file.parse(file.read_text(), time.time())] == known
    assert lease(net, "c1") == address
    assert launch(net, "c2", "br") != address
    net.lxc("exec", "c2", "--", "ping", "-c1", "-W3", "c1")


# ---- the helper


def test_a_killed_helper_is_replaced_and_commands_run_on(net: Daemon) -> None:
    launch(net, "c1", "br", dhcp=False)
    script = ": >/begun; while ! [ -e /go ]; do sleep 0.1; done; exit 7"
    command = {"command": ["sh", "-c", script], "wait-for-websocket": False}
    running = net.api("POST", "/1.0/instances/c1/exec", command)
    until(lambda: net.lxc("exec", "c1", "--", "test", "-e", "/begun", check=False).returncode == 0)
    (helper,) = helpers(net)
    os.kill(helper, signal.SIGKILL)  # a request that it gets before it has ended fails
    until(lambda: "the container helper ended with status -9" in net.log.read_text())
    assert net.lxc("exec", "c1", "--", "sh", "-c", ": >/go; echo on").stdout == "on\n"
    assert helpers(net) != [helper]
    assert net.wait(running)["metadata"]["return"] == 7


def helpers(daemon: Daemon) -> list[int]:
    """The helper itself; its workers are its children."""
    children = Path(f"/proc/{daemon.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if b"host/helper" in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    """Return that of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
