"""Copies between servers by callers who are held to projects, and to other projects and pools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.servers import Servers, servers

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

HELD = {
    "restricted": "true",
    "restricted.devices.nic": "allow",
    "restricted.snapshots": "allow",
    "features.profiles": "false",
    "features.images": "false",
}


@pytest.fixture(scope="module")
def module_servers(module_daemon: Daemon, busybox_image: Image) -> Iterator[Servers]:
    """Each with the project `held`, and the pool `second`."""
    with servers(module_daemon, busybox_image) as found:
        for daemon in (found.near, found.far):
            daemon.do("POST", "/1.0/projects", {"name": "held", "config": HELD})
            daemon.do("POST", "/1.0/storage-pools", {"name": "second", "driver": "dir"})
        yield found
        for daemon in (found.near, found.far):
            daemon.do("DELETE", "/1.0/storage-pools/second")
            daemon.delete_projects()


@pytest.fixture
def both(module_servers: Servers) -> Iterator[Servers]:
    yield module_servers
    for daemon in (module_servers.near, module_servers.far):
        for url in daemon.get("/1.0/instances?project=held"):
            daemon.do("DELETE", url)
    module_servers.clean()


class Client:
    """A client whose certificate is held to the project `held` on one of the servers."""

    def __init__(self, both: Servers, folder: Path, restricted: Daemon) -> None:
        self._both = both
        self._env = {"UTSUWA_CONF": str(folder)}
        for name, daemon in (("near", both.near), ("far", both.far)):
            held = ("--restricted", "--projects", "held") if daemon is restricted else ()
            added = utsuwa_client(daemon, "config", "trust", "add", "--name", "laptop", *held)
            self.run("remote", "add", name, added.stdout.split()[-1])

    def run(self, *words: str) -> str:
        return self._run(*words, check=True)

    def refused(self, *words: str) -> str:
        """Return what it is told."""
        return self._run(*words, check=False)

    def _run(self, *words: str, check: bool) -> str:
        ended = utsuwa_client(self._both.near, *words, check=check, env=self._env, timeout=120)
        assert check or ended.returncode != 0
        return ended.stdout if check else ended.stderr


def names(daemon: Daemon, project: str = "default") -> list[str]:
    return [one["name"] for one in daemon.get(f"/1.0/instances?recursion=1&project={project}")]


def trusted(daemon: Daemon) -> set[str]:
    return set(daemon.get("/1.0/certificates"))


@pytest.fixture
def held_at_target(both: Servers, tmp_path: Path) -> Iterator[Client]:
    yield from client(both, tmp_path, both.far)


@pytest.fixture
def held_at_source(both: Servers, tmp_path: Path) -> Iterator[Client]:
    yield from client(both, tmp_path, both.near)


def client(both: Servers, folder: Path, restricted: Daemon) -> Iterator[Client]:
    before = {daemon: trusted(daemon) for daemon in (both.near, both.far)}
    yield Client(both, folder, restricted)
    for daemon, known in before.items():
        for url in trusted(daemon) - known:
            daemon.do("DELETE", url)


def test_what_a_caller_may_not_have_on_the_target_is_not_copied(
    both: Servers, held_at_target: Client
) -> None:
    """That is judged of the final configuration, with overrides, and of each snapshot."""
    both.lxc("init", "busybox", "c1", "-c", "security.privileged=true")
    assert "privileged" in held_at_target.refused("copy", "near:c1", "far:")
    held_at_target.run("copy", "near:c1", "far:good", "-c", "security.privileged=false")
    assert names(both.far, "held") == ["good"]
    both.lxc("snapshot", "c1", "bad")
    assert "The snapshot 'bad'" in held_at_target.refused(
        "copy", "near:c1", "far:other", "-c", "security.privileged=false"
    )
    held_at_target.run("copy", "near:c1", "far:other", "-c", "security.privileged=false", "--instance-only")
    assert "The snapshot 'bad'" in held_at_target.refused("copy", "near:c1", "far:good", "--refresh")
    assert both.far.get("/1.0/instances/good/snapshots?project=held") == []
    assert names(both.far) == []


def test_a_caller_finds_only_their_projects_on_the_target(both: Servers, held_at_target: Client) -> None:
    both.lxc("init", "busybox", "c1")
    both.lxc("init", "far:busybox", "far:c2")
    assert held_at_target.refused("copy", "near:c1", "far:", "--target-project", "default")
    held_at_target.run("move", "near:c1", "far:c2")
    assert (names(both.near), names(both.far), names(both.far, "held")) == ([], ["c2"], ["c2"])


@pytest.mark.parametrize("mode", ["pull", "push", "relay"])
def test_a_caller_finds_only_their_projects_on_the_source(
    both: Servers, held_at_source: Client, mode: str
) -> None:
    both.lxc("init", "busybox", "hidden")
    both.near.lxc("init", "busybox", "c1", "--project", "held")
    assert "not found" in held_at_source.refused("copy", "near:hidden", "far:", "--mode", mode)
    held_at_source.run("copy", "near:c1", "far:", "--mode", mode)
    held_at_source.run("move", "near:c1", "far:c2", "--mode", mode)
    assert names(both.far) == ["c1", "c2"]
    assert (names(both.near), names(both.near, "held")) == (["hidden"], [])


def test_another_project_and_pool_of_the_target(both: Servers) -> None:
    both.lxc("init", "busybox", "c1")
    both.lxc("snapshot", "c1", "first")
    where = ("--target-project", "held", "--storage", "second")
    both.lxc("copy", "near:c1", "far:c1", *where)
    (copy,) = both.far.get("/1.0/instances?recursion=1&project=held")
    assert copy["expanded_devices"]["root"]["pool"] == "second"
    both.lxc("snapshot", "c1", "second")
    env = {"UTSUWA_CONF": str(both.near.conf)}
    utsuwa_client(both.near, "copy", "near:c1", "far:c1", *where, "--refresh", env=env)
    snapshots = both.far.get("/1.0/instances/c1/snapshots?recursion=1&project=held")
    assert [(one["name"], one["devices"]["root"]["pool"]) for one in snapshots] == [
        ("first", "second"),
        ("second", "second"),
    ]
    utsuwa_client(both.near, "move", "near:c1", "far:c2", *where, env=env)
    assert (names(both.near), names(both.far), names(both.far, "held")) == ([], [], ["c1", "c2"])
    used_by = both.far.get("/1.0/storage-pools/default")["used_by"]
    assert not [url for url in used_by if url.startswith("/1.0/instances")]


def test_what_is_sent_of_a_running_instance(both: Servers) -> None:
    """Without its running state only if that is wished, and with files that change meanwhile, as wished."""
    both.lxc("launch", "busybox", "c1")
    env = {"UTSUWA_CONF": str(both.near.conf)}
    loop = "(while :; do touch /root/$$.$((i=i+1)); rm -f /root/$$.*; done) >/dev/null 2>&1 </dev/null &"
    both.lxc("exec", "c1", "--", "sh", "-c", loop)
    for number, words in enumerate(
        (("--allow-inconsistent",), ("--allow-inconsistent", "--mode", "relay"), ())
    ):
        utsuwa_client(both.near, "copy", "near:c1", f"far:c{number}", "--stateless", *words, env=env)
    utsuwa_client(both.near, "copy", "near:c1", "far:c0", "--refresh", "--mode", "push", env=env)
    both.lxc("copy", "near:c1", "far:c1", "--refresh", "--stateless", "--allow-inconsistent")
    assert names(both.far) == ["c0", "c1", "c2"]
    assert {one["status"] for one in both.far.get("/1.0/instances?recursion=1")} == {"Stopped"}
    assert both.near.get("/1.0/instances/c1")["status"] == "Running"
