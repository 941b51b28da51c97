"""Debian's `incus` client, unmodified: what people do with it day by day."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.support.daemon import Daemon
from tests.support.incus import incus

pytestmark = pytest.mark.root


def shown(daemon: Daemon, name: str) -> dict[str, Any]:
    (found,) = json.loads(incus(daemon, "list", f"^{name}$", "--format", "json").stdout)
    return dict(found)


def changes_of_state(daemon: Daemon) -> list[str]:
    """The requests for one that the daemon's log tells of."""
    return [line for line in daemon.log.read_text().splitlines() if "/state" in line and "PUT" in line]


def test_launch_starts_once(shared_daemon: Daemon, busybox: str) -> None:
    """Without `instance_create_start` the client asked for a start of what the creation had started."""
    before = len(changes_of_state(shared_daemon))
    incus(shared_daemon, "launch", busybox, "one")
    assert shown(shared_daemon, "one")["status"] == "Running"
    assert len(changes_of_state(shared_daemon)) == before


def test_launch_with_config_and_no_profiles(shared_daemon: Daemon, busybox: str) -> None:
    incus(
        shared_daemon, "launch", busybox, "one", "--no-profiles", "--storage", "default",
        "--config", "user.x=1", "--ephemeral",
    )  # fmt: skip
    one = shown(shared_daemon, "one")
    assert (one["config"]["user.x"], one["profiles"], one["ephemeral"]) == ("1", [], True)
    incus(shared_daemon, "stop", "--force", "one")
    assert json.loads(incus(shared_daemon, "list", "--format", "json").stdout) == []


def test_create_start_stop_restart_delete(shared_daemon: Daemon, busybox: str) -> None:
    incus(shared_daemon, "create", busybox, "one")
    assert shown(shared_daemon, "one")["status"] == "Stopped"
    incus(shared_daemon, "start", "one")
    assert shown(shared_daemon, "one")["status"] == "Running"
    incus(shared_daemon, "restart", "--force", "one")
    refused = incus(shared_daemon, "delete", "one", check=False)
    assert refused.returncode == 1
    incus(shared_daemon, "pause", "one")
    assert shown(shared_daemon, "one")["status"] == "Frozen"
    incus(shared_daemon, "resume", "one")
    incus(shared_daemon, "stop", "one")
    assert shown(shared_daemon, "one")["status"] == "Stopped"
    incus(shared_daemon, "rename", "one", "two")
    incus(shared_daemon, "delete", "two")
    assert shared_daemon.get("/1.0/instances") == []


def test_exec(shared_daemon: Daemon, busybox: str) -> None:
    incus(shared_daemon, "launch", busybox, "one")
    assert incus(shared_daemon, "exec", "one", "--", "cat", input="there and back").stdout == "there and back"
    ended = incus(
        shared_daemon, "exec", "one", "--env", "A=b", "--cwd", "/tmp", "--user", "1000",
        "--", "sh", "-c", "echo $A $(pwd) $(id -u); echo oops >&2; exit 7", check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "b /tmp 1000\n", "oops\n")
    assert incus(shared_daemon, "exec", "one", "--", "nowhere", check=False).returncode == 127


def test_list_and_info(shared_daemon: Daemon, busybox: str) -> None:
    incus(shared_daemon, "launch", busybox, "one")
    assert incus(shared_daemon, "list", "--format", "csv", "--columns", "ns").stdout == "one,RUNNING\n"
    assert "one" in incus(shared_daemon, "list").stdout
    info = incus(shared_daemon, "info", "one").stdout
    assert "Status: RUNNING" in info
    assert "PID: " in info
    server = yaml.safe_load(incus(shared_daemon, "info").stdout)
    assert server["auth"] == "trusted"


def test_config_of_an_instance(shared_daemon: Daemon, busybox: str) -> None:
    incus(shared_daemon, "create", busybox, "one")
    incus(shared_daemon, "config", "set", "one", "limits.memory=64MiB", "user.x=1")
    assert incus(shared_daemon, "config", "get", "one", "limits.memory").stdout == "64MiB\n"
    incus(shared_daemon, "config", "unset", "one", "user.x")
    whole = yaml.safe_load(incus(shared_daemon, "config", "show", "one").stdout)
    assert "user.x" not in whole["config"]
    whole["description"] = "edited"
    incus(shared_daemon, "config", "edit", "one", input=yaml.safe_dump(whole))
    assert shown(shared_daemon, "one")["description"] == "edited"
    incus(shared_daemon, "config", "device", "override", "one", "root", "size=100MiB", check=False)
    incus(shared_daemon, "config", "device", "add", "one", "eth1", "nic", "nictype=p2p")
    assert incus(shared_daemon, "config", "device", "get", "one", "eth1", "nictype").stdout == "p2p\n"
    incus(shared_daemon, "config", "device", "remove", "one", "eth1")
    wrong = incus(shared_daemon, "config", "set", "one", "limits.memory=much", check=False)
    assert (wrong.returncode, "limits.memory" in wrong.stderr) == (1, True)


def test_config_of_the_server(shared_daemon: Daemon) -> None:
    incus(shared_daemon, "config", "set", "user.place=here")
    assert incus(shared_daemon, "config", "get", "user.place").stdout == "here\n"
    incus(shared_daemon, "config", "unset", "user.place")
    assert "user.place" not in shared_daemon.get("/1.0")["config"]


def test_profiles(shared_daemon: Daemon, busybox: str) -> None:
    incus(shared_daemon, "profile", "create", "small", input="config: {limits.memory: 64MiB}\n")
    incus(shared_daemon, "create", busybox, "one")
    incus(shared_daemon, "profile", "add", "one", "small")
    assert shown(shared_daemon, "one")["expanded_config"]["limits.memory"] == "64MiB"
    incus(shared_daemon, "profile", "set", "small", "limits.memory", "32MiB")
    assert shown(shared_daemon, "one")["expanded_config"]["limits.memory"] == "32MiB"
    assert "small" in incus(shared_daemon, "profile", "list", "--format", "csv").stdout
    assert "name: small" in incus(shared_daemon, "profile", "show", "small").stdout
    assert incus(shared_daemon, "profile", "delete", "small", check=False).returncode == 1
    incus(shared_daemon, "profile", "remove", "one", "small")
    incus(shared_daemon, "profile", "rename", "small", "tiny")
    incus(shared_daemon, "profile", "delete", "tiny")


def test_images_networks_and_pools_are_listed(shared_daemon: Daemon, busybox: str) -> None:
    """What the client shows beside instances; it reads fields that LXD's does not."""
    assert "busybox" in incus(shared_daemon, "image", "list", "--format", "csv").stdout
    assert "busybox" in incus(shared_daemon, "image", "alias", "list", "--format", "csv").stdout
    assert "default" in incus(shared_daemon, "storage", "list", "--format", "csv").stdout
    assert "driver: " in incus(shared_daemon, "storage", "show", "default").stdout
    incus(shared_daemon, "network", "list")
    incus(shared_daemon, "project", "list")
    incus(shared_daemon, "operation", "list")
