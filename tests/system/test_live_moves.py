"""Running instances that are moved between two hosts, with Debian's `lxc` and the own client."""

from __future__ import annotations

import json
import statistics
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.hosts import LAN, Hosts, hosts
from tests.support.images import Image
from tests.support.long import amount
from tests.support.netbox import until
from utsuwa.client.http import open_unix
from utsuwa.client.server import Server
from utsuwa.client.websocket import WebSocket

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MOVES = amount(2, long=100)
"""To and fro, each with a connection that counts and one that answers."""
_REMEMBER = """
(x=$(head -c 3000000 /dev/urandom | base64); echo "$x" | md5sum >/before
while ! [ -e /look ]; do sleep 0.1; done; echo "$x" | md5sum >/after) </dev/null >/dev/null 2>&1 &
while ! [ -s /before ]; do sleep 0.1; done
"""
_UNREAD = """
echo 'touch /event; while ! [ -e /late ]; do sleep 0.1; done' >/wait
uevent sh /wait </dev/null >/dev/null 2>&1 & listener=$!
while ! grep -qE "^[0-9a-f]+ +15 +$listener " /proc/net/netlink; do sleep 0.1; done
ip link add br8 type bridge; while ! [ -e /event ]; do sleep 0.1; done; ip link add br9 type bridge
"""
"""Has a process wait for a file between two messages."""


@pytest.fixture(scope="module")
def both_hosts(busybox_image: Image, faults: Faults) -> Iterator[Hosts]:
    with hosts(busybox_image, faults.env) as found:
        yield found


@pytest.fixture
def both(both_hosts: Hosts) -> Iterator[Hosts]:
    yield both_hosts
    both_hosts.clean()


def refused(both: Hosts, *words: str) -> str:
    """Run a command of `lxc` that must fail and leave `c1` running on `near` alone; return what it says."""
    said = both.lxc(*words, check=False)
    assert said.startswith("Error"), said
    both.settled()
    assert both.where("c1") == ["near"]
    assert both.far.get("/1.0/instances") == []
    return said


@pytest.mark.timeout(1800)
def test_counts_and_connections_go_on_on_the_other_host(both: Hosts) -> None:
    both.lxc("launch", "busybox", "c1")
    both.serve("c1")
    times = []
    with both.peer() as peer:
        for number in range(MOVES):
            source, target = ("near", "far") if number % 2 == 0 else ("far", "near")
            mode = "pull" if number % 4 < 2 else "push"
            both.lxc("move", f"{source}:c1", f"{target}:c1", "--mode", mode)
            times.append(peer.report(f"on-{target}"))
            assert both.where("c1") == [target]
            assert both.state(both.near if target == "far" else both.far, "c1") == ""
    both.settled()
    print(f"downtime of {MOVES} moves: median {statistics.median(times):.2f} s, maximum {max(times):.2f} s")


def test_memory_is_sent_in_rounds_by_the_own_client(both: Hosts, faults: Faults) -> None:
    config = ("migration.incremental.memory=true", "migration.incremental.memory.iterations=3")
    both.lxc("launch", "busybox", "c1", *(word for entry in config for word in ("-c", entry)))
    both.near.lxc("exec", "c1", "--", "sh", "-c", _REMEMBER)
    faults.forget()
    with closing(Server(lambda: open_unix(str(both.near.socket)), "utsuwa")) as server:
        listener = server.websocket("/1.0/events?type=operation")
        both.utsuwa("move", "near:c1", "far:")
        phases = phases_of_move(listener)
        listener.close()
    assert faults.reached().count("memory round sent") == 2  # the second one found that nothing changes
    assert both.where("c1") == ["far"]
    both.far.lxc("exec", "c1", "--", "sh", "-c", "touch /look; while ! [ -s /after ]; do sleep 0.1; done")
    assert both.far.lxc("exec", "c1", "--", "cmp", "/before", "/after").stdout == ""
    assert {"memory, round 1", "stopped, memory and the last files"} <= phases


