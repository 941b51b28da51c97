"""Root's id ranges change under instances that exist, in a mount namespace of the test's own (incus#458)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.images import Image

pytestmark = pytest.mark.root

WIDE = "root:1000000:1000000000\n"
NARROW = "root:100000:65536\n"
NO_IDMAPPING = {"UTSUWA_IDMAPPED_MOUNTS_DISABLE": "true"}


class Host:
    """A daemon, and the ranges of the host that it sees."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self._files = [folder / "subuid", folder / "subgid"]
        self.ranges(WIDE)
        for file in self._files:
            assert daemon.box is not None
            daemon.box.run("mount", "--bind", str(file), f"/etc/{file.name}")

    def ranges(self, text: str) -> None:
        for file in self._files:
            file.write_text(text)

    def make(self, name: str, **config: str) -> None:
        keys = {key.replace("_", "."): value for key, value in config.items()}
        source = {"type": "image", "alias": "busybox"}
        self.daemon.do("POST", "/1.0/instances", {"name": name, "source": source, "config": keys})
        self.act(name, "start")

    def act(self, name: str, action: str) -> None:
        body = {"action": action, "force": action != "start"}
        self.daemon.do("PUT", f"/1.0/instances/{name}/state", body)

    def refusal(self, name: str) -> str:
        """What a start of it fails with."""
        reply = self.daemon.api("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
        return str(self.daemon.wait(reply)["err"])

    def run(self, name: str, script: str) -> str:
        return self.daemon.lxc("exec", name, "--", "sh", "-c", script).stdout.strip()

    def maps(self, name: str) -> tuple[str, str]:
        """Its uid_map and gid_map, words apart by one blank."""
        lines = self.run(name, "cat /proc/1/uid_map; echo; cat /proc/1/gid_map")
        uids, gids = (" ".join(part.split()) for part in lines.split("\n\n"))
        return uids, gids


@pytest.fixture
def host(busybox_image: Image, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    with boxed_daemon() as daemon:
        env, driver = getattr(request, "param", ({}, "overlay"))
        host = Host(daemon, tmp_path)
        daemon.env = env
        daemon.restart()
        if driver != "overlay":
            daemon.do("POST", "/1.0/storage-pools", {"name": "other", "driver": driver})
            root = {"type": "disk", "path": "/", "pool": "other"}
            daemon.do("PATCH", "/1.0/profiles/default", {"devices": {"root": root}})
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        yield host
        daemon.delete_instances()
        if driver != "overlay":
            root = {"type": "disk", "path": "/", "pool": "default"}
            daemon.do("PATCH", "/1.0/profiles/default", {"devices": {"root": root}})
            daemon.do("DELETE", f"/1.0/images/{daemon.get('/1.0/images')[0].rsplit('/', 1)[1]}")
            daemon.do("DELETE", "/1.0/storage-pools/other")


@pytest.mark.parametrize(
    "host",
    [({}, "overlay"), ({}, "dir"), (NO_IDMAPPING, "dir"), (NO_IDMAPPING, "overlay")],
    indirect=True,
    ids=["overlay", "dir", "dir-shifted", "overlay-shifted"],
)
def test_an_instance_starts_inside_of_the_range_that_is_left(host: Host) -> None:
    """With its files in order, whether their owners lie shifted on disk or not."""
    host.make("p")
    assert host.maps("p") == ("0 1000000 1000000000",) * 2
    host.run("p", "echo x >/mine; chown 1000:1001 /mine; chmod 4750 /mine")
    before = host.run("p", "stat -c '%u %g %a' / /bin/busybox /etc /mine")
    host.act("p", "stop")
    host.ranges(NARROW)
    host.daemon.restart()
    host.act("p", "start")
    assert host.maps("p") == ("0 100000 65536",) * 2
    assert host.run("p", "stat -c '%u %g %a' / /bin/busybox /etc /mine") == before
    assert "instance 'p' gets other ids" in host.daemon.log.read_text()
    host.make("q")
    assert host.maps("q") == host.maps("p")


def lost_ids(host: Host) -> list[dict[str, str]]:
    found = host.daemon.get("/1.0/warnings?recursion=1")
    return [w for w in found if w["type"] == "An instance runs with ids that root has lost"]


def test_a_running_instance_keeps_its_ids_until_it_is_restarted(host: Host) -> None:
    host.make("p")
    host.ranges(NARROW)
    host.daemon.restart()
    assert host.maps("p")[0] == "0 1000000 1000000000"
    (warning,) = lost_ids(host)
    assert "instance 'p' is running with ids that" in warning["last_message"]
    assert (warning["status"], warning["entity_url"]) == ("new", "/1.0/instances/p")
    host.act("p", "restart")
    assert lost_ids(host)[0]["status"] == "resolved"
    assert host.maps("p")[0] == "0 100000 65536"


def test_isolated_instances_get_other_parts_that_do_not_meet(host: Host) -> None:
    for name in ("a", "b"):
        host.make(name, security_idmap_isolated="true")
        host.act(name, "stop")
    host.ranges("root:200000:262144\n")
    for name in ("a", "b"):
        host.act(name, "start")
    assert host.maps("a") == ("0 265536 65536",) * 2
    assert host.maps("b") == ("0 331072 65536",) * 2
    assert host.daemon.get("/1.0/instances/b")["config"]["volatile.idmap.base"] == "331072"


def test_profile_with_isolation_assigns_distinct_id_ranges(host: Host) -> None:
    for name in ("a", "b"):
        host.make(name)
        host.act(name, "stop")
    host.daemon.do("PATCH", "/1.0/profiles/default", {"config": {"security.idmap.isolated": "true"}})
    try:
        for name in ("a", "b"):
            host.act(name, "start")
        assert host.maps("a") != host.maps("b")
        assert len({host.maps(name)[0].split()[1] for name in ("a", "b")}) == 2
    finally:
        host.daemon.do("PATCH", "/1.0/profiles/default", {"config": {"security.idmap.isolated": ""}})


def test_raw_ids_are_needed_when_the_instance_starts(host: Host) -> None:
    """They can be set before they are listed, unless the instance runs: its next start would fail."""
    host.make("p")
    url, config = "/1.0/instances/p", {"config": {"raw.idmap": "both 4242 1000"}}
    missing = "'raw.idmap' maps the host's uid 4242, which root may not map: add the line root:4242:1"
    refused = host.daemon.api("PATCH", url, config)
    assert (refused.status, missing in refused.error) == (400, True)
    host.act("p", "stop")
    host.daemon.do("PATCH", url, config)
    assert missing in host.refusal("p")
    host.ranges(WIDE + "root:4242:1\n")
    host.act("p", "start")
    assert "1000 4242 1" in host.maps("p")[0]


def test_the_own_ids_of_root_need_no_line(host: Host) -> None:
    host.make("zero", raw_idmap="both 0 1000")
    assert all("1000 0 1" in lines for lines in host.maps("zero"))


def test_instances_start_again_when_the_id_range_is_restored(host: Host) -> None:
    host.ranges(WIDE + "root:4242:1\n")
    host.make("raw", raw_idmap="both 4242 1000")
    host.make("own", security_idmap_isolated="true")
    host.make("all")
    for name in ("raw", "own", "all"):
        host.act(name, "stop")
    host.ranges(NARROW)
    assert "'raw.idmap' maps the host's uid 4242, which root may not map: add the line root:4242:1" in (
        host.refusal("raw")
    )
    assert "Not enough host ids for an isolated id map of 65536" in host.refusal("own")
    host.ranges("")
    assert "Root has no range of 65536 ids or more in /etc/subuid: add the line root:1000000:1000000000" in (
        host.refusal("all")
    )
    host.ranges(WIDE + "root:4242:1\n")
    for name in ("raw", "own", "all"):
        host.act(name, "start")
