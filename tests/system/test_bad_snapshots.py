"""Requests about snapshots, copies and restores that cannot be granted: told why, and nothing changes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.traces import nothing_changes
from tests.system.test_bad_instances import NAMES as INSTANCE_NAMES
from tests.system.test_bad_instances import check_sentence, failed, refused

pytestmark = pytest.mark.root

UP = "/1.0/instances/up"
ONE = f"{UP}/snapshots/one"
LOGS = "/logs/"
"""What commands of a test that is refused may still write."""
NAMES = {
    "a slash": "a/b",
    "two parts": "up/a",
    "a space": "a b",
    "a tab": "a\tb",
    "a newline": "a\n",
    "CRLF": "a\r\nb",
    "NUL": "a\0b",
    "dots": "..",
    "a dot": ".",
    "200 letters": "a" * 200,
    "200 letters of two bytes": "ä" * 200,
}


@pytest.fixture(scope="module")
def module_up(module_daemon: Daemon, busybox: str, faults: Faults) -> Daemon:
    """A running instance `up` with the snapshots `one` and `two`."""
    module_daemon.env |= faults.env
    module_daemon.restart()
    module_daemon.lxc("launch", busybox, "up")
    for name in ("one", "two"):
        module_daemon.lxc("snapshot", "up", name)
    return module_daemon


@pytest.fixture
def d(module_up: Daemon) -> Iterator[Daemon]:
    with nothing_changes(module_up, but=LOGS):
        yield module_up


# ---- names


@pytest.mark.parametrize("what", NAMES)
def test_invalid_names_of_snapshots(d: Daemon, what: str) -> None:
    for url in (f"{UP}/snapshots", ONE):
        reply = d.api("POST", url, {"name": NAMES[what]})
        refused(reply, 400, "snapshot name")
        assert "\n" not in reply.error


@pytest.mark.parametrize("what", INSTANCE_NAMES)
def test_invalid_names_of_copies(d: Daemon, what: str) -> None:
    for source in ("up", "up/one"):
        body = {"name": INSTANCE_NAMES[what], "source": {"type": "copy", "source": source}}
        refused(d.api("POST", "/1.0/instances", body), 400, "name")


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("key", ["restore", "source"])
def test_sources_that_are_no_names(d: Daemon, what: str, key: str) -> None:
    name = NAMES[what]
    if key == "restore":
        reply = d.api("PUT", UP, {"restore": name})
    else:
        reply = d.api("POST", "/1.0/instances", {"name": "new", "source": {"type": "copy", "source": name}})
    assert reply.status in (400, 404), reply.body
    check_sentence(reply.error)


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
def test_of_an_instance_that_is_not_there_its_snapshots_are_not_missed(d: Daemon, method: str) -> None:
    body = None if method in ("GET", "DELETE") else {"name": "new"}
    refused(d.api(method, "/1.0/instances/none/snapshots/one", body), 404, "Instance not found")


# ---- bodies


BODIES: dict[str, tuple[str, str, object, int]] = {
    "a snapshot of null": ("POST", f"{UP}/snapshots", None, 400),
    "a snapshot with a number": ("POST", f"{UP}/snapshots", {"name": 1}, 400),
    "a snapshot with a list": ("POST", f"{UP}/snapshots", {"name": ["a"]}, 400),
    "a text as stateful": ("POST", f"{UP}/snapshots", {"name": "a", "stateful": "no"}, 400),
    "a number as time": ("POST", f"{UP}/snapshots", {"name": "a", "expires_at": 5}, 400),
    "a time without zone": ("POST", f"{UP}/snapshots", {"name": "a", "expires_at": "2030-01-01"}, 400),
    "a time with a newline": ("PUT", ONE, {"expires_at": "2030-01-01T00:00:00Z\n"}, 400),
    "a time of year 99999": ("PATCH", ONE, {"expires_at": "99999-01-01T00:00:00Z"}, 400),
    "a rename to nothing": ("POST", ONE, {}, 400),
    "a rename to null": ("POST", ONE, {"name": None}, 400),
    "a rename to itself": ("POST", ONE, {"name": "one"}, 409),
    "a rename to another one": ("POST", ONE, {"name": "two"}, 409),
    "a restore of a number": ("PUT", UP, {"restore": 1}, 400),
    "a restore of a list": ("PUT", UP, {"restore": ["one"]}, 400),
    "a restore by PATCH": ("PATCH", UP, {"restore": "one"}, 400),
    "a copy of nothing": ("POST", "/1.0/instances", {"name": "new", "source": {"type": "copy"}}, 404),
    "a copy of null": (
        "POST",
        "/1.0/instances",
        {"name": "new", "source": {"type": "copy", "source": None}},
        404,
    ),
    "a copy of a number": (
        "POST",
        "/1.0/instances",
        {"name": "new", "source": {"type": "copy", "source": 7}},
        400,
    ),
    "a copy to a pool that is not there": (
        "POST",
        "/1.0/instances",
        {
            "name": "new",
            "source": {"type": "copy", "source": "up"},
            "devices": {"root": {"type": "disk", "path": "/", "pool": "none"}},
        },
        404,
    ),
    "a copy with a profile that is not there": (
        "POST",
        "/1.0/instances",
        {"name": "new", "source": {"type": "copy", "source": "up"}, "profiles": ["none"]},
        404,
    ),
    "a copy without profiles": (
        "POST",
        "/1.0/instances",
        {"name": "new", "source": {"type": "copy", "source": "up"}, "profiles": []},
        400,
    ),
    "a copy with a newline": (
        "POST",
        "/1.0/instances",
        {"name": "new", "source": {"type": "copy", "source": "up"}, "config": {"user.a\nb": "c"}},
        400,
    ),
    "a rebuild of null": ("POST", f"{UP}/rebuild", {"source": None}, 400),
    "a rebuild while it runs": (
        "POST",
        f"{UP}/rebuild",
        {"source": {"type": "image", "alias": "busybox"}},
        400,
    ),
}


@pytest.mark.parametrize("what", BODIES)
def test_bodies_that_are_no_request(d: Daemon, what: str) -> None:
    method, url, body, status = BODIES[what]
    reply = d.api(method, url, b"null" if body is None else body)
    refused(reply, status)


@pytest.mark.parametrize("body", [{}, {"name": None, "stateful": None, "expires_at": None}])
def test_what_is_missing_or_null_has_a_default(module_up: Daemon, body: dict[str, Any]) -> None:
    before = module_up.get(f"{UP}/snapshots")
    module_up.do("POST", f"{UP}/snapshots", body)
    (new,) = set(module_up.get(f"{UP}/snapshots")) - set(before)
    assert new.endswith("/snap0")
    module_up.do("PATCH", new, {"expires_at": None, "description": None})
    module_up.do("PUT", new, {})
    module_up.do("DELETE", new)


# ---- schedules, patterns and filters


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("snapshots.schedule", "every day"),
        ("snapshots.schedule", "61 * * * *"),
        ("snapshots.schedule", "* * * *"),
        ("snapshots.schedule", "0 0 * * *\n* * * * *"),
        ("snapshots.schedule", "@daily, @often"),
        ("snapshots.schedule", "*/0 * * * *"),
        ("snapshots.schedule.stopped", "perhaps"),
        ("snapshots.expiry", "tomorrow"),
        ("snapshots.expiry", "-1d"),
        ("snapshots.expiry", "1d\n2d"),
        ("snapshots.pattern", "a/b"),
        ("snapshots.pattern", "a b"),
        ("snapshots.pattern", "{{ name }}"),
        ("snapshots.pattern", "x" * 65),
        ("snapshots.pattern", "{{ creation_date|date:'2006/01' }}"),
    ],
)
def test_values_that_do_not_parse(d: Daemon, key: str, value: str) -> None:
    profile = d.get("/1.0/profiles/default")
    refused(d.api("PATCH", UP, {"config": {key: value}}), 400, key)
    refused(d.api("PUT", "/1.0/profiles/default", {**profile, "config": {key: value}}), 400, key)
    body = {"name": "new", "source": {"type": "copy", "source": "up"}, "config": {key: value}}
    refused(d.api("POST", "/1.0/instances", body), 400, key)


@pytest.mark.parametrize("filter_", ["name", "name+eq", "name+is+one", "name+eq+one+or"])
def test_filters_that_do_not_parse(d: Daemon, filter_: str) -> None:
    for url in ("/1.0/instances", "/1.0/images"):
        refused(d.api("GET", f"{url}?recursion=1&filter={filter_}"), 400, "filter")
    reply = d.api("GET", f"{UP}/snapshots?recursion=1&filter={filter_}")
    assert reply.status in (400, 501), reply.body


# ---- edits


def test_of_two_edits_by_the_same_etag_one_gets_through(module_up: Daemon) -> None:
    etag = module_up.api("GET", ONE).headers["etag"]

    def edit(number: int) -> int:
        body = {"description": f"by {number}"}
        reply = module_up.api("PATCH", ONE, body, headers={"If-Match": etag})
        if reply.status == 202:
            return int(module_up.wait(reply)["status_code"])
        return reply.status

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(edit, range(4)))
    assert statuses[0] == 200
    assert set(statuses[1:]) <= {400, 412}, statuses  # an operation that has failed has no status of its own
    assert module_up.get(ONE)["description"].startswith("by ")


def test_an_etag_of_yesterday(d: Daemon) -> None:
    for method in ("PUT", "PATCH"):
        refused(d.api(method, ONE, {"description": "x"}, headers={"If-Match": "other"}), 412, "ETag")
    refused(d.api("PUT", UP, {"restore": "one"}, headers={"If-Match": "other"}), 412, "ETag")


# ---- restores of what needs something that is gone (incus#2868, lxd#10113)


@pytest.fixture
def c1(module_up: Daemon, busybox: str) -> Iterator[Daemon]:
    """A stopped instance c1 with nothing but what a test gives it."""
    module_up.lxc("init", busybox, "c1")
    yield module_up
    module_up.do("DELETE", "/1.0/instances/c1")


def check_that_it_cannot_be_restored(daemon: Daemon, *words: str) -> None:
    with nothing_changes(daemon):
        reply = daemon.api("PUT", "/1.0/instances/c1", {"restore": "old"})
        if reply.status == 202:
            failed(daemon, reply, "cannot be restored", *words)
        else:
            refused(reply, 400, "cannot be restored", *words)


@pytest.mark.parametrize("how", ["own device", "profile"])
def test_a_network_that_is_gone(c1: Daemon, how: str) -> None:
    config = {"ipv4.address": "10.79.0.1/24", "ipv6.address": "none"}
    c1.do("POST", "/1.0/networks", {"name": "old", "config": config})
    nic = {"type": "nic", "network": "old", "name": "eth0"}
    if how == "profile":
        c1.do("POST", "/1.0/profiles", {"name": "net", "devices": {"eth0": nic}})
        c1.lxc("profile", "add", "c1", "net")
    else:
        c1.do("PATCH", "/1.0/instances/c1", {"devices": {"eth0": nic}})
    c1.lxc("snapshot", "c1", "old")
    before = {"devices": {}, "profiles": ["default"]}
    c1.do("PUT", "/1.0/instances/c1", {**c1.get("/1.0/instances/c1"), **before})
    if how == "profile":
        c1.do("DELETE", "/1.0/profiles/net")
    c1.do("DELETE", "/1.0/networks/old")
    check_that_it_cannot_be_restored(c1, "'net'" if how == "profile" else "'old'")
    c1.lxc("copy", "c1", "c9", check=False)
    if c1.api("GET", "/1.0/instances/c9").status == 200:
        c1.do("DELETE", "/1.0/instances/c9")


def test_a_subnet_that_is_gone(c1: Daemon) -> None:
    """The address of the snapshot is none of the network's any more."""
    config = {"ipv4.address": "10.79.0.1/24", "ipv6.address": "none"}
    c1.do("POST", "/1.0/networks", {"name": "net", "config": config})
    try:
        nic = {"type": "nic", "network": "net", "name": "eth0", "ipv4.address": "10.79.0.9"}
        c1.do("PATCH", "/1.0/instances/c1", {"devices": {"eth0": nic}})
        c1.lxc("snapshot", "c1", "old")
        c1.do("PUT", "/1.0/instances/c1", {**c1.get("/1.0/instances/c1"), "devices": {}})
        c1.do("PATCH", "/1.0/networks/net", {"config": {"ipv4.address": "10.80.0.1/24"}})
        check_that_it_cannot_be_restored(c1, "10.79.0.9")
    finally:
        c1.do("PUT", "/1.0/instances/c1", {**c1.get("/1.0/instances/c1"), "devices": {}})
        c1.do("DELETE", "/1.0/networks/net")


