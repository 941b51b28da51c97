"""Devices of types unix-char and unix-block: nodes of the instance's own, which follow those of the host."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.system.test_host_disks import applied, change, refusal, shell

pytestmark = pytest.mark.root

NULL, ZERO, FULL, LOOP = (1, 3), (1, 5), (1, 7), (7, 200)
TYPES = {"unix-char": stat.S_IFCHR, "unix-block": stat.S_IFBLK}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is monitored in place of /dev."""
    return tmp_path_factory.mktemp("dev")


@pytest.fixture(scope="module")
def daemon(busybox_image: Image, dev: Path) -> Iterator[Daemon]:
    with boxed_daemon() as daemon:
        daemon.env["UTSUWA_DEVMONITOR_DIR"] = str(dev)
        daemon.restart()
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        for name, privileged in (("c1", "true"), ("c2", "false")):
            config = {"security.privileged": privileged}
            body = {"name": name, "source": {"type": "image", "alias": "busybox"}, "config": config}
            daemon.do("POST", "/1.0/instances", body)
            daemon.do("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
        yield daemon


def node(path: Path, numbers: tuple[int, int], kind: str = "unix-char") -> Path:
    os.mknod(path, TYPES[kind] | 0o600, os.makedev(*numbers))
    return path


def device(kind: str = "unix-char", **keys: object) -> dict[str, str]:
    return {"type": kind, **{key: str(value) for key, value in keys.items()}}


def eventually(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def look(daemon: Daemon, path: str, name: str = "c1") -> str:
    """Type, mode, owner and numbers of a file inside, and whether it is a mount; empty without one."""
    script = f"[ -e {path} ] && stat -c '%F %a %u %g %t:%T' {path} && grep -c ' {path} ' /proc/mounts"
    return shell(daemon, script, name, check=False).replace("\n", " ").strip()


@pytest.mark.parametrize("way", ["started", "hot-plugged"])
def test_owner_mode_and_numbers_of_a_device(daemon: Daemon, dev: Path, way: str) -> None:
    """Numbers of its source or its own, modes and owners, where it is on the host and inside."""
    null = node(dev / f"null-{way}", NULL)
    loop = node(dev / f"loop-{way}", LOOP, "unix-block")
    null.chmod(0o666)
    devices = {
        "a": device(source=null, path="/dev/lower/null"),
        "b-c.d": device(source=null, path="tmp/own", mode="0604", uid=33, gid=34),
        "numbers": device(path="/run/numbers", major=1, minor=5, mode=777),
        "block": device("unix-block", source=loop, path="/srv/loop"),
    }
    applied(daemon, devices, way)
    assert look(daemon, "/dev/lower/null") == "character special file 660 0 0 1:3 1"
    assert look(daemon, "/tmp/own") == "character special file 604 33 34 1:3 1"
    assert look(daemon, "/run/numbers") == "character special file 777 0 0 1:5 1"
    assert look(daemon, "/srv/loop") == "block special file 660 0 0 7:c8 1"
    on_host = daemon.dir / "devices/c1/unix.b--c-.d.tmp-own"
    assert stat.S_IMODE(on_host.stat().st_mode) == 0o604
    # Changes inside end at the node of the instance's own.
    shell(daemon, "chmod 600 /dev/lower/null")
    assert stat.S_IMODE(null.stat().st_mode) == 0o666
    assert shell(daemon, "head -c 3 /run/numbers | wc -c").strip() == "3"
    change(daemon, {})
    assert [look(daemon, path) for path in ("/dev/lower/null", "/tmp/own", "/srv/loop")] == [""] * 3
    assert not on_host.exists()
    null.unlink()
    loop.unlink()


def test_privileged_container_can_use_its_devices(daemon: Daemon, dev: Path) -> None:
    """Its device cgroup lets it use others only while they are its devices."""
    kmsg = device(path="/dev/k", major=1, minor=11)
    shell(daemon, "rm -f /root/k; mknod /root/k c 1 11")
    tries = "(exec 3</root/k) 2>/dev/null && echo opens"
    assert shell(daemon, tries, check=False) == ""
    change(daemon, {"k": kmsg, "same": kmsg | {"path": "/dev/k2"}})
    assert shell(daemon, tries) == "opens\n"
    change(daemon, {"same": kmsg | {"path": "/dev/k2"}})
    assert shell(daemon, tries) == "opens\n"
    change(daemon, {})
    assert shell(daemon, tries, check=False) == ""
    applied(daemon, {"k": kmsg}, "started")
    assert shell(daemon, tries) == "opens\n"
    change(daemon, {})
    # What every container may use stays allowed.
    change(daemon, {"null": device(path="/dev/n", major=1, minor=3)})
    change(daemon, {})
    shell(daemon, "echo >/dev/null")


@pytest.mark.parametrize("way", ["started", "hot-plugged"])
def test_names_of_devices_may_be_paths(daemon: Daemon, dev: Path, way: str) -> None:
    """As users of LXD name them; two that differ only in the first slash are different ones."""
    (dev / "shared").mkdir(exist_ok=True)
    (dev / "shared/file").write_text("here\n")
    devices = {
        "/dev/full": device(path="/dev/full", major=FULL[0], minor=FULL[1]),
        "dev/full": device(path="/dev/other", major=FULL[0], minor=FULL[1]),
        "/mnt/data": {"type": "disk", "source": str(dev / "shared"), "path": "/mnt/data"},
        "nics/two": {"type": "nic", "nictype": "p2p", "name": "two"},
    }
    if way == "started":
        daemon.lxc("stop", "-f", "c2")
    daemon.do("PATCH", "/1.0/instances/c2", {"devices": devices})
    if way == "started":
        daemon.lxc("start", "c2")
    look_at = "stat -c %t:%T /dev/full /dev/other; cat /mnt/data/file; ls /sys/class/net"
    assert shell(daemon, look_at, "c2").split() == ["1:7", "1:7", "here", "eth0", "lo", "two"]
    assert daemon.get("/1.0/instances/c2")["config"]["volatile.nics/two.hwaddr"]
    daemon.lxc("config", "device", "remove", "c2", *devices)
    look_at = "ls /mnt/data /sys/class/net; grep -c -e /mnt -e full -e other /proc/mounts"
    assert shell(daemon, look_at, "c2", check=False).split() == [
        "/mnt/data:",
        "/sys/class/net:",
        "eth0",
        "lo",
        "0",
    ]


def test_two_devices_at_one_path(daemon: Daemon, dev: Path) -> None:
    """The first by name is the one to be seen."""
    first, second = device(path="/tmp/x", major=1, minor=5), device(path="/tmp/x", major=1, minor=7)
    for way in ("hot-plugged", "started"):
        applied(daemon, {"a": first, "b": second}, way)
        assert look(daemon, "/tmp/x") == "character special file 660 0 0 1:5 1"
        change(daemon, {"a": first})
        assert look(daemon, "/tmp/x") == "character special file 660 0 0 1:5 1"
        assert [path.name for path in (daemon.dir / "devices/c1").glob("unix.*")] == ["unix.a.tmp-x"]
        change(daemon, {})


def test_invalid_devices_are_rejected(daemon: Daemon, dev: Path) -> None:
    file = dev / "regular"
    file.touch()
    before = daemon.get("/1.0/instances/c1")["devices"]
    for wrong, message in (
        (device(source=dev / "missing"), f"{dev}/missing cannot be used: No such file"),
        (device(source=file, path="/dev/f"), "is not a character device"),
        (device("unix-block", source="/dev/null"), "is not a block device"),
        (device(path="/etc", major=1, minor=3), "/etc cannot be mounted: .*directory"),
    ):
        error = refusal(daemon, {"ok": device(path="/dev/ok", major=1, minor=3), "x": wrong})
        assert "'x'" in error
        assert re.search(message, error), error
        assert daemon.get("/1.0/instances/c1")["devices"] == before
        assert look(daemon, "/dev/ok") == ""
    assert list((daemon.dir / "devices/c1").glob("unix.*")) == []
    error = refusal(daemon, {"x": device(path="/dev/x", major=1, minor=3, uid=2**32 - 2)}, "c2")
    assert "'uid' or 'gid' is outside of the instance's ids" in error


def test_partially_attached_device_is_completed(daemon: Daemon, dev: Path) -> None:
    """As after the death of the daemon between its node and its mount."""
    source = node(dev / "half", ZERO)
    change(daemon, {"d": device(source=source, path="/tmp/half", required="false")})
    assert " 1:5 " in look(daemon, "/tmp/half")
    shell(daemon, "umount /tmp/half")
    daemon.restart()
    eventually(lambda: " 1:5 " in look(daemon, "/tmp/half"))
    change(daemon, {})
    source.unlink()


@pytest.mark.parametrize("kind", list(TYPES))
def test_optional_device_is_added_and_removed_with_its_source(daemon: Daemon, dev: Path, kind: str) -> None:
    """With the host's, in two instances, after a restart of the daemon, and wherever a link leads."""

    def seen(name: str, text: str) -> bool:
        found = look(daemon, "/tmp/dynamic", name)
        return text in found if text else not found

    source = dev / f"dynamic-{kind}"
    config = device(kind, source=source, path="/tmp/dynamic", required="false")
    applied(daemon, {"d": config}, "started")
    daemon.do("PATCH", "/1.0/instances/c2", {"devices": {"d": config}})
    assert look(daemon, "/tmp/dynamic") == ""
    node(source, NULL if kind == "unix-char" else LOOP, kind)
    for name in ("c1", "c2"):
        eventually(partial(seen, name, "special file 660 0 0"))
    source.unlink()
    for name in ("c1", "c2"):
        eventually(partial(seen, name, ""))
    assert list((daemon.dir / "devices").glob("c*/unix.*")) == []
    daemon.stop()
    node(source, ZERO, kind)
    daemon.start()
    eventually(partial(seen, "c1", " 1:5 "))
    daemon.stop()
    source.unlink()
    (dev / "targets").mkdir()
    node(dev / "targets/one", NULL, kind)
    node(dev / "targets/two", FULL, kind)
    source.symlink_to("targets/one")
    daemon.start()
    eventually(partial(seen, "c1", " 1:3 "))
    (dev / "next").symlink_to("targets/two")
    (dev / "next").rename(source)
    eventually(partial(seen, "c1", " 1:7 "))
    # What is not a device, or not of this type, is none.
    (dev / "targets/two").unlink()
    (dev / "targets/two").touch()
    eventually(partial(seen, "c1", ""))
    # Another source that does not exist yet, in a folder that does not exist yet.
    change(daemon, {"d": config | {"source": str(dev / "later/sub/node")}})
    (dev / "later/sub").mkdir(parents=True)
    node(dev / "later/sub/node", ZERO, kind)
    eventually(partial(seen, "c1", " 1:5 "))
    change(daemon, {})
    assert look(daemon, "/tmp/dynamic") == ""
    daemon.do("PUT", "/1.0/instances/c2", {**daemon.get("/1.0/instances/c2"), "devices": {}})
    for path in ("later/sub/node", "targets/one", "targets/two", source.name):
        (dev / path).unlink()
    for path in ("later/sub", "later", "targets"):
        (dev / path).rmdir()
