"""The life of containers through Debian's `lxc` client."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.support.daemon import Daemon
from tests.support.monitor import heard
from tests.support.terminal import run_in_terminal

pytestmark = pytest.mark.root


def status(daemon: Daemon, name: str) -> str:
    return str(daemon.get(f"/1.0/instances/{name}")["status"])


def until(condition: object, seconds: float = 30) -> None:
    """Wait for a callable to become true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        late = time.monotonic() > deadline
        assert not late, "what was waited for did not happen"
        time.sleep(0.05)


@pytest.fixture
def c1(shared_daemon: Daemon, busybox: str) -> str:
    """A running container `c1`."""
    shared_daemon.lxc("launch", busybox, "c1")
    return "c1"


# ---- life


def test_launch_list_stop_start_delete(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    assert "Starting c1" in d.lxc("launch", busybox, "c1").stdout
    assert d.lxc("list", "--format", "csv", "-c", "nstS").stdout == "c1,RUNNING,CONTAINER,0\n"
    d.lxc("stop", "c1", "--force")
    assert d.lxc("list", "--format", "csv", "-c", "ns").stdout == "c1,STOPPED\n"
    d.lxc("start", "c1")
    refused = d.lxc("delete", "c1", check=False)
    assert refused.returncode != 0
    assert "running" in refused.stderr
    d.lxc("delete", "c1", "--force")
    assert d.lxc("list", "--format", "csv").stdout == ""


def test_a_second_one_shares_the_image_and_not_its_files(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "one")
    d.lxc("launch", busybox, "two")
    d.lxc("exec", "one", "--", "sh", "-c", "echo one > /root/mark")
    assert d.lxc("exec", "two", "--", "ls", "/root").stdout == ""
    assert d.lxc("exec", "one", "--", "cat", "/root/mark").stdout == "one\n"


def test_hostname_comes_from_the_template(shared_daemon: Daemon, c1: str) -> None:
    assert shared_daemon.lxc("exec", c1, "--", "cat", "/etc/hostname").stdout == "c1\n"
    assert shared_daemon.lxc("exec", c1, "--", "hostname").stdout == "c1\n"
    assert "127.0.1.1\tc1" in shared_daemon.lxc("exec", c1, "--", "cat", "/etc/hosts").stdout


def test_init_then_start(shared_daemon: Daemon, busybox: str) -> None:
    shared_daemon.lxc("init", busybox, "c1", "-c", "user.colour=blue")
    assert status(shared_daemon, "c1") == "Stopped"
    assert shared_daemon.lxc("config", "get", "c1", "user.colour").stdout == "blue\n"
    shared_daemon.lxc("start", "c1")
    assert status(shared_daemon, "c1") == "Running"


def test_an_instance_type_sets_the_limits_of_lxd(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1", "--type", "c0.5-m0.2", "-c", "limits.cpu=2")
    config = d.get("/1.0/instances/c1")["config"]
    limits = {key: value for key, value in config.items() if key.startswith("limits.")}
    assert limits == {"limits.cpu": "2", "limits.cpu.allowance": "50%", "limits.memory": "204MB"}


def test_the_pool_of_the_root_disk_cannot_be_overridden(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1")
    refused = d.lxc("config", "device", "override", "c1", "root", "pool=other", check=False)
    assert refused.returncode != 0
    assert refused.stderr.startswith("Error: Cannot update root disk device pool name to 'other'")
    assert d.get("/1.0/instances/c1")["devices"] == {}


def test_clean_stop_and_restart(shared_daemon: Daemon, c1: str) -> None:
    d = shared_daemon
    first = d.get(f"/1.0/instances/{c1}/state")["pid"]
    d.lxc("restart", c1, "--timeout", "20")
    assert d.get(f"/1.0/instances/{c1}/state")["pid"] not in (0, first)
    d.lxc("stop", c1, "--timeout", "20")
    assert status(d, c1) == "Stopped"


def test_forced_restart(shared_daemon: Daemon, c1: str) -> None:
    first = shared_daemon.get(f"/1.0/instances/{c1}/state")["pid"]
    shared_daemon.lxc("restart", c1, "--force")
    assert shared_daemon.get(f"/1.0/instances/{c1}/state")["pid"] not in (0, first)


def test_pause_and_resume(shared_daemon: Daemon, c1: str) -> None:
    d = shared_daemon
    d.lxc("pause", c1)
    assert d.lxc("list", "--format", "csv", "-c", "s").stdout == "FROZEN\n"
    d.lxc("start", c1)
    assert status(d, c1) == "Running"
    assert d.lxc("exec", c1, "--", "echo", "alive").stdout == "alive\n"


def test_a_paused_one_can_be_stopped_by_force(shared_daemon: Daemon, c1: str) -> None:
    shared_daemon.lxc("pause", c1)
    shared_daemon.lxc("stop", c1, "--force")
    assert status(shared_daemon, c1) == "Stopped"


def test_poweroff_and_reboot_from_inside(shared_daemon: Daemon, c1: str) -> None:
    d = shared_daemon
    first = d.get(f"/1.0/instances/{c1}/state")["pid"]
    d.lxc("exec", c1, "--", "reboot", check=False)
    until(lambda: d.get(f"/1.0/instances/{c1}/state")["pid"] not in (0, first), 20)
    assert status(d, c1) == "Running"
    d.lxc("exec", c1, "--", "poweroff", check=False)
    until(lambda: status(d, c1) == "Stopped", 20)


def test_rename(shared_daemon: Daemon, c1: str) -> None:
    d = shared_daemon
    assert d.lxc("rename", c1, "c2", check=False).returncode != 0  # it runs
    d.lxc("exec", c1, "--", "touch", "/root/mine")
    d.lxc("stop", c1, "--force")
    d.lxc("rename", c1, "c2")
    d.lxc("start", "c2")
    assert d.lxc("exec", "c2", "--", "ls", "/root").stdout == "mine\n"
    assert d.get("/1.0/instances") == ["/1.0/instances/c2"]


def test_ephemeral_instances_are_deleted_when_they_stop(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "brief", "--ephemeral")
    d.lxc("stop", "brief", "--force")
    until(lambda: d.get("/1.0/instances") == [])


def test_launch_refuses_bad_input(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    cases = {
        ("nothing", "c1"): "not found",
        (busybox, "-c1"): "",
        (busybox, "c_1"): "name",
        (busybox, "c1", "-c", "no.such=key"): "no.such",
        (busybox, "c1", "-c", "limits.processes=many"): "limits.processes",
        (busybox, "c1", "-p", "missing"): "missing",
        (busybox, "c1", "-s", "missing"): "missing",
    }
    for arguments, word in cases.items():
        refused = d.lxc("launch", *arguments, check=False)
        assert refused.returncode != 0, arguments
        assert word in refused.stderr.lower(), refused.stderr
    assert d.get("/1.0/instances") == []
    d.lxc("init", busybox, "c1")
    twice = d.lxc("init", busybox, "c1", check=False)
    assert "already exists" in twice.stderr or "already in use" in twice.stderr, twice.stderr


# ---- looking at it


def test_info_of_instance_and_server(shared_daemon: Daemon, c1: str) -> None:
    info = shared_daemon.lxc("info", c1).stdout
    assert re.search(r"^Status: RUNNING$", info, re.MULTILINE)
    assert int(re.findall(r"^PID: (\d+)$", info, re.MULTILINE)[0]) > 1
    assert re.search(r"Processes: [1-9]", info)
    assert "eth0:" in info
    server = yaml.safe_load(shared_daemon.lxc("info").stdout)
    assert server["api_version"] == "1.0"
    assert server["environment"]["server_pid"] == shared_daemon.pid


def test_state_counts_what_happens(shared_daemon: Daemon, c1: str) -> None:
    url = f"/1.0/instances/{c1}/state"
    before = shared_daemon.get(url)
    assert before["status"] == "Running"
    shared_daemon.lxc("exec", c1, "--", "sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
    after = shared_daemon.get(url)
    assert after["cpu"]["usage"] > before["cpu"]["usage"]
    assert after["processes"] >= 1
    assert after["memory"]["usage"] > 0
    assert after["network"]["eth0"]["hwaddr"].startswith("00:16:3e:")


def test_query(shared_daemon: Daemon, c1: str) -> None:
    assert json.loads(shared_daemon.lxc("query", "/1.0/instances").stdout) == ["/1.0/instances/c1"]
    missing = shared_daemon.lxc("query", "/1.0/instances/none", check=False)
    assert missing.returncode != 0
    assert "not found" in missing.stderr.lower()
    body = json.dumps({"config": {"user.by": "query"}})
    shared_daemon.lxc("query", "-X", "PATCH", "-d", body, f"/1.0/instances/{c1}", "--wait")
    assert shared_daemon.lxc("config", "get", c1, "user.by").stdout == "query\n"


def test_storage_is_listed_with_who_uses_it(shared_daemon: Daemon, c1: str) -> None:
    (row,) = shared_daemon.lxc("storage", "list", "--format", "csv").stdout.splitlines()
    assert row.startswith("default,overlay,")
    assert row.endswith(",CREATED")
    shown = yaml.safe_load(shared_daemon.lxc("storage", "show", "default").stdout)
    assert "/1.0/instances/c1" in shown["used_by"]
    assert "space used" in shared_daemon.lxc("storage", "info", "default").stdout


@contextlib.contextmanager
def background(daemon: Daemon, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The client in the background, ended at the end."""
    process = subprocess.Popen(
        ["lxc", *arguments],
        env=daemon.lxc_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_monitor_shows_what_happens(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    with background(d, "monitor", "--type", "lifecycle", "--format", "json") as monitor:
        lines = heard(d, monitor)
        d.lxc("init", busybox, "c1")
        d.lxc("start", "c1")
        d.lxc("delete", "c1", "--force")
        actions: list[str] = []
        while "instance-deleted" not in actions:
            event = json.loads(next(lines))
            assert event["type"] == "lifecycle"
            if event["metadata"]["source"].endswith("/c1"):
                actions.append(event["metadata"]["action"])
    assert actions[:2] == ["instance-created", "instance-started"]


def test_operations_are_listed_while_they_run(shared_daemon: Daemon, c1: str) -> None:
    d = shared_daemon
    with background(d, "exec", c1, "--", "sleep", "60"):

        def running() -> list[list[str]]:
            rows = d.lxc("operation", "list", "--format", "csv").stdout.splitlines()
            return [row.split(",") for row in rows if "RUNNING" in row]

        until(lambda: running() != [])
        (row,) = running()
        assert row[1] == "WEBSOCKET"
        assert "Executing command" in row[2]
        assert f"/1.0/instances/{c1}" in d.lxc("operation", "show", row[0]).stdout
    until(lambda: running() == [])
    assert "sleep" not in d.lxc("exec", c1, "--", "ps").stdout


# ---- config and profiles


def test_config_get_set_unset_show_edit(shared_daemon: Daemon, c1: str) -> None:
    d = shared_daemon
    d.lxc("config", "set", c1, "user.a=1", "user.b=2")
    assert d.lxc("config", "get", c1, "user.b").stdout == "2\n"
    d.lxc("config", "unset", c1, "user.b")
    assert d.lxc("config", "get", c1, "user.b").stdout == "\n"
    shown = yaml.safe_load(d.lxc("config", "show", c1).stdout)
    assert shown["config"]["user.a"] == "1"
    shown["config"]["user.a"] = "edited"
    shown["description"] = "a description"
    d.lxc("config", "edit", c1, input=yaml.safe_dump(shown))
    assert d.get(f"/1.0/instances/{c1}")["config"]["user.a"] == "edited"
    assert d.get(f"/1.0/instances/{c1}")["description"] == "a description"


def test_one_invalid_value_rejects_the_complete_change(shared_daemon: Daemon, c1: str) -> None:
    d = shared_daemon
    refused = d.lxc("config", "set", c1, "user.a=1", "boot.autostart=perhaps", check=False)
    assert refused.returncode != 0
    assert "boot.autostart" in refused.stderr
    assert "user.a" not in d.get(f"/1.0/instances/{c1}")["config"]


def test_profiles(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("profile", "create", "extra")
    try:
        d.lxc("profile", "set", "extra", "environment.COLOUR", "green")
        assert d.lxc("profile", "get", "extra", "environment.COLOUR").stdout == "green\n"
        edited = yaml.safe_load(d.lxc("profile", "show", "extra").stdout)
        edited["description"] = "more of it"
        d.lxc("profile", "edit", "extra", input=yaml.safe_dump(edited))
        d.lxc("launch", busybox, "c1", "-p", "default", "-p", "extra")
        assert d.lxc("exec", "c1", "--", "sh", "-c", "echo $COLOUR").stdout == "green\n"
        assert d.get("/1.0/profiles/extra")["used_by"] == ["/1.0/instances/c1"]
        assert d.lxc("profile", "delete", "extra", check=False).returncode != 0  # in use
        d.lxc("profile", "remove", "c1", "extra")
        assert d.get("/1.0/instances/c1")["profiles"] == ["default"]
    finally:
        d.delete_instances()
        d.lxc("profile", "delete", "extra")


def test_devices_of_profile_and_instance(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    assert set(d.lxc("profile", "device", "list", "default").stdout.split()) == {"eth0", "root"}
    d.lxc("init", busybox, "c1")
    d.lxc("config", "device", "add", "c1", "eth1", "nic", "nictype=p2p", "name=eth1")
    d.lxc("start", "c1")
    assert {"eth0", "eth1"} <= set(d.lxc("exec", "c1", "--", "ls", "/sys/class/net").stdout.split())


# ---- exec


def test_exec_streams_and_exit_code(shared_daemon: Daemon, c1: str) -> None:
    ended = shared_daemon.lxc("exec", c1, "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "out\n", "err\n")
    assert shared_daemon.lxc("exec", c1, "--", "cat", input="through\n").stdout == "through\n"
    assert shared_daemon.lxc("exec", c1, "--", "/no/such", check=False).returncode == 127


def test_exec_with_user_cwd_and_environment(shared_daemon: Daemon, c1: str) -> None:
    ended = shared_daemon.lxc(
        *("exec", c1, "--user", "1000", "--group", "1000", "--cwd", "/tmp", "--env", "A=b"),
        *("--", "sh", "-c", "id -u; id -g; pwd; echo $A"),
    )
    assert ended.stdout.split() == ["1000", "1000", "/tmp", "b"]


def test_exec_with_a_terminal(shared_daemon: Daemon, c1: str) -> None:
    code, screen = run_in_terminal(
        ["lxc", "exec", c1, "--", "sh"],
        env=shared_daemon.lxc_environment(),
        typed=[("# ", "tty; stty size; exit 5\n")],
        rows=31,
        columns=99,
    )
    assert code == 5, screen
    assert "/dev/pts/" in screen
    assert "31 99" in screen