def test_an_address_that_another_instance_has_now(c1: Daemon, busybox: str) -> None:
    config = {"ipv4.address": "10.79.0.1/24", "ipv6.address": "none"}
    c1.do("POST", "/1.0/networks", {"name": "net", "config": config})
    try:
        nic = {"type": "nic", "network": "net", "name": "eth0", "ipv4.address": "10.79.0.9"}
        c1.do("PATCH", "/1.0/instances/c1", {"devices": {"eth0": nic}})
        c1.lxc("snapshot", "c1", "old")
        c1.do("PUT", "/1.0/instances/c1", {**c1.get("/1.0/instances/c1"), "devices": {}})
        body = {"name": "c2", "source": {"type": "image", "alias": busybox}, "devices": {"eth0": nic}}
        c1.do("POST", "/1.0/instances", body)
        check_that_it_cannot_be_restored(c1, "10.79.0.9")
        c1.do("DELETE", "/1.0/instances/c2")
    finally:
        c1.do("PUT", "/1.0/instances/c1", {**c1.get("/1.0/instances/c1"), "devices": {}})
        c1.do("DELETE", "/1.0/networks/net")


def test_a_source_of_a_disk_that_is_gone(c1: Daemon, tmp_path: Any) -> None:
    source = tmp_path / "source"
    source.mkdir()
    disk = {"type": "disk", "source": str(source), "path": "/mnt"}
    c1.do("PATCH", "/1.0/instances/c1", {"devices": {"data": disk}})
    c1.lxc("snapshot", "c1", "old")
    c1.do("PUT", "/1.0/instances/c1", {**c1.get("/1.0/instances/c1"), "devices": {}})
    source.rmdir()
    check_that_it_cannot_be_restored(c1, str(source))
    source.mkdir()
    c1.do("PUT", "/1.0/instances/c1", {"restore": "old"})
    assert c1.get("/1.0/instances/c1")["devices"]["data"] == disk


