"""A host that cannot do what is asked: full disks, missing programs, containers that do not start."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.traces import nothing_changes
from tests.system.test_bad_instances import check_sentence, failed
from tests.system.test_lxc_instances import status, until

pytestmark = pytest.mark.root


# ---- a full disk


@pytest.fixture(scope="module")
def large(module_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory, busybox_image: Image) -> str:
    """The fingerprint of an image of 20 MB that cannot be compressed."""
    folder = tmp_path_factory.mktemp("large")
    tree, file = folder / "tree", folder / "rootfs.squashfs"
    tree.mkdir()
    (tree / "noise").write_bytes(os.urandom(20 << 20))
    subprocess.run(["mksquashfs", tree, file, "-quiet", "-no-progress"], check=True, capture_output=True)
    return module_daemon.import_image(busybox_image.metadata, file)


@pytest.mark.parametrize("driver", ["overlay", "dir"])
def test_a_pool_without_space(module_daemon: Daemon, small_disk: Path, large: str, driver: str) -> None:
    d = module_daemon
    config = {"source": str(small_disk)}
    d.do("POST", "/1.0/storage-pools", {"name": "small", "driver": driver, "config": config})
    try:
        with nothing_changes(d):
            root = {"type": "disk", "path": "/", "pool": "small"}
            request = {
                "name": "c1",
                "source": {"type": "image", "fingerprint": large},
                "devices": {"root": root},
            }
            failed(d, d.api("POST", "/1.0/instances", request), "space", "another pool")
            ended = d.lxc("launch", large[:12], "c1", "-s", "small", check=False)
            assert ended.returncode != 0
            check_sentence(ended.stderr, "space")
        assert sum(1 for p in small_disk.rglob("*") if p.is_file()) == 1  # what the pool was made with
    finally:
        d.do("DELETE", "/1.0/storage-pools/small")


def test_a_pool_that_fills_up_later(module_daemon: Daemon, small_disk: Path, busybox: str) -> None:
    d = module_daemon
    config = {"source": str(small_disk)}
    d.do("POST", "/1.0/storage-pools", {"name": "small", "driver": "overlay", "config": config})
    try:
        d.lxc("init", busybox, "first", "-s", "small")
        filler = small_disk / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, capture_output=True)
        with nothing_changes(d):
            ended = d.lxc("launch", busybox, "second", "-s", "small", check=False)
            assert ended.returncode != 0
            check_sentence(ended.stderr, "space")
        filler.unlink()
        d.lxc("start", "first")
        assert d.lxc("exec", "first", "--", "echo", "fine").stdout == "fine\n"
    finally:
        d.delete_instances()
        d.do("DELETE", "/1.0/storage-pools/small")


# ---- programs that are missing

HIDE = """
import utsuwa.host.processes.run
utsuwa.host.processes.run.PATH = {path!r}
"""


def test_without_lxc_start(daemon: Daemon, busybox_image: Image, tmp_path: Path) -> None:
    d = daemon
    d.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    d.lxc("init", "busybox", "c1")
    programs, patch = tmp_path / "bin", tmp_path / "python"
    for folder in (programs, patch):
        folder.mkdir()
    for program in (p for folder in ("/usr/sbin", "/usr/bin") for p in Path(folder).iterdir()):
        link = programs / program.name
        if program.name != "lxc-start" and not link.is_symlink():
            link.symlink_to(program)
    (patch / "sitecustomize.py").write_text(HIDE.format(path=str(programs)))
    d.env["PYTHONPATH"] = str(patch)
    d.restart()
    with nothing_changes(d, but="/c1/"):
        reply = d.api("PUT", "/1.0/instances/c1/state", {"action": "start"})
        failed(d, reply, "lxc-start", "install", "'lxc'")
        assert status(d, "c1") == "Stopped"
    del d.env["PYTHONPATH"]
    d.restart()
    d.lxc("start", "c1")


# ---- containers that do not start


def start_fails(d: Daemon, *words: str) -> None:
    """Starting `c1` fails for a reason with these words, twice, and the host is as before."""
    for _ in range(2):
        with nothing_changes(d, but="/c1/"):  # its logs, and folders that liblxc makes in its root
            failed(d, d.api("PUT", "/1.0/instances/c1/state", {"action": "start"}), *words)
            assert status(d, "c1") == "Stopped"


@pytest.fixture
def c1(shared_daemon: Daemon, busybox: str) -> Path:
    """A stopped instance that has run once; gives the folder of its upper layer."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1")
    d.lxc("stop", "c1", "--force")
    return d.dir / "storage-pools/default/containers/c1/layer/upper"


def test_no_init(shared_daemon: Daemon) -> None:
    shared_daemon.do("POST", "/1.0/instances", {"name": "c1", "source": {"type": "none"}})
    start_fails(shared_daemon, "Failed to start", "/sbin/init", "No such file")


def test_an_init_that_cannot_be_run(shared_daemon: Daemon, c1: Path) -> None:
    (c1 / "sbin").mkdir(exist_ok=True)
    (c1 / "sbin/init").unlink(missing_ok=True)
    (c1 / "sbin/init").write_bytes(b"\x7fELF")
    (c1 / "sbin/init").chmod(0o644)
    start_fails(shared_daemon, "/sbin/init", "Permission denied")
    (c1 / "sbin/init").write_text("#!/no/such/interpreter\n")
    (c1 / "sbin/init").chmod(0o755)
    start_fails(shared_daemon, "/sbin/init", "No such file")


def test_an_init_that_ends_at_once(shared_daemon: Daemon, c1: Path) -> None:
    (c1 / "sbin").mkdir(exist_ok=True)
    (c1 / "sbin/init").unlink(missing_ok=True)
    (c1 / "sbin/init").write_text("#!/bin/false\n")
    (c1 / "sbin/init").chmod(0o755)
    d = shared_daemon
    reply = d.api("PUT", "/1.0/instances/c1/state", {"action": "start"})
    ended = d.wait(reply)
    if ended["status_code"] != 200:  # else it ran for a moment
        check_sentence(ended["err"], "ended", "console")
    until(lambda: status(d, "c1") == "Stopped")


def test_raw_lxc_that_names_nothing(shared_daemon: Daemon, c1: Path) -> None:
    raw = "lxc.mount.entry = /no/such/folder mnt none bind 0 0"
    shared_daemon.lxc("config", "set", "c1", "raw.lxc", raw)
    start_fails(shared_daemon, "/no/such/folder")


def test_the_client_shows_the_reason(shared_daemon: Daemon) -> None:
    d = shared_daemon
    d.do("POST", "/1.0/instances", {"name": "c1", "source": {"type": "none"}})
    ended = d.lxc("start", "c1", check=False)
    assert ended.returncode != 0
    check_sentence(ended.stderr, "/sbin/init", "No such file")
