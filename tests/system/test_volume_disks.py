"""Custom volumes as disks of instances: owners, sharing, and what follows a volume that changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image

pytestmark = pytest.mark.root

Device = dict[str, str]
CUSTOM = "/1.0/storage-pools/default/volumes/custom"
DISK = {"type": "disk", "pool": "default", "source": "v1", "path": "/mnt"}


@pytest.fixture
def d(shared_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon with the volume v1, which is deleted after each test."""
    shared_daemon.do("POST", CUSTOM, {"name": "v1"})
    yield shared_daemon
    shared_daemon.delete_instances()
    shared_daemon.delete_projects()
    shared_daemon.lxc("profile", "delete", "p", check=False)
    shared_daemon.delete_volumes()
    shared_daemon.lxc("storage", "delete", "other", check=False)


def shell(daemon: Daemon, script: str, name: str = "c1", *, check: bool = True) -> str:
    done = daemon.lxc("exec", name, "--", "sh", "-c", script, check=check)
    return done.stdout + done.stderr


def owners(daemon: Daemon, name: str = "c1") -> str:
    return shell(daemon, "stat -c %u:%g:%a /mnt /mnt/file | xargs", name).strip()


def files_of(daemon: Daemon, name: str = "v1") -> Path:
    return daemon.dir / f"storage-pools/default/custom/default_{name}/rootfs"


def attach(daemon: Daemon, name: str = "c1", **more: str) -> None:
    daemon.do("PATCH", f"/1.0/instances/{name}", {"devices": {"data": {**DISK, **more}}})


def refusal(daemon: Daemon, method: str, url: str, body: object) -> str:
    """Return why a request fails, at once or as an operation."""
    reply = daemon.api(method, url, body)
    if reply.status != 202:
        assert 400 <= reply.status < 500, reply.body
        return reply.error
    ended = daemon.wait(reply)
    assert ended["status_code"] == 400
    return str(ended["err"])


