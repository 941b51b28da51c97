"""Custom volumes through Debian's `lxc` client and the API: what is stored, shown and refused."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.long import usually

pytestmark = pytest.mark.root

VOLUMES = "/1.0/storage-pools/default/volumes"
CUSTOM = f"{VOLUMES}/custom"


@pytest.fixture
def d(shared_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon with a second pool, whose volumes are deleted after each test."""
    shared_daemon.do("POST", "/1.0/storage-pools", {"name": "other", "driver": "dir"})
    yield shared_daemon
    shared_daemon.delete_instances()
    shared_daemon.delete_projects()
    shared_daemon.delete_volumes()
    shared_daemon.do("DELETE", "/1.0/storage-pools/other")


def files_of(daemon: Daemon, name: str, pool: str = "default") -> Path:
    """The files of a volume or, as `volume/snapshot`, of a snapshot of the project `default`."""
    volume, _, snapshot = name.partition("/")
    folder = daemon.dir / "storage-pools" / pool
    below = (
        Path("custom-snapshots", f"default_{volume}", snapshot)
        if snapshot
        else Path("custom", f"default_{volume}")
    )
    return folder / below / "rootfs"


def volume(daemon: Daemon, volume_name: str = "v1", content: str = "first", **config: str) -> None:
    """Create a volume with a file of user 1000."""
    keys = {key.replace("__", "."): value for key, value in config.items()}
    daemon.do("POST", CUSTOM, {"name": volume_name, "config": keys})
    write(daemon, content, volume_name)


def write(daemon: Daemon, content: str, name: str = "v1", pool: str = "default") -> None:
    file = files_of(daemon, name, pool) / "file"
    file.write_text(content)
    os.chown(file, 1000, 1000)


def content(daemon: Daemon, name: str = "v1", pool: str = "default") -> str:
    file = files_of(daemon, name, pool) / "file"
    assert file.stat().st_uid == 1000
    return file.read_text()


def test_a_life_with_lxc(d: Daemon) -> None:
    lxc = d.lxc
    lxc("storage", "volume", "create", "default", "v1", "user.note=x", "snapshots.expiry=3d")
    assert files_of(d, "v1").parent.stat().st_mode & 0o777 == 0o100
    assert files_of(d, "v1").stat().st_mode & 0o777 == 0o711
    lxc("storage", "volume", "set", "default", "v1", "size", "1GiB")
    assert lxc("storage", "volume", "get", "default", "v1", "size").stdout == "1GiB\n"
    lxc("storage", "volume", "unset", "default", "v1", "user.note")
    shown = yaml.safe_load(lxc("storage", "volume", "show", "default", "v1").stdout)
    assert shown["config"] == {"size": "1GiB", "snapshots.expiry": "3d", "volatile.size.enforced": "false"}
    assert (shown["type"], shown["content_type"], shown["used_by"]) == ("custom", "filesystem", [])
    shown["description"] = "of mine"
    lxc("storage", "volume", "edit", "default", "v1", input=yaml.safe_dump(shown))
    assert d.get(f"{CUSTOM}/v1")["description"] == "of mine"
    write(d, "first")
    lxc("storage", "volume", "snapshot", "default", "v1")
    lxc("storage", "volume", "snapshot", "default", "v1", "mine", "--no-expiry")
    write(d, "second")
    listed = json.loads(lxc("storage", "volume", "list", "default", "--format", "json").stdout)
    assert [v["name"] for v in listed if v["type"] == "custom"] == ["v1", "v1/snap0", "v1/mine"]
    info = lxc("storage", "volume", "info", "default", "v1").stdout
    assert "Usage: " in info
    assert "snap0" in info
    lxc("storage", "volume", "restore", "default", "v1", "snap0")
    assert content(d) == "first"
    assert d.get(f"{CUSTOM}/v1")["description"] == "of mine"
    lxc("storage", "volume", "rename", "default", "v1/mine", "v1/yours")
    lxc("storage", "volume", "rename", "default", "v1", "v2")
    assert content(d, "v2") == "first"
    assert d.get(f"{CUSTOM}/v2/snapshots") == [f"{CUSTOM}/v2/snapshots/snap0", f"{CUSTOM}/v2/snapshots/yours"]
    lxc("storage", "volume", "copy", "default/v2", "other/v3")
    lxc("storage", "volume", "copy", "default/v2/yours", "default/v4")
    lxc("storage", "volume", "move", "default/v2", "other/v2")
    assert content(d, "v2", "other") == content(d, "v3", "other") == content(d, "v4") == "first"
    assert content(d, "v2/snap0", "other") == "first"
    lxc("storage", "volume", "delete", "other", "v2/snap0")
    lxc("storage", "volume", "delete", "other", "v2")
    lxc("storage", "volume", "delete", "other", "v3")
    lxc("storage", "volume", "delete", "default", "v4")
    for pool in ("default", "other"):
        for folder in ("custom", "custom-snapshots"):
            assert list((d.dir / "storage-pools" / pool / folder).iterdir()) == []


