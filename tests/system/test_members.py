"""Two daemons on one PostgreSQL database, as two hosts: neither takes what is the other's for its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image
from tests.support.netbox import NetBox, until
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.root

_BR = {"ipv4.address": "10.78.0.1/24", "ipv6.address": "none"}


@dataclass(frozen=True)
class Pair:
    one: Daemon
    two: Daemon
    faults: Faults
    """Of the first one."""
    server: PostgresServer
    database: str

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        return self.server.execute(statement, self.database)


@contextmanager
def member(name: str, url: str, env: dict[str, str] | None = None) -> Iterator[Daemon]:
    """A daemon in a network of its own; fails for what it leaves there."""
    box = NetBox()
    try:
        before = set(box.links())
        daemon = Daemon(box=box, env=env)
        daemon.dir.mkdir(mode=0o711)
        settings = daemon.dir / "database.yaml"
        settings.write_text(f"url: {url}\nmember: {name}\n")
        settings.chmod(0o600)
        try:
            daemon.start()
            yield daemon
        finally:
            problems = daemon.close()
        problems += box.leaks(before)
        assert not problems, "\n".join([f"{name} left behind or did wrong:", *problems])
    finally:
        box.close()


@pytest.fixture(scope="module")
def pair(
    postgres: PostgresServer, busybox_image: Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Both have the pool `default`, the network `br` and the image `busybox`."""
    url = postgres.new_database()
    faults = Faults(tmp_path_factory.mktemp("faults"))
    with member("host1", url, faults.env) as one, member("host2", url) as two, ExitStack() as stack:
        one.make_defaults()
        one.do("POST", "/1.0/networks", {"name": "br", "config": _BR})
        _set_up(two)
        for daemon in (one, two):
            files = map(str, (busybox_image.metadata, busybox_image.rootfs))
            daemon.lxc("image", "import", *files, "--alias", "busybox")
        stack.callback(_clean, one, two)
        name = url.partition("@/")[2].partition("?")[0]
        yield Pair(one, two, faults, postgres, name)


