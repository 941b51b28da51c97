"""Attempts to change what a snapshot has: from inside, by requests, as a disk of another instance."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.sftp_client import mounted_root
from tests.support.whole_trees import Entry, differences, tree
from tests.system.test_host_disks import change, disk, refusal, shell

pytestmark = pytest.mark.root

URL = "/1.0/instances/c1"
SETUP = """
mkdir -p /root/d && echo first >/root/d/file && ln /root/d/file /root/hard && ln -s d/file /root/link
truncate -s 1000000 /root/holes && mkfifo /root/fifo && rm /usr/bin/env && mv /home/user /home/moved
"""
ATTACKS = """
echo second >/root/d/file; echo more >>/root/hard; truncate -s 0 /root/holes; rm /root/link /root/fifo
chmod 777 /etc /root/d/file; chown 7:7 /root/hard; touch -t 200001010000 /root/d; ln /root/hard /root/third
mv /root/d /root/e; rm -r /home/moved; mkdir /home/moved; touch /usr/bin/env; rm -r /usr/sbin
mount -o remount,rw /; mount -t tmpfs none /root; touch /root/over; umount /root; sync
"""


@pytest.fixture
def c1(shared_daemon: Daemon, busybox: str, root_pool: str) -> Iterator[Daemon]:
    """The running instance c1 with a snapshot `one`, which is the same at the end, and a stopped c2."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "-s", root_pool)
    shell(d, SETUP)
    d.lxc("snapshot", "c1", "one")
    d.lxc("init", busybox, "c2")
    before, shown = files_of_snapshot(d, root_pool), d.get(f"{URL}/snapshots/one")
    yield d
    assert differences(files_of_snapshot(d, root_pool), before) == []
    assert d.get(f"{URL}/snapshots/one") == shown


def files_of_snapshot(daemon: Daemon, pool: str) -> dict[str, Entry]:
    daemon.lxc("copy", "c1/one", "look", "-s", pool)
    with mounted_root(daemon, pool, "look") as root:
        found = tree(root)
    daemon.lxc("delete", "look")
    return found


def test_the_container_itself_changes_its_own_files_only(c1: Daemon) -> None:
    shell(c1, ATTACKS)
    c1.lxc("stop", "-f", "c1")
    for request in ("POST", "DELETE"):
        c1.api(request, f"{URL}/files?path=/root/hard", b"third")
    c1.lxc("start", "c1")
    shell(c1, "echo fourth >/root/holes")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/snapshots/one/files?path=/root/hard", b"x"),
        ("GET", "/snapshots/one/sftp", None),
        ("POST", "%2Fone/files?path=/root/hard", b"x"),
        ("POST", "%2Fone/exec", {"command": ["true"]}),
        ("PUT", "%2Fone", {"config": {"user.a": "b"}}),
        ("PUT", "%2Fone/state", {"action": "start"}),
        ("POST", "%2Fone/rebuild", {"source": {"type": "none"}}),
        ("PUT", "%2Fone/metadata", {"architecture": "x"}),
        ("POST", "/snapshots/one/exec", {"command": ["true"]}),
        ("PUT", "/snapshots/one/state", {"action": "start"}),
        ("POST", "/snapshots/one/rebuild", {"source": {"type": "none"}}),
        ("PUT", "/snapshots/one/metadata", {"architecture": "x"}),
        ("POST", "/snapshots/one/metadata/templates?path=hosts.tpl", b"x"),
        ("POST", "/snapshots", {"name": "one"}),
        ("POST", "/files?path=/../../../containers-snapshots/c1/one/rootfs/root/hard", b"x"),
    ],
)
def test_requests_for_its_files_are_refused(c1: Daemon, method: str, path: str, body: object) -> None:
    reply = c1.api(method, f"{URL}{path}", body)
    assert 400 <= reply.status < 500, reply.body