def test_the_owner_of_a_new_volume(d: Daemon) -> None:
    """By its own keys, or by those of its pool; a copy has that of its source."""
    d.do("PATCH", "/1.0/storage-pools/default", {"config": {"volume.initial.gid": "33"}})
    try:
        d.lxc("storage", "volume", "create", "default", "v1", "initial.uid=1000", "initial.mode=0750")
    finally:
        d.do("PATCH", "/1.0/storage-pools/default", {"config": {"volume.initial.gid": ""}})
    d.lxc("storage", "volume", "copy", "default/v1", "other/v2")
    for found in (files_of(d, "v1").stat(), files_of(d, "v2", "other").stat()):
        assert (found.st_uid, found.st_gid, oct(found.st_mode & 0o7777)) == (1000, 33, "0o750")
    for key, value in (("initial.mode", "rwx"), ("initial.uid", "-1"), ("initial.gid", "root")):
        reply = d.api("POST", CUSTOM, {"name": "v3", "config": {key: value}})
        assert (reply.status, key in reply.error) == (400, True)


def test_an_expiry_of_snapshots_by_hand(d: Daemon) -> None:
    volume(d, snapshots__expiry="1d", snapshots__expiry__manual="3d")
    d.do("POST", f"{CUSTOM}/v1/snapshots", {"name": "x"})
    found = d.get(f"{CUSTOM}/v1/snapshots?recursion=1")[0]
    created, expires = (datetime.fromisoformat(found[key]) for key in ("created_at", "expires_at"))
    assert expires - created == timedelta(days=3)


def test_an_expiry_is_that_of_the_volume_or_of_the_request(d: Daemon) -> None:
    volume(d, snapshots__expiry="1d", snapshots__pattern="auto-%d")
    d.do("POST", f"{CUSTOM}/v1/snapshots", {})
    d.do("POST", f"{CUSTOM}/v1/snapshots", {"expires_at": "0001-01-01T00:00:00Z"})
    d.do("POST", f"{CUSTOM}/v1/snapshots", {"name": "x", "expires_at": "2030-01-01T00:00:00+01:00"})
    found = {s["name"]: s for s in d.get(f"{CUSTOM}/v1/snapshots?recursion=1")}
    assert list(found) == ["v1/auto-0", "v1/auto-1", "v1/x"]
    assert found["v1/auto-0"]["expires_at"] > found["v1/auto-0"]["created_at"]
    assert found["v1/auto-1"]["expires_at"] is None
    assert d.get(f"{CUSTOM}/v1/snapshots/auto-1")["expires_at"] == "0001-01-01T00:00:00Z"
    assert found["v1/x"]["expires_at"] == "2029-12-31T23:00:00Z"
    one = f"{CUSTOM}/v1/snapshots/x"
    etag = d.api("GET", one).headers["etag"]
    d.do("PATCH", one, {"description": "kept"})
    assert d.get(one)["expires_at"] == "2029-12-31T23:00:00Z"
    assert d.api("PUT", one, {}, headers={"If-Match": etag}).status == 412
    d.do("PUT", one, {"description": "more"})
    assert (d.get(one)["description"], d.get(one)["expires_at"]) == ("more", "0001-01-01T00:00:00Z")


