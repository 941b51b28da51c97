"""State changes of all instances of a project at once: `--all` of clients, and PUT on `/1.0/instances`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


@pytest.fixture
def projects(shared_daemon: Daemon, busybox: str) -> Iterator[Daemon]:
    """A daemon with the stopped instances a and b, and a and c in the project `web`."""
    d = shared_daemon
    config = {"features.images": "false", "features.profiles": "false"}
    d.do("POST", "/1.0/projects", {"name": "web", "config": config})
    for name, project in (("a", "default"), ("b", "default"), ("a", "web"), ("c", "web")):
        d.lxc("init", busybox, name, "--project", project)
    yield d
    d.delete_instances()
    d.delete_projects()


def states(daemon: Daemon) -> dict[str, str]:
    """The states by project and name."""
    instances = daemon.get("/1.0/instances?recursion=1&all-projects=true")
    return {f"{i['project']}/{i['name']}": i["status"] for i in instances}


def pids(daemon: Daemon, project: str, *names: str) -> list[int]:
    urls = (f"/1.0/instances/{name}/state?project={project}" for name in names)
    return [int(daemon.get(url)["pid"]) for url in urls]


def test_all_of_lxc(projects: Daemon) -> None:
    d = projects
    d.lxc("start", "--all")
    running = {"default/a": "Running", "default/b": "Running"}
    assert states(d) == {**running, "web/a": "Stopped", "web/c": "Stopped"}
    d.lxc("start", "c", "--project", "web")
    d.lxc("start", "--all", "--project", "web")  # one of them runs already
    assert states(d) == {**running, "web/a": "Running", "web/c": "Running"}

    before = pids(d, "default", "a", "b") + pids(d, "web", "a", "c")
    d.lxc("restart", "--all", "--force", "--project", "web")
    after = pids(d, "default", "a", "b") + pids(d, "web", "a", "c")
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, False]

    d.lxc("pause", "a")
    d.lxc("pause", "--all")
    assert states(d) == {**dict.fromkeys(running, "Frozen"), "web/a": "Running", "web/c": "Running"}
    d.lxc("stop", "--all", "--force")
    assert states(d) == {**dict.fromkeys(running, "Stopped"), "web/a": "Running", "web/c": "Running"}
    d.lxc("stop", "--all", "--force", "--project", "web")
    d.lxc("stop", "--all", "--project", "web")  # nothing is left to stop
    assert set(states(d).values()) == {"Stopped"}
    both = d.lxc("stop", "--all", "a", check=False)
    assert (both.returncode, "Both --all and instance name given" in both.stderr) == (1, True)


def test_the_operation_names_what_it_changes(projects: Daemon) -> None:
    d = projects
    d.lxc("start", "b")
    body = {"state": {"action": "stop", "force": True}}
    ended = d.wait(d.api("PUT", "/1.0/instances", body))
    assert (ended["status"], ended["description"]) == ("Success", "Stopping instance")
    assert ended["resources"]["instances"] == ["/1.0/instances/b"]
    ended = d.wait(d.api("PUT", "/1.0/instances?project=web", {"state": {"action": "start"}}))
    assert ended["resources"]["instances"] == ["/1.0/instances/a", "/1.0/instances/c"]
    assert states(d) == {
        "default/a": "Stopped",
        "default/b": "Stopped",
        "web/a": "Running",
        "web/c": "Running",
    }
    assert d.api("PUT", "/1.0/instances?project=none", body).status == 404


def test_a_name_of_the_servers_in_a_project(projects: Daemon, busybox: str) -> None:
    """The client takes the name from the operation, and starts the instance by it."""
    said = projects.lxc("launch", busybox, "--project", "web").stdout
    (name,) = re.findall(r"^Starting (\S+)$", said, re.MULTILINE)
    assert states(projects)[f"web/{name}"] == "Running"


def test_one_that_fails_does_not_keep_others_from_it(projects: Daemon) -> None:
    d = projects
    d.do("PATCH", "/1.0/instances/a", {"config": {"raw.lxc": "lxc.init.cmd = /nowhere"}})
    failed = d.lxc("start", "--all", check=False)
    assert failed.returncode == 1
    assert "a: " in failed.stderr
    assert states(d)["default/a"] == "Stopped"
    assert states(d)["default/b"] == "Running"


def test_waiting_for_a_state(projects: Daemon) -> None:
    """`wait` returns at the end of an operation or of its timeout, whichever comes first."""
    d = projects
    d.lxc("start", "a")
    stops = d.api("PUT", "/1.0/instances/a/state", {"action": "stop", "timeout": 60})
    d.api("GET", f"{stops.operation}/wait?timeout=0")
    ended = d.api("GET", f"{stops.operation}/wait?timeout=60").metadata
    assert (ended["status"], ended["err"]) == ("Success", "")
    assert d.get("/1.0/instances/a/state")["status"] == "Stopped"
    assert d.api("GET", "/1.0/operations/none/wait").status == 404
