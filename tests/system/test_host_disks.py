"""Disks whose source is a directory or file of the host: at a start, while running, and their end."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root

Device = dict[str, str]


def shell(daemon: Daemon, script: str, name: str = "c1", *, check: bool = True) -> str:
    done = daemon.lxc("exec", name, "--", "sh", "-c", script, check=check)
    return done.stdout + done.stderr


def refusal(daemon: Daemon, devices: dict[str, Device], name: str = "c1") -> str:
    """Return why the instance cannot have these devices, at once or when it is changed."""
    instance = daemon.get(f"/1.0/instances/{name}")
    reply = daemon.api("PUT", f"/1.0/instances/{name}", {**instance, "devices": devices})
    if reply.status != 202:
        assert reply.status == 400
        return reply.error
    ended = daemon.wait(reply)
    assert ended["status_code"] == 400
    return str(ended["err"])


def disk(source: Path | str, path: str, **more: str) -> Device:
    keys = {key.replace("__", "."): value for key, value in more.items()}
    return {"type": "disk", "source": str(source), "path": path, **keys}


def applied(daemon: Daemon, devices: dict[str, Device], way: str, **config: str) -> None:
    """Have c1 run with these devices: since its start, or added while it runs."""
    daemon.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    if way == "hot-plugged":
        daemon.do("PUT", "/1.0/instances/c1/state", {"action": "start"})
        change(daemon, devices)
    else:
        change(daemon, devices)
        daemon.do("PUT", "/1.0/instances/c1/state", {"action": "start"})


def change(daemon: Daemon, devices: dict[str, Device]) -> None:
    instance = daemon.get("/1.0/instances/c1")
    daemon.do("PUT", "/1.0/instances/c1", {**instance, "devices": devices})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory of the host with files of two owners."""
    folder = tmp_path / "source"
    folder.mkdir()
    tmp_path.chmod(0o755)
    (folder / "file").write_text("content\n")
    (folder / "of1000").touch()
    os.chown(folder / "of1000", 1000, 1000)
    return folder


@pytest.mark.parametrize("way", ["started", "hot-plugged"])
def test_disks_show_owners_access_and_kinds_of_sources(
    shared_daemon: Daemon, busybox: str, source: Path, way: str
) -> None:
    """Owners, access, kinds of sources and odd names are the same after a start and a hot-plug."""
    d = shared_daemon
    odd = source.parent / "söurce, with\ttab"
    odd.mkdir()
    (odd / "odd").touch()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(source / "socket"))
    d.lxc("launch", busybox, "c1")
    applied(
        d,
        {
            "plain": disk(source, "/mnt/plain"),
            "shifted": disk(source, "mnt/shifted/", shift="true"),
            "read-only": disk(source, "/mnt/ro", readonly="true"),
            "odd": disk(odd, "/mnt/ödd, päth"),
            "one-file": disk(source / "file", "/etc/one"),
            "socket": disk(source / "socket", "/root/socket"),
            "char": disk("/dev/zero", "/root/zero"),
            "below-run": disk(source, "/run/shown"),
            "below-dev": disk(source, "/dev/shown"),
            "missing": disk(source / "missing", "/mnt/missing", required="false"),
            "optional": disk(source / "missing", "/mnt/missing2", optional="true"),
            "options": disk(source, "/mnt/noexec", raw__mount__options="noexec,noatime"),
        },
        way,
    )
    look = "stat -c '%u %n' /mnt/plain/file /mnt/shifted/file /mnt/shifted/of1000; cat /etc/one"
    assert shell(d, look) == (
        "65534 /mnt/plain/file\n0 /mnt/shifted/file\n1000 /mnt/shifted/of1000\ncontent\n"
    )
    assert shell(d, "ls '/mnt/ödd, päth' /run/shown /dev/shown | tr '\\n' ' '").count("of1000") == 2
    assert shell(d, "ls '/mnt/ödd, päth'") == "odd\n"
    assert shell(d, "stat -c %F /root/socket /root/zero") == "socket\ncharacter special file\n"
    assert "Read-only" in shell(d, "touch /mnt/ro/new", check=False)
    assert "Permission denied" in shell(d, "touch /mnt/plain/new", check=False)
    shell(d, "echo new >/mnt/shifted/new")
    assert (source / "new").stat().st_uid == 0
    options = shell(d, "grep ' /mnt/noexec ' /proc/mounts")
    assert {"noexec", "noatime"} <= set(options.split()[3].split(","))
    assert "missing" not in shell(d, "cat /proc/mounts")
    # On the host nothing of it remains mounted where it was prepared.
    assert str(d.dir / "devices") not in Path(f"/proc/{d.pid}/mounts").read_text()
    d.lxc("stop", "-f", "c1")
    assert not (d.dir / "devices/c1").exists()
    assert (source / "file").read_text() == "content\n"


