"""Moves of instances between pools and projects of one server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.long import usually

pytestmark = pytest.mark.root

KEPT = ("volatile.uuid", "volatile.eth0.hwaddr", "volatile.cloud-init.instance-id", "user.color")


@pytest.fixture(scope="module", autouse=True)
def places(module_daemon: Daemon) -> None:
    """A second pool, and two projects: one with its own profiles and one without."""
    d = module_daemon
    d.do("POST", "/1.0/storage-pools", {"name": "dir", "driver": "dir", "config": {}})
    d.do(
        "POST",
        "/1.0/projects",
        {"name": "shared", "config": {"features.profiles": "false", "features.images": "false"}},
    )
    d.do("POST", "/1.0/projects", {"name": "own", "config": {"features.images": "false"}})


@pytest.fixture
def stopped(shared_daemon: Daemon, busybox: str) -> dict[str, Any]:
    """The stopped instance c1 with two snapshots, which differ in the file /root/mark."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "-c", "user.color=blue")
    for text in ("first", "second", "now"):
        d.lxc("exec", "c1", "--", "sh", "-c", f"echo {text} > /root/mark")
        if text != "now":
            d.lxc("snapshot", "c1", text)
    d.lxc("stop", "c1", "--force")
    instance: dict[str, Any] = d.get("/1.0/instances/c1")
    return instance


def url(name: str, project: str = "default") -> str:
    return f"/1.0/instances/{name}?project={project}"


def mark(d: Daemon, name: str, project: str = "default") -> str:
    if d.get(url(name, project))["status"] != "Running":
        d.lxc("start", name, "--project", project)
    return d.lxc("exec", name, "--project", project, "--", "cat", "/root/mark").stdout.strip()


def snapshots(d: Daemon, name: str, project: str = "default") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = d.get(f"/1.0/instances/{name}/snapshots?recursion=1&project={project}")
    return [{key: s[key] for key in ("name", "created_at", "expires_at")} for s in found]


def files(d: Daemon) -> list[str]:
    """The directories of all instances and of their snapshots, by pool."""
    pools = d.dir / "storage-pools"
    found = [*pools.glob("*/containers/*"), *pools.glob("*/containers-snapshots/*")]
    return sorted(str(path.relative_to(pools)) for path in found)


def volumes(d: Daemon) -> list[tuple[str, str, str]]:
    return [
        (pool, volume["project"], volume["name"])
        for pool in ("default", "dir")
        for volume in d.get(f"/1.0/storage-pools/{pool}/volumes?recursion=1&all-projects=true")
        if volume["type"] == "container" and "/" not in volume["name"]
    ]


def test_to_another_pool_and_back(shared_daemon: Daemon, stopped: dict[str, Any]) -> None:
    d = shared_daemon
    before = snapshots(d, "c1")
    for pool, client in (("dir", d.lxc), ("default", lambda *a: utsuwa_client(d, *a))):
        client("move", "c1", "--storage", pool)
        moved = d.get(url("c1"))
        assert moved["expanded_devices"]["root"]["pool"] == pool
        assert {key: moved["config"][key] for key in KEPT} == {key: stopped["config"][key] for key in KEPT}
        assert moved["created_at"] == stopped["created_at"]
        assert snapshots(d, "c1") == before
        assert files(d) == [f"{pool}/containers-snapshots/c1", f"{pool}/containers/c1"]
        assert volumes(d) == [(pool, "default", "c1")]
        assert (d.dir / "containers/c1").readlink() == d.dir / f"storage-pools/{pool}/containers/c1"
        link = (d.dir / "snapshots/c1").readlink()
        assert link == d.dir / f"storage-pools/{pool}/containers-snapshots/c1"
        assert mark(d, "c1") == "now"
        d.lxc("stop", "c1", "--force")
    d.lxc("restore", "c1", "first")
    assert mark(d, "c1") == "first"


def test_to_another_project_under_another_name(shared_daemon: Daemon, stopped: dict[str, Any]) -> None:
    d = shared_daemon
    before = snapshots(d, "c1")
    d.lxc("move", "c1", "c2", "--target-project", "shared")
    assert d.get("/1.0/instances") == []
    moved = d.get(url("c2", "shared"))
    assert moved["config"]["volatile.uuid"] == stopped["config"]["volatile.uuid"]
    assert moved["config"]["volatile.eth0.hwaddr"] == stopped["config"]["volatile.eth0.hwaddr"]
    assert moved["config"]["volatile.apply_template"] == "rename"
    assert snapshots(d, "c2", "shared") == before
    assert files(d) == ["default/containers-snapshots/shared_c2", "default/containers/shared_c2"]
    assert volumes(d) == [("default", "shared", "c2")]
    d.lxc("restore", "c2", "second", "--project", "shared")
    assert mark(d, "c2", "shared") == "second"
    assert d.lxc("exec", "c2", "--project", "shared", "--", "hostname").stdout.strip() == "c2"


def test_to_a_project_with_its_own_profiles(shared_daemon: Daemon, stopped: dict[str, Any]) -> None:
    """The profile of that name is applied; the root disk stays where it is."""
    d = shared_daemon
    d.do("PUT", "/1.0/profiles/default?project=own", {"config": {"user.there": "yes"}, "devices": {}})
    d.lxc("profile", "create", "here")
    d.lxc("profile", "add", "c1", "here")
    refused = d.api("POST", url("c1"), {"migration": True, "project": "own"})
    assert (refused.status, "profile 'here' does not exist" in refused.error) == (404, True)
    d.do("POST", url("c1"), {"name": "c1", "project": "own", "pool": "dir", "profiles": ["default"]})
    moved = d.get(url("c1", "own"))
    assert moved["expanded_config"]["user.there"] == "yes"
    assert moved["expanded_devices"].keys() == {"root"}
    assert files(d) == ["dir/containers-snapshots/own_c1", "dir/containers/own_c1"]
    assert mark(d, "c1", "own") == "now"


