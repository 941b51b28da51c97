"""Copies of instances and snapshots on one host."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.long import usually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("dir_pool")]


@pytest.fixture
def source(shared_daemon: Daemon, busybox: str) -> dict[str, Any]:
    """The running instance c1 with two snapshots, which differ in the file /root/mark."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "-c", "user.color=blue", "-c", "snapshots.expiry=1d")
    for text in ("first", "second"):
        write(d, "c1", text)
        d.lxc("snapshot", "c1", text)
    write(d, "c1", "now")
    instance: dict[str, Any] = d.get("/1.0/instances/c1")
    return instance


def write(daemon: Daemon, name: str, text: str) -> None:
    daemon.lxc("exec", name, "--", "sh", "-c", f"echo {text} > /root/mark")


def mark(daemon: Daemon, name: str) -> str:
    if daemon.get(f"/1.0/instances/{name}")["status"] != "Running":
        daemon.lxc("start", name)
    return daemon.lxc("exec", name, "--", "sh", "-c", "cat /root/mark 2>/dev/null || true").stdout.strip()


def snapshots(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.get(f"/1.0/instances/{name}/snapshots?recursion=1")
    return found


@pytest.mark.parametrize("pool", ["default", "dir"])
def test_a_copy_has_files_configuration_and_snapshots(
    shared_daemon: Daemon, source: dict[str, Any], pool: str
) -> None:
    d = shared_daemon
    d.lxc("copy", "c1", "c2", "-s", pool, "-c", "user.shape=round")
    copy = d.get("/1.0/instances/c2")
    assert copy["expanded_devices"]["root"]["pool"] == pool
    assert (copy["config"]["user.color"], copy["config"]["user.shape"]) == ("blue", "round")
    for key in ("volatile.uuid", "volatile.eth0.hwaddr", "volatile.cloud-init.instance-id"):
        assert copy["config"][key] != source["config"][key]
    assert mark(d, "c2") == "now"
    assert mark(d, "c1") == "now"
    assert [kept_of(s) for s in snapshots(d, "c2")] == [kept_of(s) for s in snapshots(d, "c1")]
    d.lxc("restore", "c2", "first")
    assert mark(d, "c2") == "first"
    d.lxc("delete", "c1", "--force")
    d.lxc("restore", "c2", "second")
    assert mark(d, "c2") == "second"


def test_copied_snapshots_keep_their_dates_and_devices(
    shared_daemon: Daemon, busybox: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also in copies of copies, in another pool and project (lxd#8283, lxd#8287, lxd#13464)."""
    d = shared_daemon
    source = tmp_path_factory.mktemp("source")
    d.do("POST", "/1.0/projects", {"name": "other", "config": {"features.profiles": "false"}})
    d.lxc("init", busybox, "c1")
    d.lxc("config", "device", "add", "c1", "zero", "unix-char", "source=/dev/zero", "path=/dev/own")
    d.lxc("snapshot", "c1", "one")
    d.lxc("config", "device", "add", "c1", "data", "disk", f"source={source}", "path=/mnt")
    d.lxc("snapshot", "c1", "two")
    d.lxc("config", "device", "remove", "c1", "zero")
    for name, day in (("one", "2099-01-31"), ("two", "2100-02-28")):
        url = f"/1.0/instances/c1/snapshots/{name}"
        d.do("PUT", url, {"expires_at": f"{day}T12:00:00Z", "description": f"the {name}"})
    wanted = [kept_of(s) for s in snapshots(d, "c1")]
    assert [[name for name in s["devices"] if name != "root"] for s in wanted] == [["zero"], ["data", "zero"]]
    try:
        d.lxc("copy", "c1", "c2", "-s", "dir")
        d.lxc("copy", "c2", "c3", "--target-project", "other")
        assert [kept_of(s) for s in snapshots(d, "c2")] == wanted
        found = d.get("/1.0/instances/c3/snapshots?recursion=1&project=other")
        assert [kept_of(s) for s in found] == wanted
    finally:
        d.delete_instances()
        d.do("DELETE", "/1.0/projects/other")


def kept_of(snapshot: dict[str, Any]) -> dict[str, Any]:
    """What copies of a snapshot have in common."""
    kept = ("name", "created_at", "expires_at", "description", "profiles", "ephemeral")
    devices = {name: device for name, device in snapshot["devices"].items() if name != "root"}
    config = {key: value for key, value in snapshot["config"].items() if not key.startswith("volatile.")}
    return {key: snapshot[key] for key in kept} | {"config": config, "devices": dict(sorted(devices.items()))}


def test_a_copy_can_be_restored_beside_its_source(shared_daemon: Daemon, source: dict[str, Any]) -> None:
    """Before its first start."""
    d = shared_daemon
    d.lxc("copy", "c1", "c2")
    d.lxc("restore", "c2", "first")
    assert mark(d, "c2") == "first"
    new = d.get("/1.0/instances/c2")["config"]
    for key in ("volatile.uuid", "volatile.eth0.hwaddr"):
        assert new[key] != source["config"][key]


def test_names_of_63_letters(shared_daemon: Daemon, busybox: str) -> None:
    """They work everywhere, and names that the server makes are valid (lxd#10784)."""
    d = shared_daemon
    long, other, snapshot = "a" * 63, "b" * 63, "s" * 64
    d.lxc("launch", busybox, long)
    d.lxc("snapshot", long, snapshot)
    d.lxc("copy", long, other)
    d.lxc("copy", f"{other}/{snapshot}", "c" * 63)
    d.lxc("restore", other, snapshot)
    d.lxc("start", other)
    assert mark(d, other) == ""
    d.lxc("stop", "-f", other)
    d.lxc("move", other, "d" * 63)
    assert [s["name"] for s in snapshots(d, "d" * 63)] == [snapshot]
    for _ in range(5):
        done = d.wait(d.api("POST", "/1.0/instances", {"source": {"type": "copy", "source": long}}))
        (url,) = (url for url in done["resources"]["instances"] if not url.endswith(long))
        assert d.get(url)["name"].strip("-") == d.get(url)["name"]


def test_a_snapshot_becomes_an_instance(shared_daemon: Daemon, source: dict[str, Any]) -> None:
    d = shared_daemon
    d.lxc("copy", "c1/first", "c2")
    assert mark(d, "c2") == "first"
    assert snapshots(d, "c2") == []
    utsuwa_client(d, "copy", "c1", "c3", "--instance-only")
    assert mark(d, "c3") == "now"
    assert snapshots(d, "c3") == []


def test_a_copy_gets_a_name_of_the_server(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1")
    done = utsuwa_client(d, "copy", "c1")
    name = done.stdout.split("Instance name is: ")[1].strip()
    assert d.get(f"/1.0/instances/{name}")["config"]["volatile.apply_template"] == "copy"


def test_a_copy_in_another_project(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.do("POST", "/1.0/projects", {"name": "other", "config": {"features.profiles": "false"}})
    d.lxc("init", busybox, "c1", "-c", "user.color=blue")
    d.lxc("copy", "c1", "c1", "--target-project", "other")
    assert d.get("/1.0/instances/c1?project=other")["config"]["user.color"] == "blue"
    d.lxc("start", "c1", "--project", "other")
    d.delete_instances()
    d.do("DELETE", "/1.0/projects/other")


def test_a_copy_does_not_take_a_static_address(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.do(
        "POST",
        "/1.0/networks",
        {"name": "br", "config": {"ipv4.address": "10.78.0.1/24", "ipv6.address": "none"}},
    )
    try:
        nic = {"type": "nic", "network": "br", "ipv4.address": "10.78.0.5", "name": "eth0"}
        body = {"name": "c1", "source": {"type": "image", "alias": busybox}, "devices": {"eth0": nic}}
        d.do("POST", "/1.0/instances", body)
        d.lxc("copy", "c1", "c2")
        assert d.get("/1.0/instances/c2")["devices"]["eth0"] == {
            k: v for k, v in nic.items() if k != "ipv4.address"
        }
    finally:
        d.delete_instances()
        d.do("DELETE", "/1.0/networks/br")


@pytest.mark.parametrize(
    ("source_", "status", "words"),
    [
        ({"source": "none"}, 404, "not found"),
        ({"source": "c1/none"}, 404, "not found"),
        ({"source": ""}, 404, "not found"),
        ({"source": "c1", "project": "none"}, 404, "not found"),
        ({"source": "c1", "refresh": True, "project": "none"}, 404, "not found"),
    ],
)
def test_bad_requests_are_refused(
    shared_daemon: Daemon, busybox: str, source_: dict[str, Any], status: int, words: str
) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1")
    reply = d.api("POST", "/1.0/instances", {"name": "c2", "source": {"type": "copy", **source_}})
    assert (reply.status, words in reply.error) == (status, True), reply.error
    taken = d.api("POST", "/1.0/instances", {"name": "c1", "source": {"type": "copy", "source": "c1"}})
    assert taken.status == 409, taken.body
    assert d.get("/1.0/instances") == ["/1.0/instances/c1"]


@pytest.mark.parametrize(
    "point", usually(["instance copied"], ["container held", "instance copied", "before instance is ready"])
)
def test_nothing_is_left_of_a_copy_that_was_cut_off(
    shared_daemon: Daemon, source: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, point: str
) -> None:
    d, faults = shared_daemon, Faults(tmp_path_factory.mktemp("faults"))
    d.env |= faults.env
    d.restart()
    with faults.kill_at(d, point):
        d.do("POST", "/1.0/instances", {"name": "c2", "source": {"type": "copy", "source": "c1"}})
    assert d.get("/1.0/instances") == ["/1.0/instances/c1"]
    assert d.get("/1.0/instances/c1")["status"] == "Running"
    pool = d.dir / "storage-pools" / "default"
    assert [path.name for path in (pool / "containers").iterdir()] == ["c1"]
    assert [path.name for path in (pool / "containers-snapshots").iterdir()] == ["c1"]
    d.lxc("copy", "c1", "c2")
    assert mark(d, "c2") == "now"