def test_changes_of_a_running_instance(shared_daemon: Daemon, busybox: str, source: Path) -> None:
    d = shared_daemon
    d.lxc("launch", busybox, "c1")
    change(d, {"a": disk(source, "/mnt")})
    assert "file" in shell(d, "ls /mnt")
    other = source.parent / "other"
    other.mkdir()
    (other / "another").touch()
    change(d, {"a": disk(other, "/mnt", readonly="true")})
    assert shell(d, "ls /mnt") == "another\n"
    assert "Read-only" in shell(d, "touch /mnt/new", check=False)
    change(d, {"a": disk(other, "/srv", required="false")})
    assert shell(d, "ls /mnt; ls /srv") == "another\n"
    # Only whether it is required changes: the mount stays, though the source has gone.
    other.rename(source.parent / "moved")
    change(d, {"a": disk(other, "/srv", required="true")})
    assert shell(d, "ls /srv") == "another\n"
    change(d, {})
    assert shell(d, "ls /srv; grep -c ' /srv ' /proc/mounts", check=False) == "0\n"


def test_mounts_made_by_the_container_are_kept(shared_daemon: Daemon, busybox: str, source: Path) -> None:
    """At the path of a disk whose source is missing."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1")
    change(d, {"a": disk(source / "missing", "/mnt", required="false")})
    shell(d, "mount -t tmpfs none /mnt; touch /mnt/own")
    change(d, {})
    assert shell(d, "ls /mnt") == "own\n"


def test_failed_change_has_no_effect(shared_daemon: Daemon, busybox: str, source: Path) -> None:
    """Refused as a whole, with the device and the key named, of an instance and through a profile."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1")
    change(d, {"a": disk(source, "/mnt")})
    before = d.get("/1.0/instances/c1")["devices"]
    mounts = shell(d, "cat /proc/mounts")
    for bad, key in (
        (disk(source / "missing", "/opt"), "source"),
        (disk(source, "/etc/hostname"), "path"),
        (disk(source, "/opt", shift="x"), "shift"),
        (disk(source, "/opt", raw__mount__options="uid=5"), "source"),
    ):
        error = refusal(d, {"a": disk(source, "/srv"), "b": disk(source, "/media"), "c": bad})
        assert "'c'" in error, error
        assert f"'{key}'" in error, error
        assert d.get("/1.0/instances/c1")["devices"] == before
        assert shell(d, "cat /proc/mounts") == mounts
    profile = d.get("/1.0/profiles/default")
    reply = d.api("PATCH", "/1.0/profiles/default", {"devices": {"p": disk(source / "missing", "/opt")}})
    assert (reply.status, "'c1'" in reply.error, "'p'" in reply.error) == (400, True, True)
    assert d.get("/1.0/profiles/default") == profile


def test_a_profile_reaches_the_running(shared_daemon: Daemon, busybox: str, source: Path) -> None:
    d = shared_daemon
    d.do("POST", "/1.0/profiles", {"name": "more"})
    for name in ("c1", "c2"):
        d.lxc("launch", busybox, name, "-p", "default", "-p", "more")
    d.do("PATCH", "/1.0/profiles/more", {"devices": {"p": disk(source, "/mnt")}})
    assert [shell(d, "cat /mnt/file", name) for name in ("c1", "c2")] == ["content\n"] * 2
    d.do("PUT", "/1.0/profiles/more", {"devices": {}})
    assert [shell(d, "ls /mnt", name) for name in ("c1", "c2")] == [""] * 2
    d.delete_instances()
    d.do("DELETE", "/1.0/profiles/more")


def test_disks_at_parent_paths_are_mounted_first(shared_daemon: Daemon, busybox: str, source: Path) -> None:
    """Whatever their names, at a start and while running, also when the parent alone changes."""
    d = shared_daemon
    other = source.parent / "other"
    (other / "below").mkdir(parents=True)
    (other / "second").touch()
    parent, child = disk(other, "/mnt", shift="true"), disk(source, "/mnt/below")
    d.lxc("launch", busybox, "c1")
    look = "ls /mnt; cat /mnt/below/file; grep -c ' /mnt' /proc/mounts"
    for way in ("hot-plugged", "started"):
        applied(d, {"a": child, "z": parent}, way)
        assert shell(d, look) == "below\nsecond\ncontent\n2\n", way
        change(d, {"a": child, "z": parent | {"readonly": "true"}})
        assert shell(d, look) == "below\nsecond\ncontent\n2\n", way
        change(d, {"a": child})
        assert shell(d, "cat /mnt/below/file; grep -c ' /mnt' /proc/mounts") == "content\n1\n", way
        change(d, {})
    # A mount point that lacks in the parent's source is made there, which the container's root owns.
    applied(d, {"a": disk(source, "/mnt/new/deep"), "z": parent}, "started")
    assert shell(d, "cat /mnt/new/deep/file; stat -c %u /mnt/new") == "content\n0\n"