def mounted_below(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("way", ["started", "hot-plugged"])
def test_owners_are_those_inside(d: Daemon, busybox: str, way: str) -> None:
    """On disk they are the container's own, whatever its map; nothing stays mounted on the host."""
    d.lxc("init", busybox, "c1")
    if way == "hot-plugged":
        d.lxc("start", "c1")
        attach(d)
    else:
        attach(d)
        d.lxc("start", "c1")
    assert shell(d, "stat -c %u:%g:%a /mnt").strip() == "0:0:711"
    shell(d, "touch /mnt/file && chown 1000:7 /mnt/file && chmod 700 /mnt")
    assert (files_of(d) / "file").stat().st_uid == 1000
    assert not mounted_below(files_of(d).parent)
    assert "nodev" in shell(d, "grep ' /mnt ' /proc/self/mountinfo")
    d.lxc("restart", "c1", "--force")
    assert owners(d) == "0:0:700 1000:7:644"
    d.lxc("config", "set", "c1", "security.idmap.isolated=true")
    d.lxc("restart", "c1", "--force")
    assert owners(d) == "0:0:700 1000:7:644"
    d.lxc("config", "set", "c1", "security.idmap.isolated=false", "security.privileged=true")
    d.lxc("restart", "c1", "--force")
    assert owners(d) == "0:0:700 1000:7:644"
    d.lxc("config", "device", "remove", "c1", "data")
    assert shell(d, "ls /mnt") == ""


def test_sharing(d: Daemon, busybox: str) -> None:
    """Instances with the same map share a volume, others only one that is shifted."""
    for name, *config in (("c1",), ("c2",), ("iso", "-c", "security.idmap.isolated=true")):
        d.lxc("launch", busybox, name, *config)
    attach(d)
    attach(d, "c2")
    shell(d, "touch /mnt/file && chown 5:5 /mnt/file")
    assert owners(d, "c2") == "0:0:711 5:5:644"
    refused = refusal(d, "PATCH", "/1.0/instances/iso", {"devices": {"data": DISK}})
    assert "another id map: set security.shifted=true" in refused
    assert "data" not in d.get("/1.0/instances/iso")["devices"]
    refused = refusal(d, "PATCH", f"{CUSTOM}/v1", {"config": {"security.shifted": "true"}})
    assert "stop 'c1', 'c2'" in refused
    for name in ("c1", "c2"):
        d.lxc("stop", name, "--force")
    d.do("PATCH", f"{CUSTOM}/v1", {"config": {"security.shifted": "true"}})
    attach(d, "iso")
    d.lxc("start", "c1", "c2")
    assert owners(d, "iso") == owners(d, "c1") == owners(d, "c2") == "0:0:711 5:5:644"


def test_unmapped(d: Daemon, busybox: str) -> None:
    d.do("PATCH", f"{CUSTOM}/v1", {"config": {"security.unmapped": "true"}})
    d.lxc("launch", busybox, "c1")
    attach(d)
    assert shell(d, "stat -c %u:%g /mnt").strip() == "65534:65534"


def test_keys(d: Daemon, busybox: str) -> None:
    (files_of(d) / "file").touch()
    d.lxc("launch", busybox, "c1")
    attach(d, readonly="true", **{"raw.mount.options": "noexec"})
    options = shell(d, "grep ' /mnt ' /proc/self/mountinfo")
    assert "ro," in options
    assert "noexec" in options
    assert "Read-only" in shell(d, "touch /mnt/x", check=False)
    attach(d, readonly="")
    shell(d, "touch /mnt/x")


def test_what_is_missing(d: Daemon, busybox: str) -> None:
    """It is refused where a device is added; a start names the reason, or does without it."""
    d.lxc("init", busybox, "c1")
    instance = "/1.0/instances/c1"
    missing = {"devices": {"data": {**DISK, "source": "none"}}}
    assert "'none' not found on pool 'default'" in refusal(d, "PATCH", instance, missing)
    snapshot = {"devices": {"data": {**DISK, "source": "v1/snap0"}}}
    assert "snapshots cannot be attached" in refusal(d, "PATCH", instance, snapshot)
    body = {"name": "c2", "source": {"type": "image", "alias": busybox}, **missing}
    assert "'none' not found" in refusal(d, "POST", "/1.0/instances", body)
    profile = {"name": "p", "devices": {"data": {**DISK, "source": "later"}}}
    d.do("POST", "/1.0/profiles", profile)
    d.do("POST", CUSTOM, {"name": "later"})
    d.do("PATCH", instance, {"profiles": ["default", "p"]})
    d.do("PUT", "/1.0/profiles/p", {})
    d.do("DELETE", f"{CUSTOM}/later")
    d.do("PUT", "/1.0/profiles/p", {"devices": {"data": {**DISK, "required": "false"}}})
    d.do("PUT", "/1.0/profiles/p", {"devices": {"data": {**DISK, "source": "gone", "required": "false"}}})
    d.lxc("start", "c1")
    assert shell(d, "ls /mnt") == ""
    d.lxc("stop", "c1", "--force")
    d.do("PUT", "/1.0/profiles/p", {"devices": {"data": {**DISK, "source": "gone"}}})
    refused = d.lxc("start", "c1", check=False).stderr
    assert "'gone' cannot be used: Storage volume 'gone' not found on pool 'default'" in refused


def test_users_of_a_volume(d: Daemon, busybox: str) -> None:
    """They keep it from being deleted, and follow it when it is renamed or moved."""
    d.do("POST", "/1.0/storage-pools", {"name": "other", "driver": "dir"})
    d.do("POST", "/1.0/profiles", {"name": "p", "devices": {"data": DISK}})
    d.lxc("init", busybox, "c1")
    attach(d)
    d.lxc("init", busybox, "c2", "-p", "default", "-p", "p")
    assert d.get(f"{CUSTOM}/v1")["used_by"] == ["/1.0/instances/c1", "/1.0/profiles/p"]
    used = d.lxc("storage", "volume", "delete", "default", "v1", check=False).stderr
    assert "still in use by instance 'c1', profile 'p': detach it there first" in used
    d.lxc("start", "c2")
    for body in ({"name": "v2"}, {"name": "v1", "pool": "other"}):
        assert "while running instances use it: stop 'c2'" in refusal(d, "POST", f"{CUSTOM}/v1", body)
    shell(d, "echo content > /mnt/file", "c2")
    d.do("POST", f"{CUSTOM}/v1/snapshots", {"name": "s"})
    assert "stop 'c2'" in refusal(d, "PUT", f"{CUSTOM}/v1", {"restore": "s"})
    d.lxc("stop", "c2", "--force")
    d.lxc("storage", "volume", "rename", "default", "v1", "v2")
    assert d.get("/1.0/instances/c1")["devices"]["data"]["source"] == "v2"
    d.do("POST", f"{CUSTOM}/v2", {"name": "v3", "pool": "other"})  # the client copies and deletes
    assert d.get("/1.0/profiles/p")["devices"]["data"] == {**DISK, "pool": "other", "source": "v3"}
    d.lxc("start", "c1", "c2")
    assert shell(d, "cat /mnt/file", "c1") == shell(d, "cat /mnt/file", "c2") == "content\n"


def test_a_snapshot_of_a_volume_in_use_is_whole(d: Daemon, busybox: str) -> None:
    d.lxc("launch", busybox, "c1")
    attach(d)
    shell(d, "touch /mnt/file && chown 1000:1000 /mnt/file")
    shell(d, "(while true; do mktemp -p /mnt >/mnt/last; rm -f $(cat /mnt/last); done) >/dev/null 2>&1 &")
    d.do("POST", f"{CUSTOM}/v1/snapshots", {"name": "s"})
    d.do("POST", CUSTOM, {"name": "v2", "source": {"type": "copy", "name": "v1"}})
    assert d.get("/1.0/instances/c1")["status"] == "Running"
    for copy in (files_of(d, "v2"), d.dir / "storage-pools/default/custom-snapshots/default_v1/s/rootfs"):
        assert (copy / "file").stat().st_uid == 1000
    shell(d, "touch /mnt/still")


def test_it_is_in_use_after_a_restart_of_the_daemon(d: Daemon, busybox: str) -> None:
    d.lxc("launch", busybox, "c1")
    attach(d)
    d.restart()
    assert "stop 'c1'" in refusal(d, "POST", f"{CUSTOM}/v1", {"name": "v2"})
    d.lxc("config", "device", "remove", "c1", "data")
    d.lxc("storage", "volume", "rename", "default", "v1", "v2")


def test_without_idmapped_mounts(make_daemon: Callable[..., Daemon], busybox_image: Image) -> None:
    """The owners on disk follow the map of the instance; a shifted volume cannot be shown."""
    d = make_daemon(env={"UTSUWA_IDMAPPED_MOUNTS_DISABLE": "1"})
    try:
        d.start()
        d.make_defaults("dir")
        image = d.import_image(busybox_image.metadata, busybox_image.rootfs)
        d.do("POST", CUSTOM, {"name": "v1"})
        d.lxc("init", image, "c1", "-c", "security.privileged=true")
        attach(d)
        d.lxc("start", "c1")
        shell(d, "touch /mnt/file && chown 1000:7 /mnt/file")
        d.lxc("config", "set", "c1", "security.privileged=false")
        d.lxc("restart", "c1", "--force")
        assert owners(d) == "0:0:711 1000:7:644"
        assert (files_of(d) / "file").stat().st_uid > 100_000
        for name, pool in (("v2", "default"), ("v3", "other")):
            if pool == "other":
                d.do("POST", "/1.0/storage-pools", {"name": "other", "driver": "overlay"})
            volumes = f"/1.0/storage-pools/{pool}/volumes/custom"
            d.do("POST", volumes, {"name": name, "source": {"type": "copy", "name": "v1", "pool": "default"}})
        assert owners(d) == "0:0:711 1000:7:644"
        copied = d.dir / "storage-pools/other/custom/default_v3/rootfs/file"
        assert (copied.stat().st_uid, copied.stat().st_gid) == (1000, 7)
        d.do("PATCH", f"{CUSTOM}/v2", {"config": {"security.shifted": "true"}})
        shifted = {"devices": {"data": {**DISK, "source": "v2"}}}
        assert "idmapped mounts are switched off" in refusal(d, "PATCH", "/1.0/instances/c1", shifted)
    finally:
        problems = d.close()
    assert problems == []


def test_restrictions_of_a_project(d: Daemon, busybox: str) -> None:
    """`managed`, the default, allows volumes of pools but no folders of the host."""
    features = {"features.images": "false", "features.profiles": "false", "features.storage.volumes": "false"}
    d.do("POST", "/1.0/projects", {"name": "tight", "config": {**features, "restricted": "true"}})
    d.lxc("init", busybox, "c1", "--project", "tight", "--no-profiles", "-s", "default")
    d.do("PATCH", "/1.0/instances/c1?project=tight", {"devices": {"data": DISK}})
    assert d.get(f"{CUSTOM}/v1")["used_by"] == ["/1.0/instances/c1?project=tight"]
    instance = d.get("/1.0/instances/c1?project=tight")
    del instance["devices"]["data"]
    d.do("PUT", "/1.0/instances/c1?project=tight", instance)
    d.do("PATCH", "/1.0/projects/tight", {"config": {"restricted.devices.disk": "block"}})
    refused = refusal(d, "PATCH", "/1.0/instances/c1?project=tight", {"devices": {"data": DISK}})
    assert "restricted.devices.disk=block" in refused


def test_a_copy_in_use_is_not_refreshed(d: Daemon, busybox: str) -> None:
    d.lxc("storage", "volume", "copy", "default/v1", "default/v2")
    d.lxc("launch", busybox, "c1")
    d.lxc("storage", "volume", "attach", "default", "v2", "c1", "/srv")
    d.lxc("storage", "volume", "attach", "default", "v1", "c1", "/mnt")  # the source may be in use
    refused = d.lxc("storage", "volume", "copy", "default/v1", "default/v2", "--refresh", check=False)
    assert "cannot be refreshed while running instances use it: stop 'c1'" in refused.stderr
    d.lxc("storage", "volume", "detach", "default", "v2", "c1")
    d.lxc("exec", "c1", "--", "sh", "-c", "echo inside >/mnt/new; chown 7:8 /mnt/new")
    d.lxc("storage", "volume", "copy", "default/v1", "default/v2", "--refresh")
    new = files_of(d, "v2") / "new"
    assert (new.read_text(), new.stat().st_uid, new.stat().st_gid) == ("inside\n", 7, 8)
