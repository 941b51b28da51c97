"""Moves of running instances with a planned downtime: completed, given up, and interrupted at any moment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.client import command, environment, utsuwa_client
from tests.support.crash_steps import patiently
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image
from tests.support.long import usually
from tests.support.netbox import until
from tests.support.servers import Servers, servers
from tests.support.terminal import run_in_terminal

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def module_servers(module_daemon: Daemon, busybox_image: Image, faults: Faults) -> Iterator[Servers]:
    """Two servers, of which `far` has fault points."""
    with servers(module_daemon, busybox_image, env=faults.env) as found:
        yield found


@pytest.fixture
def both(module_servers: Servers) -> Iterator[Servers]:
    yield module_servers
    module_servers.clean()


def client_env(both: Servers) -> dict[str, str]:
    return {"UTSUWA_CONF": str(both.near.conf)}


def move(both: Servers, *words: str, check: bool = True) -> str:
    """Run `utsuwa move`; return stdout, or without `check` stderr."""
    ended = utsuwa_client(both.near, "move", *words, check=check, env=client_env(both), timeout=120)
    return ended.stdout if check else ended.stderr


def start_client(both: Servers, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    env = environment(both.near) | client_env(both)
    return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=os.sep)


def status(daemon: Daemon, name: str = "c1") -> str:
    """Return the status of an instance, empty if there is none."""
    found = {one["name"]: one["status"] for one in daemon.get("/1.0/instances?recursion=1")}
    return str(found.get(name, ""))


def settled(daemon: Daemon) -> None:
    """Wait until no operation is running."""
    patiently(lambda: idle(daemon))


def idle(daemon: Daemon) -> None:
    running = daemon.get("/1.0/operations?recursion=1").get("running", [])
    assert [operation["description"] for operation in running] == []


def last_power(daemon: Daemon) -> str:
    return str(daemon.get("/1.0/instances/c1")["config"]["volatile.last_state.power"])


@pytest.mark.parametrize("mode", usually(["push"], ["pull", "push", "relay"]))
def test_a_running_instance_is_moved_and_runs_on_the_target(both: Servers, faults: Faults, mode: str) -> None:
    """With its identity and snapshots, and with what was written last."""
    both.lxc("launch", "far:busybox", "far:c1", "--ephemeral")
    both.lxc("snapshot", "far:c1", "first")
    before = both.far.get("/1.0/instances/c1")
    late = both.far.dir / "containers" / "c1" / "layer" / "upper" / "late"
    argv = command("move", "far:c1", "near:c2", "--planned-downtime", "--mode", mode)
    with faults.hold_at("stopped for handover"):
        client = start_client(both, argv)
        faults.wait_for("stopped for handover")
        late.write_text("in the last moment")
    said = client.communicate(timeout=60)[0].decode()
    assert client.returncode == 0
    assert "Expected downtime of c1: " in said
    assert "Downtime of c1: " in said
    assert (status(both.far), status(both.near, "c2")) == ("", "Running")
    after = both.near.get("/1.0/instances/c2")
    for key in ("volatile.eth0.hwaddr", "volatile.cloud-init.instance-id"):
        assert after["config"][key] == before["config"][key]
    assert after["ephemeral"]
    assert both.near.get("/1.0/instances/c2/snapshots") == ["/1.0/instances/c2/snapshots/first"]
    assert both.near.lxc("exec", "c2", "--", "cat", "/late").stdout == "in the last moment"


def test_the_user_is_told_why_and_asked(both: Servers) -> None:
    both.lxc("launch", "busybox", "c1")
    assert "use --planned-downtime" in move(both, "near:c1", "far:", check=False)
    env = environment(both.near) | client_env(both)
    for answer, code in (("no", 1), ("yes", 0)):
        typed = [("(yes/no)", f"{answer}\r")]
        ended, screen = run_in_terminal(command("move", "near:c1", "far:"), env=env, typed=typed, timeout=60)
        assert ended == code, screen
        assert "cannot be moved while it runs" in screen
        assert "Expected downtime of c1: " in screen
        settled(both.near)
        settled(both.far)
        states = ("", "Running") if answer == "yes" else ("Running", "")
        assert (status(both.near), status(both.far)) == states


def test_what_cannot_be_handed_over_runs_on(both: Servers) -> None:
    both.lxc("init", "busybox", "c1")
    assert "is for running instances" in move(both, "near:c1", "far:", "--planned-downtime", check=False)
    both.lxc("start", "c1")
    both.lxc("config", "set", "c1", "security.protection.delete", "true")
    assert "is protected" in move(both, "near:c1", "far:", "--planned-downtime", check=False)
    body = {"migration": True, "planned_downtime": True}
    assert both.near.api("POST", "/1.0/instances/c1", body).status == 403
    both.lxc("config", "unset", "c1", "security.protection.delete")
    both.lxc("pause", "c1")
    assert both.near.api("POST", "/1.0/instances/c1", body).status == 400
    both.lxc("start", "c1")
    deaf = ("config", "set", "c1", "raw.lxc", "lxc.signal.halt=SIGURG")
    both.lxc(*deaf)
    both.lxc("config", "set", "c1", "boot.host_shutdown_timeout", "1")
    both.lxc("restart", "c1", "--force")
    assert "did not stop in time" in move(both, "near:c1", "far:", "--planned-downtime", check=False)
    settled(both.far)
    assert (status(both.near), status(both.far)) == ("Running", "")


def test_the_source_runs_again_if_the_target_cannot_start_it(both: Servers, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\ncase "$LXC_CONFIG_FILE" in {both.far.dir}/*) exit 1; esac\n')
    hook.chmod(0o755)
    tmp_path.chmod(0o755)
    both.lxc("launch", "busybox", "c1", "-c", f"raw.lxc=lxc.hook.pre-start={hook}")
    assert "Failed to start the container" in move(both, "near:c1", "far:", "--planned-downtime", check=False)
    assert (status(both.near), status(both.far)) == ("Running", "")
    both.lxc("exec", "near:c1", "true")


def test_a_target_that_is_killed_before_it_starts_it(both: Servers, faults: Faults) -> None:
    """The client asks it when it is there again, and has the source start it."""
    both.lxc("launch", "busybox", "c1")
    argv = command("move", "near:c1", "far:", "--planned-downtime")
    with faults.kill_at(both.far, "waiting for handover"):
        client = start_client(both, argv)
        faults.wait_for("waiting for handover")
    client.communicate(timeout=60)
    assert client.returncode != 0
    assert (status(both.near), status(both.far)) == ("Running", "")


def test_a_target_that_is_killed_when_it_has_started_it(both: Servers, faults: Faults) -> None:
    """The source does not know, and leaves it stopped, also when it is started again itself."""
    both.lxc("launch", "busybox", "c1", "-c", "boot.autostart=true")
    argv = command("move", "near:c1", "far:", "--planned-downtime")
    with faults.kill_at(both.far, "taken over"):
        client = start_client(both, argv)
        faults.wait_for("taken over")
        client.kill()
        client.communicate()
    settled(both.near)
    both.near.restart()
    assert (status(both.near), status(both.far)) == ("Stopped", "Running")
    assert last_power(both.near) == "MOVED"
    both.lxc("delete", "near:c1")


@pytest.mark.parametrize("point", ["migration agreed", "stopped for handover"])
def test_a_source_that_is_killed_before_the_handover_runs_it(
    both: Servers, faults: Faults, point: str
) -> None:
    both.lxc("launch", "far:busybox", "far:c1")
    with faults.kill_at(both.far, point):
        move(both, "far:c1", "near:", "--planned-downtime", check=False)
    settled(both.near)
    until(lambda: status(both.far) == "Running")
    assert status(both.near) == ""


def test_a_source_that_is_killed_at_the_handover_does_not_start_it(both: Servers, faults: Faults) -> None:
    both.lxc("launch", "far:busybox", "far:c1", "-c", "boot.autostart=true")
    with faults.kill_at(both.far, "handed over"):
        move(both, "far:c1", "near:", "--planned-downtime", check=False)
    settled(both.near)
    assert (status(both.near), status(both.far)) == ("", "Stopped")
    assert last_power(both.far) == "MOVED"
    both.lxc("start", "far:c1")
    assert last_power(both.far) == "RUNNING"


@pytest.mark.parametrize("mode", ["pull", "relay"])
def test_a_client_that_is_killed_during_the_downtime(both: Servers, faults: Faults, mode: str) -> None:
    """The servers complete the move without it; if it has relayed the files, the source runs again."""
    both.lxc("launch", "far:busybox", "far:c1")
    argv = command("move", "far:c1", "near:", "--planned-downtime", "--mode", mode)
    with faults.hold_at("stopped for handover"):
        client = start_client(both, argv)
        faults.wait_for("stopped for handover")
        client.kill()
        client.communicate()
    settled(both.far)
    settled(both.near)
    states = ("", "Running") if mode == "pull" else ("Running", "")
    assert (status(both.far), status(both.near)) == states