@pytest.mark.parametrize("how", ["volume", "pool"])
def test_a_volume_or_its_pool_that_is_gone(c1: Daemon, how: str) -> None:
    c1.do("POST", "/1.0/storage-pools", {"name": "fast", "driver": "dir"})
    volumes = "/1.0/storage-pools/fast/volumes/custom"
    try:
        c1.do("POST", volumes, {"name": "data"})
        disk = {"type": "disk", "pool": "fast", "source": "data", "path": "/mnt"}
        c1.do("PATCH", "/1.0/instances/c1", {"devices": {"data": disk}})
        c1.lxc("snapshot", "c1", "old")
        c1.do("PUT", "/1.0/instances/c1", {**c1.get("/1.0/instances/c1"), "devices": {}})
        c1.do("DELETE", f"{volumes}/data")
        if how == "pool":
            c1.do("DELETE", "/1.0/storage-pools/fast")
        check_that_it_cannot_be_restored(c1, "'data'" if how == "volume" else "'fast'", "not found")
        c1.do("PATCH", "/1.0/instances/c1", {"config": {"user.still": "usable"}})
    finally:
        if how == "volume":
            c1.do("DELETE", "/1.0/storage-pools/fast")


def test_a_pool_of_the_root_disk_that_is_away(c1: Daemon, tmp_path: Any) -> None:
    """The restore works again when the pool is back."""
    source, away = tmp_path / "pool", tmp_path / "away"
    source.mkdir()
    c1.do("POST", "/1.0/storage-pools", {"name": "usb", "driver": "dir", "config": {"source": str(source)}})
    root = {"type": "disk", "path": "/", "pool": "usb"}
    body = {"name": "c2", "source": {"type": "none"}, "devices": {"root": root}}
    c1.do("POST", "/1.0/instances", body)
    c1.lxc("snapshot", "c2", "old")
    c1.do("PATCH", "/1.0/instances/c2", {"description": "new"})
    c1.stop()
    subprocess.run(["umount", c1.dir / "storage-pools/usb"], check=True)
    source.rename(away)
    c1.start()
    try:
        refused(c1.api("PUT", "/1.0/instances/c2", {"restore": "old"}), 503, "'usb'", str(source))
        assert c1.get("/1.0/instances/c2")["description"] == "new"
    finally:
        c1.stop()
        away.rename(source)
        c1.start()
    c1.do("PUT", "/1.0/instances/c2", {"restore": "old"})
    assert c1.get("/1.0/instances/c2")["description"] == ""
    c1.do("DELETE", "/1.0/instances/c2")
    c1.do("DELETE", "/1.0/storage-pools/usb")


