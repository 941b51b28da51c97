"""Disks with `source=instance:<name>`: folders beside the root file system, which hold overlays (Docker)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root

FOLDER = {"type": "disk", "source": "instance:docker", "path": "/var/lib/docker"}
OVERLAY = """
set -e
mkdir -p {0}/lower {0}/upper {0}/work {0}/merged
echo below >{0}/lower/file; echo gone >{0}/lower/gone
mount -t overlay overlay -o lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work{1} {0}/merged
rm {0}/merged/gone; echo above >{0}/merged/file
cat {0}/merged/file {0}/lower/file; ls {0}/merged
umount {0}/merged
"""


@pytest.fixture(params=["overlay", "dir"])
def pool(request: pytest.FixtureRequest, shared_daemon: Daemon) -> Iterator[str]:
    if request.param == "overlay":
        yield "default"
        return
    shared_daemon.do("POST", "/1.0/storage-pools", {"name": "plain", "driver": "dir"})
    yield "plain"
    shared_daemon.delete_instances()
    shared_daemon.do("DELETE", "/1.0/storage-pools/plain")


def launch(daemon: Daemon, image: str, pool: str, **config: str) -> None:
    devices: dict[str, Any] = {"docker": FOLDER, "root": {"type": "disk", "path": "/", "pool": pool}}
    body = {
        "name": "c1",
        "source": {"type": "image", "alias": image},
        "config": {"security.nesting": "true"} | {k.replace("__", "."): v for k, v in config.items()},
        "devices": devices,
    }
    daemon.do("POST", "/1.0/instances", body)
    daemon.do("PUT", "/1.0/instances/c1/state", {"action": "start"})


def shell(daemon: Daemon, script: str, name: str = "c1", *, check: bool = True) -> str:
    done = daemon.lxc("exec", name, "--", "sh", "-c", script, check=check)
    return done.stdout + done.stderr


def test_overlays_work_inside_of_it(shared_daemon: Daemon, busybox: str, pool: str) -> None:
    """As Docker makes them; on the root file system of the driver `overlay` the kernel refuses them."""
    d = shared_daemon
    launch(d, busybox, pool)
    assert shell(d, OVERLAY.format("/var/lib/docker", ",userxattr")) == "above\nbelow\nfile\n"
    elsewhere = shell(d, OVERLAY.format("/opt", ",userxattr"), check=False)
    assert ("above" in elsewhere) == (pool == "plain")


def test_an_instance_that_has_one_is_not_sent_to_other_servers(shared_daemon: Daemon, busybox: str) -> None:
    launch(shared_daemon, busybox, "default")
    refused = shared_daemon.api("POST", "/1.0/instances/c1", {"name": "c1", "migration": True})
    assert (refused.status, "(instance:docker)" in refused.error) == (501, True)


def test_it_is_kept_with_the_instance(shared_daemon: Daemon, busybox: str, pool: str) -> None:
    d = shared_daemon
    launch(d, busybox, pool)
    shell(d, "echo kept >/var/lib/docker/file; chown 33:33 /var/lib/docker/file; chmod 700 /var/lib/docker")
    look = "stat -c '%u %a %n' /var/lib/docker /var/lib/docker/file; cat /var/lib/docker/file"
    shown = "0 700 /var/lib/docker\n33 644 /var/lib/docker/file\nkept\n"
    d.do("PUT", "/1.0/instances/c1/state", {"action": "restart", "force": True})
    assert shell(d, look) == shown
    d.restart()
    assert shell(d, look) == shown
    d.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    d.do("POST", "/1.0/instances/c1", {"name": "c2"})
    d.do("PATCH", "/1.0/instances/c2", {"config": {"security.privileged": "true"}})
    d.do("PUT", "/1.0/instances/c2/state", {"action": "start"})
    assert shell(d, look, "c2") == shown
    d.do("PUT", "/1.0/instances/c2/state", {"action": "stop", "force": True})
    readonly = FOLDER | {"readonly": "true"}
    d.do(
        "PATCH", "/1.0/instances/c2", {"config": {"security.privileged": ""}, "devices": {"docker": readonly}}
    )
    d.do("PUT", "/1.0/instances/c2/state", {"action": "start"})
    assert "Read-only" in shell(d, "touch /var/lib/docker/new", "c2", check=False)
    d.do("PUT", "/1.0/instances/c2/state", {"action": "stop", "force": True})
    files = d.dir / "containers" / "c2" / "folders" / "docker" / "file"
    assert files.read_text() == "kept\n"
    d.do("DELETE", "/1.0/instances/c2")
    assert not files.exists()


def test_folder_is_added_and_removed_while_the_instance_runs(
    shared_daemon: Daemon, busybox: str, pool: str
) -> None:
    d = shared_daemon
    launch(d, busybox, pool)
    second = {"type": "disk", "source": "instance:x", "path": "/srv"}
    d.do("PATCH", "/1.0/instances/c1", {"devices": {"more": second}})
    shell(d, "echo kept >/srv/file; chown 33 /srv/file")
    d.lxc("config", "device", "set", "c1", "more", "path=/opt", "readonly=true")
    assert shell(d, "cat /opt/file; stat -c %u /opt/file; ls /srv") == "kept\n33\n"
    assert "Read-only" in shell(d, "touch /opt/new", check=False)
    d.lxc("config", "device", "remove", "c1", "more")
    assert shell(d, "ls /opt") == ""


def test_invalid_folders_are_rejected(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    launch(d, busybox, "default")
    second = {"type": "disk", "source": "instance:x", "path": "/srv"}
    twice = d.api("PATCH", "/1.0/instances/c1", {"devices": {"more": second | {"path": "/var/lib/docker/"}}})
    assert twice.status == 400
    assert "taken by device 'docker'" in twice.error
    assert list(d.get("/1.0/instances/c1")["devices"]) == ["docker", "root"]


def test_root_inside_cannot_make_a_read_only_root_writable(
    shared_daemon: Daemon, busybox: str, pool: str
) -> None:
    """Which needs no more than a remount, if liblxc alone makes it read-only."""
    d = shared_daemon
    root = {"type": "disk", "path": "/", "pool": pool, "readonly": "true"}
    source = {"type": "image", "alias": busybox}
    d.do("POST", "/1.0/instances", {"name": "c1", "source": source, "devices": {"root": root}})
    d.lxc("start", "c1")
    for _ in range(2):  # a restart applies templates again
        shell(d, "mount -o remount,rw /; mount -o remount,rw,bind /; mkdir /tmp/x", check=False)
        assert "Read-only" in shell(d, "touch /new", check=False)
        d.lxc("restart", "--force", "c1")
    d.lxc("stop", "--force", "c1")
    d.lxc("config", "device", "set", "c1", "root", "readonly=false")
    d.lxc("start", "c1")
    shell(d, "touch /new")
    d.lxc("delete", "--force", "c1")


def test_rejected_profile_change_names_the_instance(shared_daemon: Daemon, busybox: str) -> None:
    """The request names the profile alone, and only some of its instances run."""
    d = shared_daemon
    d.lxc("init", busybox, "idle")
    d.lxc("launch", busybox, "busy")
    root = d.get("/1.0/profiles/default")["devices"]["root"]
    change = {"devices": {"root": {**root, "readonly": "true"}}}
    refused = d.api("PATCH", "/1.0/profiles/default", change)
    assert (refused.status, refused.error) == (
        400,
        "Instance 'busy': Device 'root': 'readonly' cannot be changed while the instance is running: "
        "stop it first",
    )
    assert d.get("/1.0/profiles/default")["devices"]["root"] == root


def test_a_symlink_leads_nowhere_outside(shared_daemon: Daemon, busybox: str) -> None:
    """Where the path is a symlink inside that leads nowhere, nothing is made or mounted on the host."""
    d = shared_daemon
    launch(d, busybox, "default", security__privileged="true")
    outside = d.home / "outside"
    shell(d, f"umount /var/lib/docker; rmdir /var/lib/docker; ln -s {outside} /var/lib/docker")
    d.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    started = d.wait(d.api("PUT", "/1.0/instances/c1/state", {"action": "start"}))
    assert started["status_code"] == 400
    assert "'docker': 'path' /var/lib/docker cannot be mounted" in started["err"]
    assert not outside.exists()
