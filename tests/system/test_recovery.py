"""What a daemon finds at its start, and puts right."""

from __future__ import annotations

import contextlib
import http.client
import io
import lzma
import os
import signal
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image
from tests.system.test_bad_instances import check_sentence
from tests.system.test_lxc_instances import status, until

pytestmark = pytest.mark.root


@pytest.fixture
def d(daemon: Daemon, busybox_image: Image) -> Daemon:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    return daemon


def kill_with_the_daemon(d: Daemon, *names: str) -> None:
    """Kill the daemon, then the containers, and start the daemon again."""
    pids = [d.get(f"/1.0/instances/{name}/state")["pid"] for name in names]
    d.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    d.start()


def test_an_ephemeral_one_that_ended_meanwhile_is_deleted(d: Daemon) -> None:
    d.lxc("launch", "busybox", "brief", "--ephemeral")
    d.lxc("launch", "busybox", "kept")
    kill_with_the_daemon(d, "brief", "kept")
    assert d.get("/1.0/instances") == ["/1.0/instances/kept"]
    assert status(d, "kept") == "Stopped"
    assert [p.name for p in (d.dir / "storage-pools/default/containers").iterdir()] == ["kept"]
    assert [p.name for p in (d.dir / "logs").iterdir() if p.is_dir()] == ["kept"]


def test_an_ephemeral_one_that_runs_is_kept(d: Daemon) -> None:
    d.lxc("launch", "busybox", "brief", "--ephemeral")
    d.kill()
    d.start()
    assert status(d, "brief") == "Running"
    d.lxc("stop", "brief", "--force")
    until(lambda: d.get("/1.0/instances") == [])


def test_autostart(d: Daemon) -> None:
    for name, value in (("always", "true"), ("never", "false"), ("new", "true"), ("plain", "")):
        config = ("-c", f"boot.autostart={value}") if value else ()
        d.lxc("init" if name == "new" else "launch", "busybox", name, *config)
    kill_with_the_daemon(d, "always", "never", "plain")
    until(lambda: [status(d, name) for name in ("always", "new")] == ["Running", "Running"])
    assert [status(d, name) for name in ("never", "plain")] == ["Stopped", "Stopped"]


def test_a_frozen_one_stays_frozen(d: Daemon) -> None:
    d.lxc("launch", "busybox", "c1")
    d.lxc("pause", "c1")
    d.kill()
    d.start()
    assert status(d, "c1") == "Frozen"
    d.lxc("start", "c1")
    assert d.lxc("exec", "c1", "--", "echo", "alive").stdout == "alive\n"


@pytest.mark.parametrize("driver", ["overlay", "dir"])
def test_a_missing_pool(d: Daemon, tmp_path: Path, driver: str) -> None:
    """The daemon starts, says what is missing, and goes on when it is back."""
    source, away = tmp_path / "source", tmp_path / "away"
    source.mkdir()
    config = {"source": str(source)}
    d.do("POST", "/1.0/storage-pools", {"name": "other", "driver": driver, "config": config})
    d.lxc("init", "busybox", "far", "-s", "other")
    d.lxc("launch", "busybox", "near")
    assert d.stop() == 0
    leaks_before = leaks.mounts_below(d.home)
    for point in [p for p in reversed(leaks_before) if "/other" in p]:
        os.system(f"umount {point}")  # noqa: S605 - as a machine's reboot would have it
    source.rename(away)
    d.start()
    assert status(d, "near") == "Running"
    assert status(d, "far") == "Stopped"
    assert d.get("/1.0/storage-pools/other")["status"] == "Unavailable"
    for arguments in (
        ("start", "far"),
        ("rename", "far", "farther"),
        ("launch", "busybox", "new", "-s", "other"),
        ("storage", "info", "other"),
    ):
        ended = d.lxc(*arguments, check=False)
        assert ended.returncode != 0
        check_sentence(ended.stderr, "'other'", "not available", str(source), "bring the folder back")
    assert d.get("/1.0/instances/far/state")["status"] == "Stopped"
    assert d.get("/1.0/storage-pools/other/volumes/container/far/state") is not None
    for words in ("list", "info far", "config set far user.a=1", "storage list"):
        d.lxc(*words.split())
    source.mkdir()  # its mount point alone, without what was mounted there
    check_sentence(d.lxc("start", "far", check=False).stderr, "'other'", "mount its file system")
    source.rmdir()
    away.rename(source)
    d.lxc("start", "far")
    assert d.lxc("exec", "far", "--", "echo", "back").stdout == "back\n"


@pytest.mark.parametrize("driver", ["overlay", "dir"])
def test_instances_of_a_lost_pool_can_be_deleted(d: Daemon, tmp_path: Path, driver: str) -> None:
    """Its instances and the pool itself can be deleted, which the log tells (lxd#1967, lxd#5088)."""
    source, away = tmp_path / "source", tmp_path / "away"
    source.mkdir()
    d.lxc("storage", "create", "other", driver, f"source={source}")
    d.lxc("init", "busybox", "far", "-s", "other")
    assert d.stop() == 0
    for point in [p for p in reversed(leaks.mounts_below(d.home)) if "/other" in p]:
        subprocess.run(["umount", point], check=True)
    source.rename(away)
    d.start()
    d.lxc("delete", "far")
    d.lxc("storage", "delete", "other")
    assert (away / "containers/far").is_dir(), "what is on it stays"
    log = d.log.read_text()
    assert "instance far is deleted without its files" in log
    assert "storage pool 'other' is deleted without its files: Storage pool 'other' is not available" in log
    assert d.get("/1.0/storage-pools") == ["/1.0/storage-pools/default"]
    assert not (d.dir / "storage-pools/other").exists()
    assert not (d.dir / "containers/far").is_symlink()


def test_a_forced_stop_that_is_cut_off_is_carried_out(d: Daemon, tmp_path: Path) -> None:
    """Its interfaces are taken away first: it must not run on without them."""
    d.lxc("launch", "busybox", "c1")
    pid = d.get("/1.0/instances/c1/state")["pid"]
    faults = Faults(tmp_path)
    d.env |= faults.env
    d.restart()
    with faults.kill_at(d, "devices taken from killed container", meanwhile=lambda: os.kill(pid, 0)):
        d.lxc("stop", "c1", "--force", check=False)
    assert status(d, "c1") == "Stopped"
    d.lxc("start", "c1")
    d.restart()
    assert d.lxc("exec", "c1", "--", "ls", "/sys/class/net/").stdout.split() == ["eth0", "lo"]


def test_unpacking_ends_with_the_daemon(d: Daemon) -> None:
    """Nobody would take away what a program unpacks for a daemon that is gone."""
    data = io.BytesIO()
    with lzma.open(data, "wb", preset=0) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        entry = tarfile.TarInfo("rootfs/zeros")
        entry.size = 1 << 30
        tar.addfile(entry, Zeros())

    def upload() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            headers = {"Content-Type": "application/octet-stream"}
            d.wait(d.api("POST", "/1.0/images", data.getvalue(), headers=headers))

    def unpacking() -> list[tuple[int, str]]:
        return [p for p in leaks.processes_of(d.home) if "archives/__main__.py" in p[1]]

    thread = threading.Thread(target=upload)
    thread.start()
    until(unpacking)
    d.kill()
    thread.join()
    until(lambda: unpacking() == [], 0.5)
    d.start()
    assert len(d.get("/1.0/images")) == 1
    assert not [p for p in (d.dir / "images").iterdir() if p.name.startswith(".")]


class Zeros(io.RawIOBase):
    """As many zeros as are read."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)