def _set_up(daemon: Daemon) -> None:
    """As its administrator would: it gets what the other one has."""
    done = subprocess.run(
        [sys.executable, "-m", "utsuwa.daemon.main", "init", "--auto"],
        env=daemon.environment(UTSUWA_DIR=str(daemon.dir)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _clean(one: Daemon, two: Daemon) -> None:
    """What both have, each from its own host."""
    for daemon in (one, two):
        _delete_own(daemon)
    one.do("PUT", "/1.0/profiles/default", {"config": {}, "devices": {}})
    for image in one.get("/1.0/images"):
        one.do("DELETE", image)
    for daemon in (one, two):
        daemon.do("DELETE", "/1.0/networks/br")
        daemon.do("DELETE", "/1.0/storage-pools/default")


def _delete_own(daemon: Daemon) -> None:
    for instance in listed(daemon):
        if daemon.api("GET", f"/1.0/instances/{instance['name']}/state").status != 421:
            daemon.lxc("delete", "-f", instance["name"])


@pytest.fixture(autouse=True)
def emptied(pair: Pair) -> Iterator[None]:
    yield
    for daemon in (pair.one, pair.two):
        _delete_own(daemon)


def listed(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.get("/1.0/instances?recursion=1")
    return found


def seen(daemon: Daemon) -> list[tuple[str, str, str]]:
    return [(i["name"], i["location"], i["status"]) for i in listed(daemon)]


def pid(daemon: Daemon, name: str) -> int:
    return int(daemon.get(f"/1.0/instances/{name}/state")["pid"])


def test_both_lists_show_all_instances_and_where_they_are(pair: Pair) -> None:
    pair.one.lxc("launch", "busybox", "c1")
    pair.two.lxc("launch", "busybox", "c2")
    pair.two.lxc("init", "busybox", "c3")
    wanted = [("c1", "host1", "Running"), ("c2", "host2", "Running"), ("c3", "host2", "Stopped")]
    assert seen(pair.one) == wanted
    assert seen(pair.two) == wanted
    assert pair.one.get("/1.0/instances") == pair.two.get("/1.0/instances")
    states = pair.one.get("/1.0/instances?recursion=2")
    assert [(i["state"]["status"], i["state"]["pid"] > 0) for i in states] == [
        ("Running", True),
        ("Running", False),
        ("Stopped", False),
    ]
    for kind, count in (("container", 3), ("image", 2)):
        volumes = pair.one.get(f"/1.0/storage-pools/default/volumes/{kind}?recursion=1")
        assert len(volumes) == count
        assert {volume["location"] for volume in volumes} == {"host1", "host2"}
    assert pair.two.get("/1.0/storage-pools/default")["locations"] == ["host1", "host2"]
    assert pair.two.get("/1.0/networks/br")["locations"] == ["host1", "host2"]


@pytest.mark.parametrize("point", ["before complete creation of instance", "after reserve instance"])
def test_a_killed_daemon_sweeps_its_own_only(pair: Pair, point: str) -> None:
    one, two = pair.one, pair.two
    one.lxc("launch", "busybox", "c1")
    two.lxc("launch", "busybox", "c2")
    two.lxc("init", "busybox", "c3")
    pair.sql("UPDATE instances SET state = 0 WHERE name = 'c3'")  # as if it were just being made
    pids, files = pid(one, "c1"), set((two.dir / "storage-pools/default/containers").iterdir())
    other = pid(two, "c2")
    with pair.faults.kill_at(one, point):
        one.api("POST", "/1.0/instances", {"name": "half", "source": {"type": "image", "alias": "busybox"}})
        until(lambda: point in pair.faults.reached(), 30)
    assert pid(one, "c1") == pids
    assert pid(two, "c2") == other
    assert set((two.dir / "storage-pools/default/containers").iterdir()) == files
    assert pair.sql("SELECT state FROM instances WHERE name = 'c3'") == [(0,)]
    assert sorted(path.name for path in (one.dir / "storage-pools/default/containers").iterdir()) == ["c1"]
    pair.sql("UPDATE instances SET state = 1 WHERE name = 'c3'")
    wanted = [("c1", "host1", "Running"), ("c2", "host2", "Running"), ("c3", "host2", "Stopped")]
    assert seen(one) == wanted
    assert seen(two) == wanted
    two.lxc("start", "c3")
    assert two.lxc("exec", "c3", "--", "echo", "whole").stdout == "whole\n"


def test_a_restarted_daemon_starts_and_stops_its_own_only(pair: Pair) -> None:
    one, two = pair.one, pair.two
    two.lxc("launch", "busybox", "c2", "-c", "boot.autostart=true")
    other = pid(two, "c2")
    one.restart()
    assert pid(two, "c2") == other
    assert one.get("/1.0/instances/c2")["location"] == "host2"
    two.lxc("stop", "-f", "c2")
    one.restart()
    assert seen(one) == seen(two) == [("c2", "host2", "Stopped")]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/state", {"action": "stop", "force": True}),
        ("PUT", "/state", {"action": "start"}),
        ("POST", "/exec", {"command": ["true"]}),
        ("GET", "/state", None),
        ("PATCH", "", {"config": {"user.a": "1"}}),
        ("PUT", "", {"config": {"user.a": "1"}, "profiles": ["default"]}),
        ("POST", "", {"name": "c9"}),
        ("DELETE", "", None),
    ],
)
def test_requests_about_instances_of_other_members_are_rejected(
    pair: Pair, method: str, path: str, body: object
) -> None:
    pair.two.lxc("launch", "busybox", "c2")
    before, other = pair.two.get("/1.0/instances/c2"), pid(pair.two, "c2")
    refused = pair.one.api(method, f"/1.0/instances/c2{path}", body)
    assert refused.status == 421
    assert "is on 'host2': ask that member" in refused.error
    assert pair.two.get("/1.0/instances/c2") == before
    assert pid(pair.two, "c2") == other


def test_an_operation_can_be_found_from_the_other_member(pair: Pair) -> None:
    pair.one.lxc("launch", "busybox", "c9")
    operation = pair.one.api("POST", "/1.0/instances/c9/exec", {"command": ["sleep", "600"]}).operation

    def there() -> bool:
        return bool(pair.two.get("/1.0/operations") == {"running": [operation]})

    until(there)
    (shown,) = pair.two.get("/1.0/operations?recursion=1")["running"]
    assert (shown["description"], shown["location"]) == ("Executing command", "host1")
    assert pair.one.get(operation)["location"] == "host1"
    reply = pair.two.api("GET", operation)
    assert (reply.status, reply.error) == (421, "The operation is running on 'host1': ask that member")
    pair.one.kill()
    pair.one.start()
    assert pair.two.get("/1.0/operations") == {}
    _delete_own(pair.one)


def test_all_instances_of_this_member_are_stopped_at_once(pair: Pair) -> None:
    pair.one.lxc("launch", "busybox", "c1")
    pair.two.lxc("launch", "busybox", "c2")
    pair.one.do("PUT", "/1.0/instances", {"state": {"action": "stop", "force": True}})
    assert seen(pair.two) == [("c1", "host1", "Stopped"), ("c2", "host2", "Running")]


def test_names_and_addresses_are_unique_across_members(pair: Pair) -> None:
    nic = {"eth0": {"type": "nic", "network": "br", "ipv4.address": "10.78.0.9"}}
    source = {"type": "image", "alias": "busybox"}
    pair.two.do("POST", "/1.0/instances", {"name": "c2", "source": source, "devices": nic})
    taken = pair.one.api("POST", "/1.0/instances", {"name": "c2", "source": source})
    assert taken.status == 409
    refused = pair.one.api("POST", "/1.0/instances", {"name": "c1", "source": source, "devices": nic})
    assert refused.status == 400
    assert "10.78.0.9 is taken" in refused.error


def test_a_profile_is_followed_here_at_once_and_elsewhere_at_the_next_start(pair: Pair) -> None:
    one, two = pair.one, pair.two
    one.lxc("launch", "busybox", "c1")
    two.lxc("launch", "busybox", "c2")
    one.do("PATCH", "/1.0/profiles/default", {"config": {"limits.processes": "77"}})
    assert two.get("/1.0/instances/c2")["expanded_config"]["limits.processes"] == "77"
    two.lxc("restart", "-f", "c2")
    two.lxc("exec", "c2", "--", "true")
    one.do("PUT", "/1.0/profiles/default", {**one.get("/1.0/profiles/default"), "config": {}})


def test_objects_of_other_members_are_pending(pair: Pair) -> None:
    one, two = pair.one, pair.two
    one.do("POST", "/1.0/storage-pools", {"name": "fast", "driver": "dir"})
    one.do("POST", "/1.0/networks", {"name": "br9", "config": {"ipv6.address": "none"}})
    for url in ("/1.0/storage-pools/fast", "/1.0/networks/br9"):
        shown = two.get(url)
        assert (shown["status"], shown["locations"]) == ("Pending", ["host1"])
    source = {"type": "image", "alias": "busybox"}
    for devices in (
        {"root": {"type": "disk", "path": "/", "pool": "fast"}},
        {"eth0": {"type": "nic", "network": "br9"}},
    ):
        refused = two.api("POST", "/1.0/instances", {"name": "c2", "source": source, "devices": devices})
        assert refused.status == 421
        assert "is on host1 only: create it on this member, too" in refused.error
    two.restart()
    assert two.get("/1.0/storage-pools/fast")["status"] == "Pending"
    assert "br9" not in (two.box.links() if two.box else ())
    for daemon, status in ((two, 421), (one, 200)):
        for url in ("/1.0/storage-pools/fast", "/1.0/networks/br9"):
            assert daemon.api("DELETE", url).status == status


def test_a_change_of_a_network_reaches_the_other_member(pair: Pair) -> None:
    box = pair.two.box
    assert box is not None
    pair.one.do("PATCH", "/1.0/networks/br", {"config": {"ipv4.address": "10.79.0.1/24"}})
    until(lambda: box.addresses("br") == {"10.79.0.1/24"}, 20)
    pair.two.do("PATCH", "/1.0/networks/br", {"config": {"ipv4.address": "10.78.0.1/24"}})


def test_a_member_of_the_same_name_does_not_start(pair: Pair) -> None:
    url = f"url: postgresql://postgres@/{pair.database}?host={pair.server.folder}\n"
    for settings, reason in (
        (f"{url}member: host1\n", "'host1' of the database is a daemon with another state directory"),
        (url, "set a unique name"),
    ):
        third = Daemon()
        third.dir.mkdir(mode=0o711)
        (third.dir / "database.yaml").write_text(settings)
        (third.dir / "database.yaml").chmod(0o600)
        third.start(wait=False)
        process = third.process
        until(lambda process=process: process is None or process.poll() is not None, 30)
        assert third.stop() == 1
        assert reason in third.log_tail()
        assert third.close() == []
    assert [row["name"] for row in listed(pair.one)] == []
