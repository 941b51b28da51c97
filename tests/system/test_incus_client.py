"""Debian's `incus` client, unmodified: what people do with it day by day."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.incus import incus

pytestmark = pytest.mark.root

NEVER = datetime(1, 1, 1, tzinfo=UTC)
"""The time that stands for none."""


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


def test_a_trust_password_stays_when_the_config_is_edited(shared_daemon: Daemon) -> None:
    """The client cannot read that it is `true`, as LXD shows it, and no command of it would work."""
    d = shared_daemon
    d.do("PATCH", "/1.0", {"config": {"core.trust_password": "secret"}})
    stored = {"database": "global", "query": "SELECT value FROM config WHERE key = 'core.trust_password'"}
    before = d.do("POST", "/internal/sql", stored)
    assert json.loads(incus(d, "list", "--format", "json").stdout) == []
    shown = yaml.safe_load(incus(d, "config", "show").stdout)
    assert shown["config"]["core.trust_password"] == "true"
    shown["config"]["user.place"] = "here"
    incus(d, "config", "edit", input=yaml.safe_dump(shown))
    assert d.get("/1.0")["config"]["user.place"] == "here"
    assert d.do("POST", "/internal/sql", stored) == before
    incus(d, "config", "unset", "user.place")
    incus(d, "config", "unset", "core.trust_password")
    assert "core.trust_password" not in d.get("/1.0")["config"]


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


def test_projects(module_daemon: Daemon) -> None:
    d = module_daemon
    incus(d, "project", "create", "web", "-c", "limits.memory=1GiB", "-c", "restricted=true")
    incus(d, "project", "set", "web", "limits.containers=2")
    assert incus(d, "project", "get", "web", "limits.containers").stdout == "2\n"
    incus(d, "project", "unset", "web", "limits.containers")
    assert "MEMORY,1.00GiB,0B" in incus(d, "project", "info", "web", "--format", "csv").stdout
    incus(d, "project", "rename", "web", "net")
    assert "net" in incus(d, "project", "list", "--format", "csv").stdout
    assert "default" in incus(d, "profile", "list", "--project", "net").stdout
    incus(d, "project", "delete", "net")
    assert d.get("/1.0/projects") == ["/1.0/projects/default"]


def test_images_networks_and_pools_are_listed(shared_daemon: Daemon, busybox: str) -> None:
    """What the client shows beside instances; it reads fields that LXD's does not."""
    assert "busybox" in incus(shared_daemon, "image", "list", "--format", "csv").stdout
    assert "busybox" in incus(shared_daemon, "image", "alias", "list", "--format", "csv").stdout
    assert "default" in incus(shared_daemon, "storage", "list", "--format", "csv").stdout
    assert "driver: " in incus(shared_daemon, "storage", "show", "default").stdout
    incus(shared_daemon, "network", "list")
    incus(shared_daemon, "project", "list")
    incus(shared_daemon, "operation", "list")


def test_warnings(shared_daemon: Daemon) -> None:
    shared_daemon.do("POST", "/internal/testing/warnings", {"type_code": 24, "message": "by a test"})
    found = json.loads(incus(shared_daemon, "warning", "list", "--format", "json").stdout)
    (uuid,) = [warning["uuid"] for warning in found if warning["last_message"] == "by a test"]
    assert "severity: high" in incus(shared_daemon, "warning", "show", uuid).stdout
    incus(shared_daemon, "warning", "acknowledge", uuid)
    assert uuid not in incus(shared_daemon, "warning", "list").stdout
    incus(shared_daemon, "warning", "delete", uuid)


def test_rebuild_and_templates(shared_daemon: Daemon, busybox: str) -> None:
    incus(shared_daemon, "create", busybox, "one")
    incus(shared_daemon, "config", "template", "edit", "one", "my.tpl", input="text\n")
    assert incus(shared_daemon, "config", "template", "show", "one", "my.tpl").stdout == "text\n"
    incus(shared_daemon, "rebuild", busybox, "one")
    assert "my.tpl" not in incus(shared_daemon, "config", "template", "list", "one").stdout
    incus(shared_daemon, "start", "one")
    incus(shared_daemon, "rebuild", busybox, "one", "--force")
    incus(shared_daemon, "stop", "--force", "one")
    incus(shared_daemon, "rebuild", "one", "--empty")
    assert "BusyBox" not in incus(shared_daemon, "config", "metadata", "show", "one").stdout