@pytest.mark.parametrize("way", ["started", "hot-plugged"])
def test_mounts_below_the_source(shared_daemon: Daemon, busybox: str, source: Path, way: str) -> None:
    """They are shown with `recursive`, and those that come later with `propagation` (lxd#13406)."""
    d = shared_daemon
    (source / "sub").mkdir()
    (source / "later").mkdir()
    pid = d.pid

    def host(*argv: str) -> None:
        subprocess.run(["nsenter", "-t", str(pid), "-m", *argv], check=True)

    host("mount", "--bind", str(source), str(source))
    host("mount", "--make-shared", str(source))
    host("mount", "-t", "tmpfs", "none", str(source / "sub"))
    host("touch", str(source / "sub/seen"))
    try:
        d.lxc("launch", busybox, "c1")
        applied(
            d,
            {
                "flat": disk(source, "/mnt/flat"),
                "deep": disk(source, "/mnt/deep", recursive="true"),
                "ro": disk(source, "/mnt/ro", recursive="true", readonly="true"),
                "shared": disk(source, "/mnt/shared", recursive="true", propagation="rslave"),
            },
            way,
        )
        assert shell(d, "ls /mnt/flat/sub; ls /mnt/deep/sub; ls /mnt/shared/sub") == "seen\nseen\n"
        assert "Read-only" in shell(d, "touch /mnt/ro/sub/new", check=False)
        host("mount", "-t", "tmpfs", "none", str(source / "later"))
        host("touch", str(source / "later/seen"))
        assert shell(d, "ls /mnt/deep/later; ls /mnt/shared/later") == "seen\n"
        assert shell(d, "rm /mnt/deep/sub/seen", check=False) != ""
    finally:
        d.lxc("stop", "-f", "c1", check=False)
        host("umount", "-R", str(source))


def test_links_inside_stay_inside(shared_daemon: Daemon, busybox: str, source: Path) -> None:
    """A mount point is found as the container finds it, and nothing is made or mounted on the host."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "-c", "security.privileged=true")
    outside = d.home / "outside"
    for way in ("started", "hot-plugged"):
        shell(d, f"rm -rf /srv/link {outside}; mkdir -p /srv; ln -s {outside} /srv/link; mkdir -p {outside}")
        applied(d, {"a": disk(source, "/srv/link/below")}, way)
        assert shell(d, f"cat {outside}/below/file") == "content\n"
        assert not outside.exists()
        change(d, {})
        assert shell(d, "grep -c below /proc/mounts", check=False) == "0\n"


def test_odd_paths_and_names(shared_daemon: Daemon, busybox: str, source: Path) -> None:
    """Paths without a leading slash or below /run, names with any letters, and sources that are not required
    and come later (lxd#4538, lxd#2249, lxd#9918)."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1")
    later = source.parent / "later"
    paths = {"my-disk": "mnt", "a,b": "run/data", "dürr": "/srv/two words, ü/", "läter": "/media"}
    devices = {name: disk(source, path) for name, path in paths.items()}
    devices["läter"] = disk(later, "/media", required="false")
    for way in ("hot-plugged", "started"):
        applied(d, devices, way)
        assert shell(d, "cat /mnt/file /run/data/file '/srv/two words, ü/file'") == "content\n" * 3, way
        assert shell(d, "grep -c media /proc/mounts", check=False) == "0\n", way
        later.mkdir()
        (later / "came").touch()
        d.lxc("restart", "-f", "c1")
        assert shell(d, "ls /media") == "came\n", way
        change(d, {})
        assert shell(d, "grep -c -e /mnt -e /run/data -e /srv -e /media /proc/mounts", check=False) == "0\n"
        (later / "came").unlink()
        later.rmdir()


def test_a_source_that_is_missing(shared_daemon: Daemon, busybox: str, source: Path) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1")
    missing = {"a": disk(source / "gone", "/mnt")}
    assert "'a': 'source'" in refusal(d, missing)
    body = {"name": "c2", "source": {"type": "image", "alias": busybox}, "devices": missing}
    reply = d.api("POST", "/1.0/instances", body)
    assert (reply.status, "'a': 'source'" in reply.error) == (400, True)
    assert d.get("/1.0/instances") == ["/1.0/instances/c1"]
    (source / "gone").mkdir()
    change(d, missing)
    (source / "gone").rmdir()
    # What is gone by now does not keep the rest from being changed.
    d.do("PATCH", "/1.0/instances/c1", {"devices": {"b": disk(source, "/srv")}, "config": {"user.x": "y"}})
    started = d.wait(d.api("PUT", "/1.0/instances/c1/state", {"action": "start"}))
    assert started["status_code"] == 400
    assert "'a'" in started["err"]
    assert f"{source}/gone" in started["err"]
    (source / "gone").mkdir()
    d.lxc("start", "c1")
    (source / "gone").rmdir()
    restarted = d.wait(d.api("PUT", "/1.0/instances/c1/state", {"action": "restart", "force": True}))
    assert "was not stopped because it could not be started again" in restarted["err"]
    assert d.get("/1.0/instances/c1")["status"] == "Running"