# ---- instances that vanish in the middle


def test_an_instance_that_is_deleted_while_its_snapshot_is_taken(
    c1: Daemon, faults: Faults, busybox: str
) -> None:
    """The one that has begun is made, and goes with the instance; the next finds nothing."""
    c1.lxc("init", busybox, "c2")
    with faults.hold_at("before copy_volume"):
        first = c1.api("POST", "/1.0/instances/c2/snapshots", {"name": "first"})
        faults.wait_for("before copy_volume")
        gone = c1.api("DELETE", "/1.0/instances/c2")
        second = c1.api("POST", "/1.0/instances/c2/snapshots", {"name": "second"})
        copy = c1.api("POST", "/1.0/instances", {"name": "c3", "source": {"type": "copy", "source": "c2"}})
    assert c1.wait(first)["status_code"] == 200
    assert c1.wait(gone)["status_code"] == 200
    for reply in (second, copy):
        if reply.status == 202:
            failed(c1, reply, "not found")
        else:
            refused(reply, 404, "not found")
    check_that_only_these_are_left(c1, "up", "c1")


def test_a_snapshot_that_is_deleted_while_it_is_restored_or_copied(c1: Daemon, faults: Faults) -> None:
    c1.lxc("snapshot", "c1", "one")
    with faults.hold_at("before copy_volume"):
        restore = c1.api("PUT", "/1.0/instances/c1", {"restore": "one"})
        faults.wait_for("before copy_volume")
        gone = c1.api("DELETE", "/1.0/instances/c1/snapshots/one")
        copy = c1.api(
            "POST", "/1.0/instances", {"name": "c3", "source": {"type": "copy", "source": "c1/one"}}
        )
    assert c1.wait(restore)["status_code"] == 200
    assert c1.wait(gone)["status_code"] == 200
    assert c1.get("/1.0/instances/c1/snapshots") == []
    if copy.status == 202 and c1.wait(copy)["status_code"] == 200:
        c1.do("DELETE", "/1.0/instances/c3")
    check_that_only_these_are_left(c1, "up", "c1")


def check_that_only_these_are_left(daemon: Daemon, *names: str) -> None:
    """Of the instances, of which `up` has snapshots."""
    assert set(daemon.get("/1.0/instances")) == {f"/1.0/instances/{name}" for name in names}
    folder = daemon.dir / "storage-pools" / "default"
    assert {path.name for path in (folder / "containers").iterdir()} == set(names)
    assert [path.name for path in (folder / "containers-snapshots").iterdir()] == ["up"]