def test_files_that_change_after_a_failed_save_are_there(both: Hosts) -> None:
    """Unread messages of a netlink socket have the first attempt fail, whose files were sent by then."""
    both.lxc("launch", "busybox", "c1")
    both.near.lxc("exec", "c1", "--", "sh", "-c", _UNREAD)
    thread = threading.Thread(target=both.lxc, args=("move", "near:c1", "far:c1"))
    thread.start()
    until(lambda: "a netlink socket has unread messages" in both.near.log.read_text(), 60)
    both.near.lxc("exec", "c1", "--", "sh", "-c", "echo late >/late")
    thread.join()
    assert both.where("c1") == ["far"]
    assert both.far.lxc("exec", "c1", "--", "cat", "/late").stdout == "late\n"


def test_what_cannot_be_moved_is_refused_before_anything_moves(both: Hosts) -> None:
    both.lxc("launch", "busybox", "c1")
    assert "moved, but not copied" in refused(both, "copy", "near:c1", "far:c1")
    assert "keeps its name" in refused(both, "move", "near:c1", "far:c2")
    assert "--mode pull or push" in refused(both, "move", "near:c1", "far:c1", "--mode", "relay")
    (criu,) = both.far.dir.glob("criu")
    installed = criu.readlink()
    criu.unlink()
    assert "utsuwad criu install" in refused(both, "move", "near:c1", "far:c1")
    criu.symlink_to(installed)
    (certificate,) = both.far.get("/1.0/certificates?recursion=1")
    url = f"/1.0/certificates/{certificate['fingerprint']}"
    both.far.do("PATCH", url, {"restricted": True, "projects": ["default"]})
    assert "without restrictions" in refused(both, "move", "near:c1", "far:c1")
    both.far.do("PATCH", url, {"restricted": False, "projects": []})


def test_who_waits_for_a_move_does_not_start_it_here_again(both: Hosts) -> None:
    both.lxc("launch", "busybox", "c1")
    both.near.lxc("exec", "c1", "--", "dd", "if=/dev/urandom", "of=/large", "bs=1M", "count=5")
    both.near.do("PATCH", "/1.0/storage-pools/default", {"config": {"rsync.bwlimit": "1MiB"}})
    moving = threading.Thread(target=both.lxc, args=("move", "near:c1", "far:c1"))
    moving.start()
    try:
        until(lambda: is_sending(both.near))
        actions = [{"action": action, "timeout": 60} for action in ("restart", "stop", "start")]
        replies = [both.near.api("PUT", "/1.0/instances/c1/state", action) for action in actions]
        for reply in replies:
            assert "has moved to another server" in both.near.wait(reply)["err"]
    finally:
        moving.join()
        both.near.do("PATCH", "/1.0/storage-pools/default", {"config": {"rsync.bwlimit": ""}})
    assert both.where("c1") == ["far"]
    assert both.state(both.near, "c1") == ""


def is_sending(daemon: Daemon) -> bool:
    """Return whether a running instance is being sent, whose lock is held then."""
    running = daemon.get("/1.0/operations?recursion=1").get("running", [])
    return any("live_migrate_instance_progress" in (one["metadata"] or {}) for one in running)


def test_what_fails_on_the_other_host_goes_on_here(both: Hosts) -> None:
    both.lxc("launch", "busybox", "c1")
    both.serve("c1")
    nic = {"type": "nic", "nictype": "bridged", "parent": "missing", "name": "eth0"}
    with both.peer() as peer:
        before = both.far.get("/1.0/profiles/default")["devices"]
        both.far.do("PATCH", "/1.0/profiles/default", {"devices": before | {"eth0": nic}})
        assert "missing" in refused(both, "move", "near:c1", "far:c1")
        peer.report("not-begun")
        # With another interface there, it cannot be restored, which is seen when it has been stopped.
        second = nic | {"parent": LAN, "name": "eth1"}
        both.far.do("PATCH", "/1.0/profiles/default", {"devices": before | {"eth1": second}})
        for mode in ("pull", "push"):
            said = refused(both, "move", "near:c1", "far:c1", "--mode", mode)
            assert "has eth0, eth1 now" in said
            peer.report(f"back-{mode}")
        profile = both.far.get("/1.0/profiles/default")
        both.far.do("PUT", "/1.0/profiles/default", profile | {"devices": before})
        both.lxc("move", "near:c1", "far:c1")
        peer.report("moved")


