"""Snapshots by the API and the clients: taken, changed, restored, deleted, by schedule, after crashes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.netbox import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("dir_pool")]

NEVER = "0001-01-01T00:00:00Z"


def snapshots(daemon: Daemon, name: str = "c1") -> list[str]:
    return [snapshot["name"] for snapshot in daemon.get(f"/1.0/instances/{name}/snapshots?recursion=1")]


def write(daemon: Daemon, text: str, name: str = "c1") -> None:
    daemon.lxc("exec", name, "--", "sh", "-c", f"echo {text} > /root/mark")


def read(daemon: Daemon, name: str = "c1") -> str:
    return daemon.lxc("exec", name, "--", "cat", "/root/mark").stdout.strip()


# ---- taking, listing, changing


def test_a_snapshot_is_taken_listed_changed_renamed_and_deleted(
    shared_daemon: Daemon, busybox: str, root_pool: str
) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1", "-s", root_pool, "-c", "user.color=blue")
    for name in ((), ("before",), ()):
        d.lxc("snapshot", "c1", *name)
    assert snapshots(d) == ["snap0", "before", "snap1"]
    assert d.get("/1.0/instances/c1/snapshots")[1] == "/1.0/instances/c1/snapshots/before"
    assert (d.dir / "snapshots" / "c1" / "before").is_dir()
    shown = d.get("/1.0/instances/c1/snapshots/before")
    assert shown["config"]["user.color"] == "blue"
    assert shown["expanded_devices"]["root"]["pool"] == root_pool
    assert shown["expires_at"] == NEVER
    d.lxc("config", "set", "c1", "user.color=red")
    url = "/1.0/instances/c1/snapshots/before"
    d.do("PUT", url, {"expires_at": "2099-01-31T12:00:00+01:00", "description": "first"})
    d.do("PATCH", url, {"description": "the first"})
    shown = d.get(url)
    assert (shown["expires_at"], shown["description"]) == ("2099-01-31T11:00:00Z", "the first")
    assert shown["config"]["user.color"] == "blue"
    d.lxc("move", "c1/before", "c1/after")
    d.lxc("delete", "c1/snap0")
    assert snapshots(d) == ["after", "snap1"]
    assert "after" in d.lxc("info", "c1").stdout
    full = d.get("/1.0/instances/c1?recursion=1")
    assert [snapshot["name"] for snapshot in full["snapshots"]] == ["after", "snap1"]
    d.lxc("move", "c1", "c2")
    assert snapshots(d, "c2") == ["after", "snap1"]
    assert [path.name for path in (d.dir / "snapshots").iterdir()] == ["c2"]
    assert (d.dir / "snapshots" / "c2" / "snap1").is_dir()
    d.lxc("delete", "c2")
    assert list((d.dir / "snapshots").iterdir()) == []
    folder = d.dir / "storage-pools" / root_pool / "containers-snapshots"
    assert not folder.exists() or list(folder.iterdir()) == []


def test_our_client_has_the_same_commands(shared_daemon: Daemon, busybox: str) -> None:
    run = partial(utsuwa_client, shared_daemon)
    run("init", busybox, "c1")
    run("snapshot", "c1", "first")
    run("snapshot", "c1", "first", "--reuse")
    assert "first" in run("info", "c1").stdout
    assert "expires_at: 0001-01-01T00:00:00Z" in run("config", "show", "c1/first").stdout
    run("rename", "c1/first", "c1/second")
    run("move", "c1/second", "c1/third")
    assert snapshots(shared_daemon) == ["third"]
    run("restore", "c1", "third")
    for change in (("set", "c1/third", "user.x=1"), ("unset", "c1/third", "user.x")):
        refused = run("config", *change, check=False)
        assert (refused.returncode, "of a snapshot never changes" in refused.stderr) == (1, True)
    run("delete", "c1/third")
    assert snapshots(shared_daemon) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "", {"name": "taken"}, 409, "already exists"),
        ("POST", "", {"name": "a/b"}, 400, "slashes"),
        ("POST", "", {"name": "two words"}, 400, "spaces"),
        ("POST", "", {"name": ".."}, 400, "Invalid snapshot name"),
        ("POST", "", {"name": "x" * 200}, 400, "longer than 64"),
        ("POST", "", {"name": "new", "stateful": True}, 400, "not running"),
        ("POST", "", {"name": "new", "expires_at": "tomorrow"}, 400, "RFC 3339"),
        ("GET", "/none", None, 404, "not found"),
        ("GET", "/tak", None, 404, "not found"),
        ("POST", "/taken", {"name": "taken"}, 409, "already"),
        ("POST", "/taken", {"name": "a/b"}, 400, "slashes"),
        ("POST", "/none", {"name": "other"}, 404, "not found"),
        ("DELETE", "/none", None, 404, "not found"),
        ("PUT", "/taken", {"expires_at": "soon"}, 400, "RFC 3339"),
        ("PUT", "/none", {}, 404, "not found"),
    ],
)
def test_bad_requests_are_refused_and_change_nothing(
    shared_daemon: Daemon, busybox: str, method: str, path: str, body: Any, status: int, words: str
) -> None:
    d = shared_daemon
    if d.api("GET", "/1.0/instances/c1").status == 404:
        d.lxc("init", busybox, "c1")
        d.lxc("snapshot", "c1", "taken")
    reply = d.api(method, f"/1.0/instances/c1/snapshots{path}", body)
    assert (reply.status, words in reply.error) == (status, True), reply.error
    assert snapshots(d) == ["taken"]


def test_an_edit_of_another_state_is_refused(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1")
    d.lxc("snapshot", "c1", "one")
    reply = d.api("PUT", "/1.0/instances/c1/snapshots/one", {}, headers={"If-Match": "other"})
    assert reply.status == 412


# ---- restoring


def test_restore_reverts_files_and_configuration(shared_daemon: Daemon, busybox: str, root_pool: str) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "-s", root_pool, "-c", "user.color=blue")
    mac = d.get("/1.0/instances/c1")["config"]["volatile.eth0.hwaddr"]
    write(d, "first")
    volume = f"/1.0/storage-pools/{root_pool}/volumes/container/c1"
    d.do("PATCH", volume, {"description": "one", "config": {"user.state": "first"}})
    d.lxc("snapshot", "c1", "first")  # it runs
    d.do("PATCH", volume, {"config": {"user.state": "second"}})
    write(d, "second")
    d.lxc("config", "set", "c1", "user.color=red", "limits.processes=100")
    d.lxc("stop", "c1", "--force")
    d.lxc("snapshot", "c1", "second")
    d.lxc("restore", "c1", "first")
    config = d.get("/1.0/instances/c1")["config"]
    assert (config["user.color"], config.get("limits.processes")) == ("blue", None)
    assert config["volatile.eth0.hwaddr"] == mac
    assert d.get(volume)["config"]["user.state"] == "first"
    assert d.api("PATCH", volume, {"config": {"size": "1GiB"}}).status == 400
    d.lxc("start", "c1")
    assert read(d) == "first"
    d.lxc("restore", "c1", "c1/second")
    assert d.get("/1.0/instances/c1")["status"] == "Running"
    assert read(d) == "second"
    assert d.get("/1.0/instances/c1")["config"]["limits.processes"] == "100"
    assert snapshots(d) == ["first", "second"]


def test_an_ephemeral_instance_survives_a_restore(shared_daemon: Daemon, busybox: str) -> None:
    """It is stopped for that, which would delete it (lxd#5906)."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "--ephemeral")
    d.lxc("snapshot", "c1", "one")
    write(d, "later")
    d.lxc("restore", "c1", "one")
    assert d.get("/1.0/instances/c1")["status"] == "Running"
    assert d.lxc("exec", "c1", "--", "ls", "/root").stdout == ""


@pytest.mark.parametrize("name", ["none", "..", "/", "on", "c2/one", "c1/none"])
def test_a_restore_of_what_does_not_exist_changes_nothing(
    shared_daemon: Daemon, busybox: str, name: str
) -> None:
    """It runs on, untouched (lxc#224)."""
    d = shared_daemon
    if d.api("GET", "/1.0/instances/c1").status == 404:
        d.lxc("launch", busybox, "c1")
        d.lxc("snapshot", "c1", "one")
    before = d.get("/1.0/instances/c1/state")["pid"]
    reply = d.api("PUT", "/1.0/instances/c1", {"restore": name})
    assert reply.status == 404, reply.body
    assert d.get("/1.0/instances/c1/state")["pid"] == before


def test_a_restore_that_needs_a_deleted_profile_is_refused_and_changes_nothing(
    shared_daemon: Daemon, busybox: str
) -> None:
    d = shared_daemon
    d.do("POST", "/1.0/profiles", {"name": "old", "config": {"user.a": "b"}})
    d.lxc("launch", busybox, "c1", "-p", "default", "-p", "old")
    write(d, "before")
    d.lxc("snapshot", "c1", "one")
    d.lxc("profile", "remove", "c1", "old")
    d.do("DELETE", "/1.0/profiles/old")
    before = d.get("/1.0/instances/c1")
    reply = d.api("PUT", "/1.0/instances/c1", {"restore": "one"})
    assert (reply.status, "'old'" in reply.error) == (400, True), reply.error
    assert d.get("/1.0/instances/c1") == before
    assert read(d) == "before"
    assert d.get("/1.0/instances/c1/snapshots/one")["profiles"] == ["default", "old"]


# ---- time


def test_expiry_comes_from_the_key_or_the_request(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1", "-c", "snapshots.expiry=1d", "-c", "snapshots.pattern=auto-%d")
    d.lxc("snapshot", "c1")
    d.lxc("snapshot", "c1", "--no-expiry")
    assert snapshots(d) == ["auto-0", "auto-1"]
    expires = datetime.fromisoformat(d.get("/1.0/instances/c1/snapshots/auto-0")["expires_at"])
    assert timedelta(hours=23) < expires - datetime.now(UTC) < timedelta(hours=25)
    assert d.get("/1.0/instances/c1/snapshots/auto-1")["expires_at"] == NEVER


def test_a_snapshot_is_taken_at_each_start(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "-c", "snapshots.schedule=@startup, @daily")
    assert snapshots(d) == ["snap0"]
    d.lxc("restart", "c1", "--force")
    assert snapshots(d) == ["snap0", "snap1"]


# ---- protection


def test_nobody_can_write_into_a_snapshot(shared_daemon: Daemon, busybox: str, root_pool: str) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "-s", root_pool)
    write(d, "first")
    d.lxc("snapshot", "c1", "one")
    for change in ("echo second > /root/mark", "rm -r /root", "chmod 777 /etc", "rm /bin/vi"):
        d.lxc("exec", "c1", "--", "sh", "-c", change)
    d.lxc("exec", "c1", "--", "mkdir", "-p", "/root")
    d.lxc("restore", "c1", "one")
    assert read(d) == "first"
    assert d.lxc("exec", "c1", "--", "stat", "-c", "%a", "/etc").stdout == "755\n"


# ---- crashes


@pytest.fixture
def crashing(shared_daemon: Daemon, busybox: str, faults: Faults) -> Daemon:
    """A daemon with the running container c1 and its snapshot `one`."""
    if not faults.env.items() <= shared_daemon.env.items():
        shared_daemon.env |= faults.env
        shared_daemon.restart()
    shared_daemon.lxc("launch", busybox, "c1")
    write(shared_daemon, "first")
    shared_daemon.lxc("snapshot", "c1", "one")
    write(shared_daemon, "second")
    return shared_daemon


@pytest.mark.parametrize("point", ["container held", "snapshot copied"])
def test_a_snapshot_cut_off_is_removed_and_the_container_runs_on(
    crashing: Daemon, faults: Faults, point: str
) -> None:
    d = crashing
    with faults.kill_at(d, point):
        d.do("POST", "/1.0/instances/c1/snapshots", {"name": "two"})
    assert snapshots(d) == ["one"]
    assert d.get("/1.0/instances/c1")["status"] == "Running"
    assert read(d) == "second"
    d.lxc("snapshot", "c1", "two")
    d.lxc("restore", "c1", "one")
    assert read(d) == "first"


@pytest.mark.parametrize("point", ["volume is moved away", "before files are changed"])
def test_a_restore_cut_off_is_undone(crashing: Daemon, faults: Faults, point: str) -> None:
    d = crashing
    d.lxc("config", "set", "c1", "user.color=red")
    with faults.kill_at(d, point):
        d.do("PUT", "/1.0/instances/c1", {"restore": "one"})
    until(lambda: d.get("/1.0/instances/c1")["status"] == "Running")  # it was to be restarted
    assert read(d) == "second"
    assert d.get("/1.0/instances/c1")["config"]["user.color"] == "red"
    d.lxc("restore", "c1", "one")
    assert read(d) == "first"


def test_interrupted_deletion_removes_the_files(crashing: Daemon, faults: Faults) -> None:
    d = crashing
    with faults.kill_at(d, "before delete snapshot"):
        d.do("DELETE", "/1.0/instances/c1/snapshots/one")
    assert snapshots(d) == []
    folder = Path(d.dir / "storage-pools" / "default" / "containers-snapshots")
    assert not folder.exists() or list(folder.iterdir()) == []
    assert read(d) == "second"