def test_its_configuration_is_not_what_a_client_sends(c1: Daemon) -> None:
    shown = c1.get(f"{URL}/snapshots/one")
    other = {**shown, "config": {"user.a": "b"}, "devices": {}, "profiles": [], "architecture": "i686"}
    for method in ("PUT", "PATCH"):
        c1.do(method, f"{URL}/snapshots/one", other)


@pytest.fixture
def elsewhere(shared_daemon: Daemon) -> Iterator[Path]:
    """The source of the pool `elsewhere`, which is mounted in the state directory."""
    with tempfile.TemporaryDirectory(prefix="ut-pool-", dir="/var/tmp") as folder:
        body = {"name": "elsewhere", "driver": "dir", "config": {"source": folder}}
        shared_daemon.do("POST", "/1.0/storage-pools", body)
        yield Path(folder)
        shared_daemon.delete_instances()
        shared_daemon.do("DELETE", "/1.0/storage-pools/elsewhere")


def sources(daemon: Daemon) -> Iterator[Path]:
    """Directories that belong to the snapshot, and what links lead to them."""
    yield daemon.dir / "snapshots/c1/one"
    for pool in ("default", "dir"):
        folder = daemon.dir / "storage-pools" / pool
        if (folder / "containers-snapshots/c1").exists():
            yield folder / "containers-snapshots"
            yield folder / "containers-snapshots/c1/one"
            yield folder / "containers-snapshots/c1/one/rootfs"
            yield from (folder / "layers").glob("*/upper/root")


def devices_with(daemon: Daemon, name: str, new: dict[str, str] | None) -> dict[str, dict[str, str]]:
    """The instance's devices, of which `d` is the new one, or none."""
    devices: dict[str, dict[str, str]] = daemon.get(f"/1.0/instances/{name}")["devices"]
    kept = {key: device for key, device in devices.items() if key != "d"}
    return kept if new is None else {**kept, "d": new}


@pytest.mark.parametrize("privileged", ["false", "true"])
def test_a_disk_of_another_instance_shows_it_read_only(c1: Daemon, privileged: str) -> None:
    c1.lxc("config", "set", "c2", f"security.privileged={privileged}")
    for source in sources(c1):
        for more in ({}, {"shift": "true"}, {"readonly": "false"}, {"recursive": "true"}):
            for name in ("c1", "c2"):
                devices = devices_with(c1, name, disk(source, "/mnt", **more))
                assert "never changes" in refusal(c1, devices, name), source
        profile = {"devices": {**c1.get("/1.0/profiles/default")["devices"], "d": disk(source, "/mnt")}}
        reply = c1.api("PUT", "/1.0/profiles/default", profile)
        assert (reply.status, "never changes" in reply.error) == (400, True), reply.error
        change(c1, devices_with(c1, "c1", disk(source, "/mnt", readonly="true")))
        assert " ro," in shell(c1, "grep ' /mnt ' /proc/mounts")
    change(c1, devices_with(c1, "c1", None))


def test_the_folder_by_another_path(shared_daemon: Daemon, busybox: str, elsewhere: Path) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "-s", "elsewhere")
    d.lxc("snapshot", "c1", "one")
    d.lxc("init", busybox, "c2")
    raw = elsewhere / "containers-snapshots/c1/one/rootfs"
    assert raw.is_dir()
    for source in (raw, raw / "etc", raw / "etc/passwd", raw / "../rootfs"):
        devices = devices_with(d, "c2", disk(source, "/mnt/x", shift="true"))
        assert "never changes" in refusal(d, devices, "c2"), source
    change(d, devices_with(d, "c1", disk(raw, "/mnt", readonly="true", shift="true")))
    assert (
        shell(d, "ls /mnt/bin/busybox; touch /mnt/new || echo refused").splitlines()[0] == "/mnt/bin/busybox"
    )
    assert not (raw / "new").exists()
    change(d, devices_with(d, "c1", None))