@contextmanager
def few_ids(daemon: Daemon) -> Iterator[None]:
    """Have instances get 65536 ids of their own on a host."""
    url = "/1.0/profiles/default"
    before = daemon.get(url)
    daemon.do("PATCH", url, {"config": {"security.idmap.isolated": "true"}})
    try:
        yield
    finally:
        daemon.do("PUT", url, before)


def test_the_ids_may_be_others_on_the_other_host(both: Hosts) -> None:
    both.lxc("launch", "busybox", "c1")
    both.serve("c1")

    def run(daemon: Daemon, command: str) -> str:
        return daemon.lxc("exec", "c1", "--", "sh", "-c", command).stdout

    run(both.near, "echo x >/mine; chown 1000:1001 /mine")
    maps = [run(both.near, "cat /proc/1/uid_map /proc/1/gid_map").split()]
    with both.peer() as peer, few_ids(both.far):
        both.lxc("move", "near:c1", "far:c1")
        peer.report("on-far")
        maps.append(run(both.far, "cat /proc/1/uid_map /proc/1/gid_map").split())
        assert run(both.far, "stat -c %u:%g /mine; touch /new && stat -c %u /new").split() == [
            "1000:1001",
            "0",
        ]
        both.lxc("move", "far:c1", "near:c1")
        peer.report("back")
    maps.append(run(both.near, "cat /proc/1/uid_map /proc/1/gid_map").split())
    assert maps[0] == maps[2]
    assert [maps[1][0], maps[1][2]] == ["0", "65536"]
    assert maps[1][1] != maps[0][1]
    assert run(both.near, "stat -c %u:%g /mine").split() == ["1000:1001"]


@pytest.mark.debian
def test_a_debian_with_systemd_goes_on(both: Hosts, debian_image: Image) -> None:
    """Also on a host without its image, where files that are watched have other inodes."""
    both.near.import_image(debian_image.metadata, debian_image.rootfs, alias="debian")
    both.lxc("launch", "debian", "d1", "-c", "migration.stateful=true")

    def run(daemon: Daemon, *words: str) -> str:
        return daemon.lxc("exec", "d1", "--", *words, check=False).stdout.strip()

    until(lambda: run(both.near, "systemctl", "is-system-running") in ("running", "degraded"), 180)
    before = run(both.near, "systemctl", "is-system-running")
    run(both.near, "systemd-run", "--unit", "mine", "sleep", "infinity")
    begun = run(both.near, "systemctl", "show", "-p", "ExecMainPID,ActiveState", "mine")
    with few_ids(both.far):
        for target in ("far", "near"):
            source = "near" if target == "far" else "far"
            both.lxc("move", f"{source}:d1", f"{target}:d1")
            daemon = both.far if target == "far" else both.near
            assert run(daemon, "systemctl", "is-system-running") == before
            assert run(daemon, "systemctl", "show", "-p", "ExecMainPID,ActiveState", "mine") == begun
            assert run(daemon, "systemd-run", "--wait", "true") == ""  # systemd owns its cgroups


def phases_of_move(listener: WebSocket) -> set[str]:
    """Return the phases that the operation of a move names until its end, of which the listener is told."""
    seen: set[str] = set()
    while True:
        message = listener.receive()
        assert message is not None, "the listener was cut off"
        operation = json.loads(message[1])["metadata"]
        text = (operation["metadata"] or {}).get("live_migrate_instance_progress", "")
        seen.add(text.partition(": ")[2])
        if text and operation["status"] != "Running":
            return seen
