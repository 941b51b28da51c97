"""Storage pools through Debian's `lxc` client and the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


@pytest.fixture
def pool(shared_daemon: Daemon) -> Iterator[str]:
    shared_daemon.lxc("storage", "create", "extra", "dir", "rsync.bwlimit=10MB", "user.note=x")
    yield "extra"
    shared_daemon.lxc("storage", "delete", "extra", check=False)


def test_list_show_info(shared_daemon: Daemon, pool: str) -> None:
    d = shared_daemon
    pools = {p["name"]: p for p in json.loads(d.lxc("storage", "list", "--format", "json").stdout)}
    assert {name: p["driver"] for name, p in pools.items()} == {"default": "overlay", "extra": "dir"}
    assert pools["extra"]["status"] == "Created"
    assert pools["default"]["used_by"] == ["/1.0/profiles/default"]
    shown = yaml.safe_load(d.lxc("storage", "show", pool).stdout)
    assert shown["config"] == {
        "source": str(d.dir / "storage-pools/extra"),
        "rsync.bwlimit": "10MB",
        "user.note": "x",
    }
    info = yaml.safe_load(d.lxc("storage", "info", pool, "--bytes").stdout)
    assert info["info"]["driver"] == "dir"
    assert int(info["info"]["space used"].strip('"')) > 0


def test_set_get_unset_edit(shared_daemon: Daemon, pool: str) -> None:
    d = shared_daemon
    d.lxc("storage", "set", pool, "rsync.bwlimit", "20MB")
    assert d.lxc("storage", "get", pool, "rsync.bwlimit").stdout == "20MB\n"
    d.lxc("storage", "unset", pool, "rsync.bwlimit")
    assert d.lxc("storage", "get", pool, "rsync.bwlimit").stdout == ""
    text = yaml.safe_load(d.lxc("storage", "show", pool).stdout)
    text["description"] = "of our own"
    d.lxc("storage", "edit", pool, input=yaml.safe_dump(text))
    assert d.get("/1.0/storage-pools/extra")["description"] == "of our own"
    refused = d.lxc("storage", "set", pool, "source", "/elsewhere", check=False)
    assert refused.returncode != 0
    assert "can only be set on creation" in refused.stderr
    refused = d.lxc("storage", "set", pool, "nonsense", "1", check=False)
    assert "Unknown configuration key 'nonsense'" in refused.stderr


@pytest.mark.parametrize("driver", ["dir", "overlay"])
def test_a_source_elsewhere(shared_daemon: Daemon, busybox: str, tmp_path: Path, driver: str) -> None:
    d = shared_daemon
    source = tmp_path / "source"
    source.mkdir()
    d.lxc("storage", "create", "elsewhere", driver, f"source={source}")
    try:
        d.lxc("launch", busybox, "e1", "-s", "elsewhere")
        assert (source / "containers/e1").is_dir()
        assert d.get("/1.0/storage-pools/elsewhere")["config"]["volatile.initial_source"] == str(source)
        used = d.lxc("storage", "delete", "elsewhere", check=False)
        assert "in use" in used.stderr
        d.lxc("delete", "e1", "--force")
    finally:
        d.lxc("storage", "delete", "elsewhere")
    assert list(source.iterdir()) == []


def test_volumes_of_instances_are_listed(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "v1")
    volumes = d.get("/1.0/storage-pools/default/volumes?recursion=1")
    assert [(v["type"], v["name"], v["used_by"]) for v in volumes if v["type"] == "container"] == [
        ("container", "v1", ["/1.0/instances/v1"])
    ]
    assert d.get("/1.0/storage-pools/default/volumes/container") == [
        "/1.0/storage-pools/default/volumes/container/v1"
    ]
    assert d.get("/1.0/storage-pools/default/volumes/custom") == []
    assert "v1" in d.lxc("storage", "volume", "list", "default", "--format", "csv").stdout
    assert d.get("/1.0/storage-pools/default/volumes/container/v1")["content_type"] == "filesystem"
    assert d.get("/1.0/storage-pools/default/volumes/container/v1/state")["usage"]["used"] >= 0
    d.lxc("delete", "v1", "--force")
    assert d.api("GET", "/1.0/storage-pools/default/volumes/container/v1").status == 404


def test_snapshots_are_listed_with_their_volumes(shared_daemon: Daemon, busybox: str) -> None:
    d, volumes = shared_daemon, "/1.0/storage-pools/default/volumes"
    d.lxc("init", busybox, "v1")
    d.lxc("init", busybox, "v2")
    for name in ("s0", "s1"):
        d.lxc("snapshot", "v1", name)
    assert d.get(f"{volumes}/container") == [
        f"{volumes}/container/v1",
        f"{volumes}/container/v1/snapshots/s0",
        f"{volumes}/container/v1/snapshots/s1",
        f"{volumes}/container/v2",
    ]
    listed = d.lxc("storage", "volume", "list", "default", "type=container", "--format", "csv", "-c", "tnu")
    assert listed.stdout.splitlines() == [
        "container,v1,1",
        "container (snapshot),v1/s0,1",
        "container (snapshot),v1/s1,1",
        "container,v2,1",
    ]
    _, s0, _, _ = d.get(f"{volumes}/container?recursion=1")
    assert (s0["name"], s0["used_by"]) == ("v1/s0", ["/1.0/instances/v1/snapshots/s0"])
    assert s0["created_at"] == d.get(f"{volumes}/container/v1/snapshots/s0")["created_at"]
    used_by = [url for url in d.get("/1.0/storage-pools/default")["used_by"] if "/instances/" in url]
    v1 = "/1.0/instances/v1"
    assert used_by == [v1, f"{v1}/snapshots/s0", f"{v1}/snapshots/s1", "/1.0/instances/v2"]
    info = yaml.safe_load(utsuwa_client(d, "storage", "info", "default").stdout)
    assert info["used by"]["instances"] == ["v1", "v1/s0", "v1/s1", "v2"]


@pytest.mark.parametrize(
    ("method", "url", "body", "status"),
    [
        ("POST", "/1.0/storage-pools", {"name": "x", "driver": "floppy"}, 400),
        ("POST", "/1.0/storage-pools", {"name": "a/b", "driver": "dir"}, 400),
        ("POST", "/1.0/storage-pools", {"name": "x", "driver": "dir", "config": {"size": "1GB"}}, 400),
        ("POST", "/1.0/storage-pools", {"name": "x", "driver": "dir", "config": {"source": "/"}}, 400),
        ("POST", "/1.0/storage-pools", {"name": "default", "driver": "dir"}, 409),
        ("POST", "/1.0/storage-pools/default/volumes", {"name": "v", "content_type": "block"}, 501),
        ("GET", "/1.0/storage-pools/none", None, 404),
        ("GET", "/1.0/storage-pools/none/resources", None, 404),
        ("GET", "/1.0/storage-pools/none/volumes", None, 404),
        ("GET", "/1.0/storage-pools/default/volumes/floppy", None, 400),
        ("GET", "/1.0/storage-pools/default/volumes/container/none", None, 404),
        ("DELETE", "/1.0/storage-pools/none", None, 404),
        ("DELETE", "/1.0/storage-pools/default", None, 400),
        ("PUT", "/1.0/storage-pools/default", {"config": {"source": "/x"}}, 400),
        ("PATCH", "/1.0/storage-pools/default", {"config": {"bad": "1"}}, 400),
    ],
)
def test_bad_requests(shared_daemon: Daemon, method: str, url: str, body: object, status: int) -> None:
    before = shared_daemon.get("/1.0/storage-pools?recursion=1")
    reply = shared_daemon.api(method, url, body)
    assert reply.status == status, reply.body
    assert reply.error
    assert shared_daemon.get("/1.0/storage-pools?recursion=1") == before


def test_an_edit_of_something_older_is_refused(shared_daemon: Daemon, pool: str) -> None:
    d = shared_daemon
    etag = d.api("GET", f"/1.0/storage-pools/{pool}").headers["etag"]
    stale = {"If-Match": etag}
    assert d.api("PATCH", f"/1.0/storage-pools/{pool}", {"description": "1"}, headers=stale).status == 200
    assert d.api("PATCH", f"/1.0/storage-pools/{pool}", {"description": "2"}, headers=stale).status == 412
    assert d.get(f"/1.0/storage-pools/{pool}")["description"] == "1"


def size_of(daemon: Daemon, pool: str, name: str) -> dict[str, str]:
    config: dict[str, str] = daemon.get(f"/1.0/storage-pools/{pool}/volumes/container/{name}")["config"]
    return config


def test_sizes_that_no_driver_enforces(shared_daemon: Daemon, busybox: str, pool: str) -> None:
    """They are stored, shown as not enforced, and said in a warning, also where a profile brings them."""
    d = shared_daemon
    d.lxc("init", busybox, "c1", "-s", pool, "-d", "root,size=10GiB")
    assert d.get("/1.0/instances/c1")["expanded_devices"]["root"]["size"] == "10GiB"
    assert size_of(d, pool, "c1") == {"size": "10GiB", "volatile.size.enforced": "false"}
    d.lxc("config", "device", "set", "c1", "root", "size", "20GiB")
    assert size_of(d, pool, "c1")["size"] == "20GiB"
    d.lxc("config", "device", "unset", "c1", "root", "size")
    assert size_of(d, pool, "c1") == {}
    assert d.log.read_text().count("the size of containers/c1 is not enforced") == 1
    found = [w for w in d.get("/1.0/warnings?recursion=1") if "containers/c1" in w["last_message"]]
    assert [(w["status"], w["count"], w["entity_url"]) for w in found] == [
        ("resolved", 2, f"/1.0/storage-pools/{pool}/volumes/container/c1")
    ]
    d.lxc("profile", "copy", "default", "sized")
    d.lxc("launch", busybox, "c2", "-p", "sized")
    assert size_of(d, "default", "c2") == {}
    d.lxc("profile", "device", "set", "sized", "root", "size", "1GiB")
    assert size_of(d, "default", "c2")["size"] == "1GiB"
    assert "the size of containers/c2 is not enforced" in d.log.read_text()
    d.lxc("delete", "c1", "c2", "--force")
    d.lxc("profile", "delete", "sized")