def test_defaults_of_the_pool_and_etags(d: Daemon) -> None:
    d.do("PATCH", "/1.0/storage-pools/default", {"config": {"volume.snapshots.pattern": "p%d"}})
    volume(d)
    volume(d, "v2", snapshots__pattern="own%d")
    assert d.get(f"{CUSTOM}/v1")["config"] == {"snapshots.pattern": "p%d"}
    assert d.get(f"{CUSTOM}/v2")["config"] == {"snapshots.pattern": "own%d"}
    etag = d.api("GET", f"{CUSTOM}/v1").headers["etag"]
    d.do("PATCH", f"{CUSTOM}/v1", {"config": {"user.x": "y"}})
    assert d.api("PUT", f"{CUSTOM}/v1", {}, headers={"If-Match": etag}).status == 412
    d.do("PUT", f"{CUSTOM}/v1", {"description": "z"})
    assert d.get(f"{CUSTOM}/v1")["config"] == {}
    d.do("PATCH", "/1.0/storage-pools/default", {"config": {"volume.snapshots.pattern": ""}})


def test_filters(d: Daemon) -> None:
    volume(d)
    volume(d, "v2")
    d.do("POST", f"{CUSTOM}/v2/snapshots", {"name": "s"})
    assert d.get(f"{VOLUMES}?filter=name+eq+v2") == [f"{CUSTOM}/v2"]
    assert d.get(f"{VOLUMES}?filter=snapshot+eq+true") == [f"{CUSTOM}/v2/snapshots/s"]
    assert "v2" not in d.lxc("storage", "volume", "list", "default", "name=v1").stdout


def snapshots(d: Daemon, name: str, pool: str) -> list[tuple[str, str]]:
    found = d.get(f"/1.0/storage-pools/{pool}/volumes/custom/{name}/snapshots?recursion=1")
    return [(s["name"].partition("/")[2], s["created_at"]) for s in found]


@pytest.mark.parametrize(
    ("client", "pool"),
    usually(
        (("lxc", "default"), ("utsuwa", "other")),
        itertools.product(("lxc", "utsuwa"), ("default", "other")),
    ),
)
def test_a_refreshed_copy(d: Daemon, client: str, pool: str) -> None:
    """It has the files and snapshots of its source, and its own config; what is the same is not copied."""

    def run(*arguments: str) -> None:
        command = d.lxc if client == "lxc" else partial(utsuwa_client, d)
        command("storage", "volume", *arguments)

    volume(d, user__of="source")
    (files_of(d, "v1") / "big").write_bytes(b"x" * 100_000)
    run("snapshot", "default", "v1", "s1")
    run("snapshot", "default", "v1", "s2")
    run("copy", "default/v1", f"{pool}/v2", "--refresh")  # there is none yet
    d.do("PUT", f"/1.0/storage-pools/{pool}/volumes/custom/v2", {"config": {"user.of": "copy"}})
    run("snapshot", pool, "v2", "own")
    write(d, "changed", "v2", pool)
    (files_of(d, "v2", pool) / "more").touch()
    big = (files_of(d, "v2", pool) / "big").stat()
    run("delete", "default", "v1/s1")
    run("delete", "default", "v1/s2")
    write(d, "third")
    run("snapshot", "default", "v1", "s2")
    write(d, "fourth")
    run("copy", "default/v1", f"{pool}/v2", "--refresh")
    assert snapshots(d, "v2", pool) == snapshots(d, "v1", "default")
    assert [name for name, _ in snapshots(d, "v2", pool)] == ["s2"]
    assert (content(d, "v2/s2", pool), content(d, "v2", pool)) == ("third", "fourth")
    assert not (files_of(d, "v2", pool) / "more").exists()
    assert (files_of(d, "v2", pool) / "big").stat().st_ino == big.st_ino
    assert d.get(f"/1.0/storage-pools/{pool}/volumes/custom/v2")["config"] == {"user.of": "copy"}
    write(d, "fifth")
    run("snapshot", "default", "v1", "s3")
    run("copy", "default/v1", f"{pool}/v2", "--refresh", "--volume-only")
    assert content(d, "v2", pool) == "fifth"
    assert [name for name, _ in snapshots(d, "v2", pool)] == ["s2"]
    folder = d.dir / "storage-pools" / pool
    found = sorted(path.name for path in folder.glob("custom*/*") if "v2" in path.name)
    assert found == ["default_v2", "default_v2"]


