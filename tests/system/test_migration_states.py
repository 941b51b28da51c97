"""Saved running states in copies and moves between servers: kept, left out, and refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import criu
from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image
from tests.support.long import usually
from tests.support.netbox import until
from tests.support.servers import Servers, servers

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

COUNT = """
(i=0; while :; do i=$((i+1)); echo $i >/root/.new; mv /root/.new /root/count; sleep 0.02; done) \
    </dev/null >/dev/null 2>&1 &
"""


@pytest.fixture(scope="module")
def module_servers(module_daemon: Daemon, busybox_image: Image, faults: Faults) -> Iterator[Servers]:
    with servers(module_daemon, busybox_image, env=faults.env) as found:
        for daemon in (found.near, found.far):
            criu.provide(daemon, criu.installed())
        yield found


@pytest.fixture
def both(module_servers: Servers) -> Iterator[Servers]:
    """A running instance `c1` on `near`, in which a process counts."""
    near = module_servers.near
    near.lxc("launch", "busybox", "c1")
    near.lxc("exec", "c1", "--", "sh", "-c", COUNT)
    until(lambda: count(near) > 0)
    yield module_servers
    module_servers.clean()


def utsuwa(both: Servers, *words: str, check: bool = True) -> str:
    """Run the own client; return all that it says."""
    ended = utsuwa_client(both.near, *words, check=check, env=near_env(both), timeout=120)
    return ended.stdout + ended.stderr


def near_env(both: Servers) -> dict[str, str]:
    return {"UTSUWA_CONF": str(both.near.conf)}


def count(daemon: Daemon) -> int:
    return int(daemon.lxc("exec", "c1", "--", "sh", "-c", "cat /root/count || echo 0").stdout.strip() or 0)


def counts_on(daemon: Daemon, at_least: int) -> None:
    first = count(daemon)
    assert first >= at_least
    until(lambda: count(daemon) > first)


def hwaddr(daemon: Daemon) -> str:
    config: dict[str, str] = daemon.get("/1.0/instances/c1")["config"]
    return config["volatile.eth0.hwaddr"]


def folder(daemon: Daemon, *names: str) -> Path:
    """Return the state of an instance, or of its snapshot."""
    kind = "containers" if len(names) == 1 else "containers-snapshots"
    return daemon.dir.joinpath("storage-pools", "default", kind, *names, "state")


def stateful(daemon: Daemon, name: str) -> tuple[bool, list[tuple[str, bool]]]:
    """Whether an instance has a saved state, and which of its snapshots have one."""
    snapshots = daemon.get(f"/1.0/instances/{name}/snapshots?recursion=1")
    own = daemon.get(f"/1.0/instances/{name}")["stateful"]
    return own, [(snapshot["name"], snapshot["stateful"]) for snapshot in snapshots]


@pytest.mark.parametrize("mode", usually(["relay"], ["pull", "relay"]))
def test_a_moved_instance_runs_on_where_it_was_stopped(both: Servers, mode: str) -> None:
    """And its snapshots can be restored with their processes."""
    utsuwa(both, "snapshot", "near:c1", "live", "--stateful")
    utsuwa(both, "snapshot", "near:c1", "plain")
    at_snapshot = count(both.near)
    utsuwa(both, "stop", "near:c1", "--stateful")
    utsuwa(both, "move", "near:c1", "far:", "--mode", mode)
    assert both.near.get("/1.0/instances") == []
    assert stateful(both.far, "c1") == (True, [("live", True), ("plain", False)])
    utsuwa(both, "start", "far:c1")
    counts_on(both.far, at_snapshot)
    utsuwa(both, "restore", "far:c1", "live", "--stateful")
    counts_on(both.far, 1)


def test_a_copy_has_the_states_of_snapshots_under_its_own_name_only(both: Servers) -> None:
    utsuwa(both, "snapshot", "near:c1", "live", "--stateful")
    utsuwa(both, "stop", "near:c1", "--stateful")
    said = utsuwa(both, "copy", "near:c1", "far:twin")
    assert "only copied to an instance of the same name" in said
    assert stateful(both.far, "twin") == (False, [("live", False)])
    assert not folder(both.far, "twin", "live").exists()
    assert "comes without that of the instance itself" in utsuwa(
        both, "copy", "near:c1", "far:c1", "--mode", "push"
    )
    assert stateful(both.far, "c1") == (False, [("live", True)])
    assert not folder(both.far, "c1").exists()
    both.lxc("copy", "near:c1", "far:third")
    utsuwa(both, "copy", "near:c1", "far:c1", "--refresh")
    assert stateful(both.far, "c1") == (False, [("live", True)])
    utsuwa(both, "delete", "far:c1")
    utsuwa(both, "copy", "near:c1/live", "far:c1")  # with a state of its own, of files that it loses now
    utsuwa(both, "copy", "near:c1", "far:c1", "--refresh")
    assert stateful(both.far, "c1") == (False, [("live", False)])
    utsuwa(both, "start", "far:c1")
    assert "cannot be moved" in utsuwa(both, "move", "near:c1", "far:fourth", check=False)
    utsuwa(both, "move", "near:c1", "far:fourth", "--stateless")
    assert stateful(both.far, "fourth") == (False, [("live", False)])


@pytest.mark.parametrize(("client", "mode"), [("lxc", "push"), ("lxc", "relay"), ("utsuwa", "pull")])
def test_a_copied_snapshot_goes_on_under_its_own_name(both: Servers, client: str, mode: str) -> None:
    """With the addresses that its processes know, and as often as it is copied; its source runs on."""
    run = both.lxc if client == "lxc" else partial(utsuwa, both)
    before = count(both.near)
    run("snapshot", "near:c1", "live", "--stateful")
    at_snapshot = count(both.near)
    run("copy", "near:c1/live", "far:c1", "--mode", mode)
    shown = both.far.get("/1.0/instances/c1")
    assert (shown["status"], shown["stateful"]) == ("Stopped", True)
    assert both.far.get("/1.0/instances/c1/snapshots") == []
    run("start", "far:c1")
    there = count(both.far)
    assert before <= there < count(both.near)  # which has counted since the snapshot, too
    counts_on(both.far, there)
    inside = both.far.lxc("exec", "c1", "--", "cat", "/sys/class/net/eth0/address").stdout.strip()
    assert inside == hwaddr(both.far) == hwaddr(both.near)
    assert not folder(both.far, "c1").exists()
    counts_on(both.near, at_snapshot)


@pytest.mark.parametrize("client", usually(["lxc"], ["lxc", "utsuwa"]))
def test_a_copied_snapshot_under_another_name_has_no_state(both: Servers, client: str) -> None:
    run = both.near.lxc if client == "lxc" else partial(utsuwa_client, both.near, env=near_env(both))
    run("snapshot", "near:c1", "live", "--stateful")
    run("snapshot", "near:c1", "plain")
    for target in ("far:twin", "near:twin"):
        refused = run("copy", "near:c1/live", target, check=False)
        assert refused.returncode
        assert "is only copied to an instance of the same name" in refused.stderr
        assert "--stateless" in refused.stderr
        assert both.far.get("/1.0/instances") == []
        run("copy", "near:c1/live", target, "--stateless")
        daemon = both.far if target.startswith("far") else both.near
        assert stateful(daemon, "twin") == (False, [])
        assert not folder(daemon, "twin").exists()
        run("delete", target)
    run("copy", "near:c1/plain", "far:twin")


def test_a_target_does_not_believe_what_its_caller_says_of_the_name(both: Servers) -> None:
    """Nor that there is a state."""
    utsuwa(both, "snapshot", "near:c1", "live", "--stateful")
    utsuwa(both, "snapshot", "near:c1", "plain")
    server = both.near.get("/1.0")
    for snapshot, live, name, reason in (
        ("live", True, "twin", "cannot be copied: the running state is only copied"),
        ("live", False, "c1", "does not offer it"),
        ("plain", False, "c1", "does not offer it"),
    ):
        offer = {"migration": True, "live": live}
        sending = both.near.api("POST", f"/1.0/instances/c1/snapshots/{snapshot}", offer)
        source = {
            "type": "migration",
            "mode": "pull",
            "live": True,
            "operation": f"https://{server['config']['core.https_address']}{sending.operation}",
            "secrets": sending.metadata["metadata"],
            "certificate": server["environment"]["certificate"],
        }
        body = {"name": name, "stateful": True, "source": source}
        ended = both.far.wait(both.far.api("POST", "/1.0/instances", body))
        assert reason in ended["err"]
        assert reason in both.near.wait(sending)["err"]
        assert both.far.get("/1.0/instances") == []
    refused = both.near.api(
        "POST", "/1.0/instances/c1/snapshots/plain", {"migration": True, "live": True, "name": "c1"}
    )
    assert (refused.status, "no running state" in refused.error) == (400, True)


def test_what_is_left_of_a_copied_snapshot_if_the_target_is_killed(both: Servers, faults: Faults) -> None:
    utsuwa(both, "snapshot", "near:c1", "live", "--stateful")
    with faults.kill_at(both.far, "instance is received"):
        utsuwa(both, "copy", "near:c1/live", "far:c1", check=False)
    assert both.far.get("/1.0/instances") == []
    assert not folder(both.far, "c1").parent.exists()


def test_restricted_callers_get_no_state(both: Servers, tmp_path: Path) -> None:
    utsuwa(both, "snapshot", "near:c1", "live", "--stateful")
    utsuwa(both, "stop", "near:c1", "--force")
    both.far.do("POST", "/1.0/projects", {"name": "p", "config": {"features.profiles": "false"}})
    before = set(both.far.get("/1.0/certificates"))
    env = {"UTSUWA_CONF": str(tmp_path)}
    for name, daemon, held in (
        ("near", both.near, ()),
        ("far", both.far, ("--restricted", "--projects", "p")),
    ):
        token = utsuwa_client(daemon, "config", "trust", "add", "--name", "laptop", *held).stdout.split()[-1]
        utsuwa_client(both.near, "remote", "add", name, token, env=env)
    said = utsuwa_client(both.near, "copy", "near:c1", "far:", env=env).stderr
    assert "only be copied by callers without restrictions" in said
    (snapshot,) = both.far.get("/1.0/instances/c1/snapshots?recursion=1&project=p")
    assert not snapshot["stateful"]
    both.far.do("DELETE", "/1.0/instances/c1?project=p")
    said = utsuwa_client(both.near, "copy", "near:c1/live", "far:c1", env=env, check=False).stderr
    assert "cannot be copied: the running state can only be copied by callers without restrictions" in said
    assert both.far.get("/1.0/instances?project=p") == []
    utsuwa_client(both.near, "copy", "near:c1/live", "far:c1", "--stateless", env=env)
    assert not both.far.get("/1.0/instances/c1?project=p")["stateful"]
    both.far.do("DELETE", "/1.0/instances/c1?project=p")
    for url in set(both.far.get("/1.0/certificates")) - before:
        both.far.do("DELETE", url)
    both.far.do("DELETE", "/1.0/projects/p")


def test_a_state_of_other_ids_is_left_out(both: Servers) -> None:
    utsuwa(both, "snapshot", "near:c1", "live", "--stateful")
    utsuwa(both, "stop", "near:c1", "--force")
    said = utsuwa(both, "copy", "near:c1", "far:", "-c", "security.idmap.isolated=true")
    assert "other ids" in said
    assert stateful(both.far, "c1") == (False, [("live", False)])
    assert not folder(both.far, "c1", "live").exists()


def test_an_instance_whose_state_would_be_lost_is_not_moved(both: Servers) -> None:
    utsuwa(both, "stop", "near:c1", "--stateful")
    isolated = ("-c", "security.idmap.isolated=true")
    said = utsuwa(both, "move", "near:c1", "far:", *isolated, check=False)
    assert "cannot be moved: the instance has other ids" in said
    assert both.far.get("/1.0/instances") == []
    assert stateful(both.near, "c1") == (True, [])
    utsuwa(both, "start", "near:c1")
    counts_on(both.near, 1)


def test_what_is_left_of_a_killed_target_is_nothing(both: Servers, faults: Faults) -> None:
    utsuwa(both, "stop", "near:c1", "--stateful")
    with faults.kill_at(both.far, "instance is received"):
        utsuwa(both, "move", "near:c1", "far:", check=False)
    assert both.far.get("/1.0/instances") == []
    assert not folder(both.far, "c1").parent.exists()
    assert stateful(both.near, "c1") == (True, [])
    utsuwa(both, "start", "near:c1")
    counts_on(both.near, 1)


def test_a_damaged_state_is_refused(both: Servers) -> None:
    utsuwa(both, "stop", "near:c1", "--stateful")
    state = folder(both.near, "c1")
    kept = state.with_name("kept")
    shutil.copytree(state, kept)
    (state / "utsuwa.json").write_text("{}")
    assert "is damaged" in utsuwa(both, "move", "near:c1", "far:", check=False)
    assert both.far.get("/1.0/instances") == []
    shutil.rmtree(state)
    kept.rename(state)
    utsuwa(both, "start", "near:c1", "--stateless")