def test_profiles_of_the_same_name_are_those_of_the_other_project(
    shared_daemon: Daemon, stopped: dict[str, Any]
) -> None:
    """Otherwise the first project would still decide on the instance, and could not be deleted."""
    d = shared_daemon
    d.do("PUT", "/1.0/profiles/default?project=own", {"config": {"user.there": "yes"}, "devices": {}})
    d.do("POST", url("c1"), {"name": "c1", "project": "own", "migration": True})
    assert d.get(url("c1", "own"))["expanded_config"]["user.there"] == "yes"
    assert d.get("/1.0/profiles/default")["used_by"] == []
    d.do("POST", url("c1", "own"), {"name": "c1", "project": "default", "migration": True})
    assert "user.there" not in d.get(url("c1"))["expanded_config"]
    d.do("DELETE", "/1.0/projects/own")
    d.do("POST", "/1.0/projects", {"name": "own"})


def test_with_another_configuration_and_without_snapshots(
    shared_daemon: Daemon, stopped: dict[str, Any]
) -> None:
    d = shared_daemon
    flags = ("-c", "user.color=red", "-d", "eth0,name=eth7", "-d", "root,size=1GiB", "--instance-only")
    utsuwa_client(d, "move", "c1", "--storage", "dir", *flags)
    moved = d.get(url("c1"))
    assert moved["config"]["user.color"] == "red"
    assert moved["devices"]["eth0"]["name"] == "eth7"
    assert moved["config"]["volatile.uuid"] == stopped["config"]["volatile.uuid"]
    assert moved["devices"]["root"] == {"type": "disk", "path": "/", "pool": "dir", "size": "1GiB"}
    assert d.get("/1.0/storage-pools/dir/volumes/container/c1")["config"]["size"] == "1GiB"
    assert snapshots(d, "c1") == []
    assert files(d) == ["dir/containers/c1"]
    d.lxc("snapshot", "c1", "again")
    d.do("POST", url("c1"), {"project": "shared", "instance_only": True, "migration": True})
    assert snapshots(d, "c1", "shared") == []
    assert files(d) == ["dir/containers/shared_c1"]
    assert mark(d, "c1", "shared") == "now"


def test_refused_moves_change_nothing(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1")
    d.lxc("init", busybox, "c1", "--project", "shared")
    d.do("PATCH", "/1.0/projects/shared", {"config": {"limits.instances": "1"}})
    before = d.get(url("c1"))
    for body, status, words in (
        ({"project": "shared"}, 409, "'c1' already exists in the project 'shared'"),
        ({"project": "none"}, 404, "Project 'none' not found"),
        ({"pool": "none"}, 404, "Storage pool 'none' not found"),
        ({"pool": "dir", "name": "not_valid"}, 400, "Invalid instance name"),
        ({"pool": "dir", "config": {"no.key": "1"}}, 400, "no.key"),
        ({"pool": "dir", "profiles": ["none"]}, 404, "'none' does not exist"),
    ):
        reply = d.api("POST", url("c1"), {"migration": True, **body})
        assert (reply.status, words in reply.error) == (status, True), (body, reply.body)
    with pytest.raises(AssertionError, match="limits.instances=1"):
        d.do("POST", url("c1"), {"project": "shared", "name": "c2"})
    d.lxc("start", "c1")
    reply = d.api("POST", url("c1"), {"migration": True, "pool": "dir"})
    assert (reply.status, "is running: stop it to move it" in reply.error) == (400, True)
    d.lxc("stop", "c1", "--force")
    d.do("PATCH", "/1.0/projects/shared", {"config": {"limits.instances": ""}})
    after = d.get(url("c1"))
    assert {**after, "config": None, "expanded_config": None, "last_used_at": ""} == {
        **before,
        "config": None,
        "expanded_config": None,
        "last_used_at": "",
    }
    assert files(d) == ["default/containers/c1", "default/containers/shared_c1"]


POINTS = [
    ("dir", "default", "after copy_volume"),
    ("dir", "default", "volume is copied"),
    ("dir", "default", "before volume is moved"),
    ("dir", "default", "before delete_all"),
    ("dir", "shared", "before delete_all"),
    ("", "shared", "after rename_volume"),
    ("", "shared", "before rename storage volume"),
]


@pytest.mark.parametrize(("pool", "project", "point"), usually([POINTS[2], POINTS[-1]], POINTS))
def test_a_move_that_is_cut_off(
    shared_daemon: Daemon,
    stopped: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    pool: str,
    project: str,
    point: str,
) -> None:
    """The instance is in one place, with all of its snapshots, and nothing is left in the other."""
    d, faults = shared_daemon, Faults(tmp_path_factory.mktemp("faults"))
    before = snapshots(d, "c1")
    d.env |= faults.env
    d.restart()
    body = {"migration": True, "pool": pool, "project": project}
    with faults.kill_at(d, point):
        d.do("POST", url("c1"), body)
    moved = point == "before delete_all"
    there = ("dir" if pool and moved else "default", project if moved else "default", "c1")
    assert volumes(d) == [there]
    name = "c1" if there[1] == "default" else f"{there[1]}_c1"
    assert files(d) == [f"{there[0]}/containers-snapshots/{name}", f"{there[0]}/containers/{name}"]
    assert snapshots(d, "c1", there[1]) == before
    assert mark(d, "c1", there[1]) == "now"
    if not moved:
        d.lxc("stop", "c1", "--force")
        d.do("POST", url("c1"), body)
        assert mark(d, "c1", project) == "now"
