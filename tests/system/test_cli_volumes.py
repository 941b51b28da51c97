"""`utsuwa storage volume` beside `lxc storage volume`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon

pytestmark = pytest.mark.root

CUSTOM = "/1.0/storage-pools/default/volumes/custom"


@pytest.fixture
def d(shared_daemon: Daemon, busybox: str) -> Iterator[Daemon]:
    """A daemon with the pool `other`, the instance `c1`, and the volume `v1` with a snapshot."""
    shared_daemon.do("POST", "/1.0/storage-pools", {"name": "other", "driver": "dir"})
    shared_daemon.lxc("init", busybox, "c1")
    make_volume(shared_daemon)
    yield shared_daemon
    shared_daemon.delete_instances()
    shared_daemon.delete_volumes()
    shared_daemon.do("DELETE", "/1.0/storage-pools/other")


def run(daemon: Daemon, words: str, input: bytes | None = None) -> str:
    return utsuwa_client(daemon, "storage", "volume", *words.split(), input=input).stdout


def make_volume(daemon: Daemon) -> None:
    run(daemon, "create default v1 user.a=b size=1GiB")
    run(daemon, "snapshot default v1 s1 --no-expiry")


def fails(daemon: Daemon, words: str) -> str:
    done = utsuwa_client(daemon, "storage", "volume", *words.split(), check=False)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "list default",
        "list default type=custom -f csv",
        "list default -f compact -c tnuU",
        "show default v1",
        "show default v1/s1",
        "show default container/c1",
        "show default none",
        "get default v1 user.a",
        "get default v1/s1 user.a",
        "get default v1 none",
        "info default v1",
        "info default container/c1",
        "info default v1/s1",
        "set default v1/s1 user.a=c",
        "unset default v1 user.a",
        "rename default v1/s1 v1/s2",
        "rename default v1/s1 v2/s1",
        "rename default v1 v9",
        "delete default v1/s1",
        "delete default none",
        "create default v1",
        "create default v2 --type filesystem",
        "detach default v1 c1",
        "attach default container/c1 c1",
        "snapshot default none",
        "restore default v1 none",
    ],
)
def test_as_lxc(d: Daemon, words: str) -> None:
    """The same output and status; a change is undone in between by doing it to the same volumes again."""
    theirs = d.lxc("storage", "volume", *words.split(), check=False)
    d.delete_volumes()
    make_volume(d)
    ours = utsuwa_client(d, "storage", "volume", *words.split(), check=False)
    assert (ours.returncode != 0) == (theirs.returncode != 0), ours.stderr + theirs.stderr
    assert _plain(ours.stdout) == _plain(theirs.stdout)


def _plain(text: str) -> list[str]:
    """Leave out the times of creation, which differ."""
    return [line for line in text.splitlines() if "created_at" not in line]


def test_changes(d: Daemon) -> None:
    assert run(d, "set default v1 snapshots.expiry=3d user.c=d") == ""
    run(d, "unset default v1 user.a")
    run(d, "edit default v1", input=b"config:\n  user.e: f\ndescription: by hand\n")
    shown = d.get(f"{CUSTOM}/v1")
    assert (shown["config"], shown["description"]) == ({"user.e": "f"}, "by hand")
    run(d, "edit default v1/s1", input=b"description: a snapshot\nexpires_at: 2030-01-01T00:00:00Z\n")
    snapshot = d.get(f"{CUSTOM}/v1/snapshots/s1")
    assert (snapshot["description"], snapshot["expires_at"]) == ("a snapshot", "2030-01-01T00:00:00Z")
    run(d, "snapshot default v1 s1 --reuse")
    assert d.get(f"{CUSTOM}/v1/snapshots/s1")["description"] == "by hand"
    run(d, "restore default v1 s1")


def test_copies_and_moves(d: Daemon) -> None:
    assert run(d, "copy default/v1 other/v2") == "Storage volume copied successfully!\n"
    run(d, "copy default/v1 other/v3 --volume-only")
    run(d, "copy default/v1/s1 other/v4")
    assert d.get("/1.0/storage-pools/other/volumes/custom/v2/snapshots?recursion=1")[0]["name"] == "v2/s1"
    assert d.get("/1.0/storage-pools/other/volumes/custom/v3/snapshots") == []
    run(d, "attach default v1 c1 /srv")
    assert run(d, "move default/v1 other/v1") == "Storage volume moved successfully!\n"
    assert d.get("/1.0/instances/c1")["devices"]["v1"]["pool"] == "other"
    assert run(d, "rename other v1 v5") == 'Renamed storage volume from "v1" to "v5"\n'
    assert d.get("/1.0/instances/c1")["devices"]["v1"]["source"] == "v5"
    run(d, "detach other v5 c1")
    assert "No storage pool for source volume" in fails(d, "copy v1 other/v9")
    assert "Snapshots stay with their volume" in fails(d, "move other/v2/s1 other/v9")
    assert run(d, "delete other v2/s1") == "Storage volume v2/s1 deleted\n"


def test_volumes_are_users_of_their_pool(d: Daemon) -> None:
    info = utsuwa_client(d, "storage", "info", "default").stdout
    assert info.endswith("  volumes:\n  - v1\n  - v1/s1\n")


def test_devices(d: Daemon) -> None:
    disk = {"type": "disk", "pool": "default", "source": "v1", "path": "/srv"}
    run(d, "attach default v1 c1 data /srv")
    assert d.get("/1.0/instances/c1")["devices"]["data"] == disk
    assert "already exists" in fails(d, "attach default v1 c1 data /mnt")
    run(d, "detach default v1 c1")
    assert "data" not in d.get("/1.0/instances/c1")["devices"]
    run(d, "attach-profile default v1 default /srv")
    assert d.get("/1.0/profiles/default")["devices"]["v1"] == disk
    run(d, "detach-profile default v1 default v1")
    assert "v1" not in d.get("/1.0/profiles/default")["devices"]
    assert "No device found for this storage volume" in fails(d, "detach default v1 c1")
    d.lxc("config", "device", "add", "c1", "eth7", "nic", "nictype=p2p")
    assert "The device eth7 is not a disk: it is of type nic" in fails(d, "detach default v1 c1 eth7")
    d.lxc("config", "device", "remove", "c1", "eth7")
    assert "'path' is required" in fails(d, "attach default v1 c1")
    assert 'Only "custom" volumes can be attached' in fails(d, "attach default image/x c1 /x")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["show", "oth"], ["other"]),
        (["show", "default", "v"], ["v1", "v1/s1"]),
        (["restore", "default", "v1", ""], ["s1"]),
        (["set", "default", "v1", "snapshots.e"], ["snapshots.expiry.manual=", "snapshots.expiry="]),
        (["set", "default", "v1", "security.shifted="], ["security.shifted=false", "security.shifted=true"]),
        (["get", "default", "v1", "security.sh"], ["security.shifted"]),
        (["copy", "oth"], ["other/"]),
        (["copy", "default/v1/"], ["default/v1/s1"]),
        (["copy", "local:default/v1", "local:oth"], ["local:other/"]),
        (["attach", "default", "v1", "c"], ["c1"]),
        (["attach-profile", "default", "v1", "d"], ["default"]),
    ],
)
def test_completion(d: Daemon, words: list[str], found: list[str]) -> None:
    done = utsuwa_client(d, "__complete", "storage", "volume", *words)
    assert done.stdout.split() == found