def test_files(shared_daemon: Daemon, busybox: str, tmp_path: Path) -> None:
    d = shared_daemon
    incus(d, "launch", busybox, "one")
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "file").write_text("text\n")
    incus(d, "file", "push", str(tmp_path / "tree"), "one/root/", "--recursive")
    incus(d, "file", "push", "-", "one/root/new/note", "-p", "--mode", "0640", "--uid", "1000", input="one\n")
    run = ("exec", "one", "--")
    assert incus(d, *run, "stat", "-c", "%a %u %g", "/root/new/note").stdout == "640 1000 0\n"
    assert incus(d, "file", "pull", "one/root/tree/below/file", "-").stdout == "text\n"
    incus(d, "file", "pull", "one/root/tree", str(tmp_path / "back"), "--recursive", "-p")
    assert [path.read_text() for path in (tmp_path / "back").rglob("file")] == ["text\n"]
    incus(d, "file", "edit", "one/root/new/note", input="two\n")
    assert incus(d, *run, "cat", "/root/new/note").stdout == "two\n"
    incus(d, "file", "create", "one/root/empty", "--type", "directory")
    incus(d, "file", "create", "--type", "symlink", "one/root/link", "/root/new/note")
    assert incus(d, *run, "readlink", "/root/link").stdout == "/root/new/note\n"
    incus(d, "file", "delete", "one/root/new/note")
    assert incus(d, "file", "pull", "one/root/new/note", "-", check=False).returncode == 1


def test_snapshots(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    incus(d, "launch", busybox, "one")
    incus(d, "file", "push", "-", "one/root/note", input="before\n")
    incus(d, "snapshot", "create", "one", "s0", "--no-expiry")
    incus(d, "snapshot", "create", "one")
    listed = incus(d, "snapshot", "list", "one", "--format", "csv").stdout
    assert [line.split(",")[0] for line in listed.splitlines()] == ["s0", "snap0"]
    assert "s0" in incus(d, "info", "one").stdout
    assert yaml.safe_load(incus(d, "snapshot", "show", "one", "s0").stdout)["expires_at"] == NEVER
    incus(d, "snapshot", "rename", "one", "snap0", "s1")
    incus(d, "file", "push", "-", "one/root/note", input="after\n")
    incus(d, "snapshot", "restore", "one", "s0")
    assert incus(d, "exec", "one", "--", "cat", "/root/note").stdout == "before\n"
    incus(d, "copy", "one/s0", "two")
    incus(d, "start", "two")
    assert incus(d, "exec", "two", "--", "cat", "/root/note").stdout == "before\n"
    incus(d, "snapshot", "delete", "one", "s0")
    incus(d, "snapshot", "delete", "one", "s1")
    assert d.get("/1.0/instances/one/snapshots") == []


def test_copy_and_move(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    incus(d, "create", busybox, "one", "--config", "user.a=1")
    incus(d, "snapshot", "create", "one", "s0")
    incus(d, "copy", "one", "two", "--config", "user.a=2")
    assert (shown(d, "two")["config"]["user.a"], len(shown(d, "two")["snapshots"])) == ("2", 1)
    incus(d, "copy", "one/s0", "three", "--ephemeral")
    assert (shown(d, "three")["ephemeral"], shown(d, "three")["snapshots"]) == (True, None)
    incus(d, "move", "two", "four")
    names = [instance["name"] for instance in json.loads(incus(d, "list", "--format", "json").stdout)]
    assert names == ["four", "one", "three"]


def test_import_and_export_of_images(shared_daemon: Daemon, busybox_image: Image, tmp_path: Path) -> None:
    d = shared_daemon
    unified = busybox_image.unified
    assert unified is not None
    incus(d, "image", "import", str(unified), "--alias", "mine", "--public", "user.x=1")
    (image,) = json.loads(incus(d, "image", "list", "mine", "--format", "json").stdout)
    assert (image["public"], image["filename"], image["properties"]["user.x"]) == (True, unified.name, "1")
    incus(d, "image", "alias", "rename", "mine", "yours")
    assert "Fingerprint: " + image["fingerprint"] in incus(d, "image", "info", "yours").stdout
    incus(d, "image", "export", "yours", str(tmp_path / "exported"))
    (exported,) = tmp_path.iterdir()
    assert exported.read_bytes() == unified.read_bytes()
    incus(d, "image", "set-property", "yours", "user.x", "2")
    assert incus(d, "image", "get-property", "yours", "user.x").stdout == "2\n"
    incus(d, "image", "delete", "yours")


def test_all_instances_of_a_project(module_daemon: Daemon, busybox: str) -> None:
    d = module_daemon
    incus(d, "project", "create", "web", "-c", "features.images=false", "-c", "features.profiles=false")
    for name in ("one", "two"):
        incus(d, "create", busybox, name, "--project", "web")
    incus(d, "create", busybox, "elsewhere")
    incus(d, "start", "--all", "--project", "web")
    assert incus(d, "list", "--all-projects", "--format", "csv", "-c", "ns").stdout.splitlines() == [
        "elsewhere,STOPPED",
        "one,RUNNING",
        "two,RUNNING",
    ]
    incus(d, "stop", "--all", "--force", "--project", "web")
    assert incus(d, "list", "--project", "web", "--format", "csv", "-c", "s").stdout == "STOPPED\nSTOPPED\n"
    d.delete_instances()
    incus(d, "project", "delete", "web")