REFUSED = {
    "no name": ("POST", CUSTOM, {}, 400, "cannot be empty"),
    "slash": ("POST", CUSTOM, {"name": "a/b"}, 400, "no slashes"),
    "tilde": ("POST", CUSTOM, {"name": "a~new"}, 400, "no tildes"),
    "taken": ("POST", CUSTOM, {"name": "v1"}, 409, "already exists"),
    "type": ("POST", f"{VOLUMES}/container", {"name": "x"}, 400, "use type custom"),
    "other type": ("POST", VOLUMES, {"name": "x", "type": "image"}, 400, "use type custom"),
    "block": ("POST", CUSTOM, {"name": "x", "content_type": "block"}, 501, "block volumes"),
    "content": ("POST", CUSTOM, {"name": "x", "content_type": "tape"}, 400, "'tape'"),
    "key": ("POST", CUSTOM, {"name": "x", "config": {"nonsense": "1"}}, 400, "'nonsense'"),
    "size": ("POST", CUSTOM, {"name": "x", "config": {"size": "big"}}, 400, "'size'"),
    "schedule": (
        "POST",
        CUSTOM,
        {"name": "x", "config": {"snapshots.schedule": "@startup"}},
        400,
        "@startup",
    ),
    "maps": (
        "POST",
        CUSTOM,
        {"name": "x", "config": {"security.shifted": "true", "security.unmapped": "true"}},
        400,
        "cannot both be true",
    ),
    "no pool": ("POST", "/1.0/storage-pools/none/volumes/custom", {"name": "x"}, 404, "not found"),
    "no source": (
        "POST",
        CUSTOM,
        {"name": "x", "source": {"type": "copy", "name": "none"}},
        404,
        "not found",
    ),
    "migration": ("POST", CUSTOM, {"name": "x", "source": {"type": "migration"}}, 400, "Unknown mode"),
    "no snapshot": (
        "POST",
        CUSTOM,
        {"name": "x", "source": {"type": "copy", "name": "v1/none"}},
        404,
        "Snapshot 'none'",
    ),
    "copy to taken": (
        "POST",
        CUSTOM,
        {"name": "v1", "source": {"type": "copy", "name": "v1"}},
        409,
        "already",
    ),
    "refresh from itself": (
        "POST",
        CUSTOM,
        {"name": "v1", "source": {"type": "copy", "name": "v1", "refresh": True}},
        400,
        "from itself",
    ),
    "refresh from a snapshot": (
        "POST",
        CUSTOM,
        {"name": "v1", "source": {"type": "copy", "name": "v1/s", "refresh": True}},
        400,
        "not from one of its snapshots",
    ),
    "refresh from none": (
        "POST",
        CUSTOM,
        {"name": "v1", "source": {"type": "copy", "name": "none", "refresh": True}},
        404,
        "not found",
    ),
    "rename to taken": ("POST", f"{CUSTOM}/v1", {"name": "v1"}, 409, "already exists"),
    "rename": ("POST", f"{CUSTOM}/v1", {"name": ""}, 400, "cannot be empty"),
    "move to nowhere": ("POST", f"{CUSTOM}/v1", {"name": "v1", "pool": "none"}, 404, "not found"),
    "move to no project": ("POST", f"{CUSTOM}/v1", {"name": "v1", "project": "none"}, 404, "not found"),
    "move of an instance": ("POST", f"{VOLUMES}/container/v1", {"name": "x"}, 400, "belong to"),
    "delete of an image": ("DELETE", f"{VOLUMES}/image/v1", None, 400, "belong to"),
    "delete of none": ("DELETE", f"{CUSTOM}/none", None, 404, "not found"),
    "restore of none": ("PUT", f"{CUSTOM}/v1", {"restore": "none"}, 404, "not found"),
    "snapshot name": ("POST", f"{CUSTOM}/v1/snapshots", {"name": "a/b"}, 400, "no slashes"),
    "snapshot time": ("POST", f"{CUSTOM}/v1/snapshots", {"expires_at": "soon"}, 400, "RFC 3339"),
    "snapshot of instance": ("POST", f"{VOLUMES}/container/v1/snapshots", {}, 400, "belong to"),
    "no such snapshot": ("DELETE", f"{CUSTOM}/v1/snapshots/none", None, 404, "not found"),
    "rename of no snapshot": ("POST", f"{CUSTOM}/v1/snapshots/none", {"name": "x"}, 404, "not found"),
}


def test_refusals(d: Daemon) -> None:
    """They change nothing."""
    volume(d)
    before = d.get(f"{VOLUMES}?recursion=1")
    for case, (method, url, body, status, reason) in REFUSED.items():
        reply = d.api(method, url, body)
        assert (reply.status, reason in reply.error) == (status, True), (
            f"{case}: {reply.status} {reply.error}"
        )
    assert d.get(f"{VOLUMES}?recursion=1") == before
    assert [p.name for p in (d.dir / "storage-pools/default/custom").iterdir()] == ["default_v1"]


def test_projects_have_their_own_volumes_or_those_of_default(d: Daemon) -> None:
    volume(d)
    for name, feature in (("own", "true"), ("none", "false")):
        d.do("POST", "/1.0/projects", {"name": name, "config": {"features.storage.volumes": feature}})
    assert d.get(f"{CUSTOM}?project=own") == []
    assert d.get(f"{CUSTOM}?project=none") == [f"{CUSTOM}/v1"]
    d.lxc("storage", "volume", "create", "default", "v1", "--project", "own")
    assert (d.dir / "storage-pools/default/custom/own_v1").is_dir()
    everywhere = json.loads(
        d.lxc("storage", "volume", "list", "default", "--all-projects", "--format", "json").stdout
    )
    assert [(v["project"], v["name"]) for v in everywhere] == [("default", "v1"), ("own", "v1")]
    d.lxc("storage", "volume", "move", "default/v1", "default/v5", "--target-project", "own")
    assert d.get(CUSTOM) == []
    assert (d.dir / "storage-pools/default/custom/own_v5/rootfs/file").read_text() == "first"
    d.lxc(
        "storage",
        "volume",
        "copy",
        "default/v5",
        "default/v6",
        "--project",
        "own",
        "--target-project",
        "none",
    )
    assert d.get(CUSTOM) == [f"{CUSTOM}/v6"]


def test_limits_of_a_project(d: Daemon) -> None:
    config = {"limits.disk": "100MB", "restricted": "true", "restricted.storage-pools.access": "default"}
    d.do("POST", "/1.0/projects", {"name": "small", "config": config})
    where = f"{CUSTOM}?project=small"
    assert "has no size" in d.api("POST", where, {"name": "x"}).error
    d.do("POST", where, {"name": "a", "config": {"size": "60MB"}})
    assert d.api("POST", where, {"name": "b", "config": {"size": "60MB"}}).status == 403
    assert d.api("PATCH", f"{CUSTOM}/a?project=small", {"config": {"size": "200MB"}}).status == 403
    assert d.get(f"{CUSTOM}/a?project=small")["config"]["size"] == "60MB"
    elsewhere = "/1.0/storage-pools/other/volumes/custom?project=small"
    refused = d.api("POST", elsewhere, {"name": "c", "config": {"size": "1MB"}})
    assert (refused.status, "restricted.storage-pools.access" in refused.error) == (403, True)
    blocked = d.api("POST", f"{CUSTOM}/a/snapshots?project=small", {})
    assert (blocked.status, "restricted.snapshots" in blocked.error) == (403, True)
    d.do("POST", f"{CUSTOM}/a?project=small", {"name": "b"})
    assert d.get(where) == [f"{CUSTOM}/b?project=small"]
    assert d.get("/1.0/projects/small/state")["resources"]["disk"]["Usage"] == 60_000_000


def test_users_are_those_of_the_volume_and_not_of_its_snapshots(d: Daemon) -> None:
    volume(d)
    d.do("POST", f"{CUSTOM}/v1/snapshots", {"name": "s0"})
    disk = {"type": "disk", "pool": "default", "source": "v1", "path": "/srv"}
    d.do("POST", "/1.0/profiles", {"name": "data", "devices": {"data": disk}})
    listed = {found["name"]: found["used_by"] for found in d.get(f"{CUSTOM}?recursion=1")}
    assert listed == {"v1": ["/1.0/profiles/data"], "v1/s0": []}
    d.do("DELETE", "/1.0/profiles/data")


def test_events_and_operations(d: Daemon) -> None:
    """The operation of a copy names the volume, in the project of the request."""
    volume(d)
    reply = d.api("POST", CUSTOM, {"name": "v2", "source": {"type": "copy", "name": "v1"}})
    ended = d.wait(reply)
    assert ended["description"] == "Copying storage volume"
    assert ended["resources"] == {"storage_volumes": ["/1.0/storage_volumes/v2"]}
    assert content(d, "v2") == "first"
    assert d.get("/1.0/storage-pools/default")["used_by"].count(f"{CUSTOM}/v2") == 1
