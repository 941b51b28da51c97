"""The daemon on a socket that was made by somebody else and handed over, as systemd does it."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api import request
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.leaks import open_files
from tests.support.netbox import until

pytestmark = pytest.mark.root

UTSUWAD = (sys.executable, "-m", "utsuwa.daemon.main")
HAND_OVER = 'exec 3<&"$1"; [ "$1" = 3 ] || exec {1}<&-; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'


class Activator:
    """Holds a listening socket as systemd does, and starts the daemon with it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        daemon.dir.mkdir(mode=0o711)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(daemon.socket))
        self.listener.listen(16)

    def start(self, wait: bool = True) -> None:
        self.daemon.process = self.run(self.listener)
        if wait:
            self.daemon.wait_ready()

    def run(self, passed_socket: socket.socket) -> subprocess.Popen[bytes]:
        number = passed_socket.fileno()
        with self.daemon.log.open("ab") as log:
            return subprocess.Popen(
                [
                    "bash",
                    "-c",
                    HAND_OVER.replace("{1}", str(number)),
                    "bash",
                    str(number),
                    *UTSUWAD,
                    "--debug",
                ],
                env={**os.environ, "UTSUWA_DIR": str(self.daemon.dir)},
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def asked(self) -> bool:
        """Whether a connection waits for somebody to take it."""
        return bool(select.select([self.listener], [], [], 0)[0])


@pytest.fixture
def activator(make_daemon: type[Daemon]) -> Iterator[Activator]:
    daemon = make_daemon()
    activator = Activator(daemon)
    yield activator
    activator.listener.close()
    assert daemon.close() == []


LOOKING = "Looking for a reason to start the daemon\n"


def utsuwad(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*UTSUWAD, *arguments],
        env={**os.environ, "UTSUWA_DIR": str(daemon.dir)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def answer_to_the_early(activator: Activator) -> bytes:
    """Ask before the daemon is there; gives the status when it has come."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(activator.daemon.socket))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        activator.start(wait=False)
        client.settimeout(60)
        return client.recv(100).split()[1]


def test_connections_wait_for_the_next_daemon(activator: Activator) -> None:
    daemon = activator.daemon
    made = daemon.socket.stat()
    assert answer_to_the_early(activator) == b"200"
    assert daemon.stop() == 0
    assert (daemon.socket.stat().st_ino, daemon.socket.stat().st_mode) == (made.st_ino, made.st_mode)
    assert answer_to_the_early(activator) == b"200"
    daemon.kill()
    activator.start()
    assert daemon.get("/") == ["/1.0"]
    assert daemon.socket.stat().st_ino == made.st_ino


def test_helper_does_not_inherit_the_socket(activator: Activator) -> None:
    activator.start()
    daemon = activator.daemon
    inode = f"socket:[{os.fstat(activator.listener.fileno()).st_ino}]"
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    assert children, "the daemon has no helper"
    assert inode in open_files(daemon.pid)
    for child in map(int, children):
        assert inode not in open_files(child)
        assert b"LISTEN_" not in Path(f"/proc/{child}/environ").read_bytes()


def test_shutdown_ends_the_daemon_and_wakes_no_other(activator: Activator) -> None:
    activator.start()
    daemon = activator.daemon
    process = daemon.process
    assert process is not None
    ended = utsuwad(daemon, "shutdown", "--timeout", "20")
    assert ended.returncode == 0, ended.stderr
    assert process.wait(30) == 0
    daemon.process = None
    again = utsuwad(daemon, "shutdown", "--timeout", "20")
    assert again.returncode == 1
    assert f"No daemon is running on {daemon.dir}" in again.stderr
    assert daemon.socket.exists()
    assert not activator.asked


def test_a_socket_elsewhere_is_refused(activator: Activator) -> None:
    daemon = activator.daemon
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(daemon.home / "other"))
        other.listen(1)
        assert activator.run(other).wait(30) == 1
    assert f"listens at {daemon.home}/other instead of {daemon.socket}" in daemon.log.read_text()
    with socket.socket(socket.AF_INET) as internet:
        assert activator.run(internet).wait(30) == 1
    assert f"the unit needs ListenStream={daemon.socket}" in daemon.log.read_text()


@pytest.fixture
def stopped(make_daemon: type[Daemon]) -> Iterator[Daemon]:
    daemon = make_daemon()
    yield daemon
    assert daemon.close() == []


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd's tools")
def test_activateifneeded_wakes_the_daemon_through_systemd(stopped: Daemon, busybox_image: Image) -> None:
    stopped.start()
    stopped.make_defaults()
    stopped.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    source = {"type": "image", "alias": "busybox"}
    body = {"name": "c", "source": source, "config": {"boot.autostart": "false"}}
    stopped.do("POST", "/1.0/instances", body)
    stopped.stop()
    idle = utsuwad(stopped, "activateifneeded", "--debug")
    assert (idle.returncode, idle.stderr) == (0, LOOKING)
    stopped.start()
    stopped.do("PATCH", "/1.0/instances/c", {"config": {"boot.autostart": "true"}})
    stopped.stop()
    with stopped.log.open("ab") as log:
        stopped.process = subprocess.Popen(
            [
                *("systemd-socket-activate", f"--setenv=UTSUWA_DIR={stopped.dir}"),
                *(f"--setenv=PATH={os.environ['PATH']}", f"--listen={stopped.socket}"),
                *(*UTSUWAD, "--debug"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    while not stopped.socket.exists():
        assert stopped.process.poll() is None, stopped.log_tail()
    woken = utsuwad(stopped, "activateifneeded", "--debug")
    said = f"{LOOKING}Daemon has auto-started instances, activating...\n"
    assert (woken.returncode, woken.stderr) == (0, said)
    assert request(stopped.socket, "GET", "/internal/ready?api-only=1").status == 200
    until(lambda: stopped.get("/1.0/instances/c")["status"] == "Running")


def test_reasons_to_start_the_daemon(daemon: Daemon, busybox_image: Image) -> None:
    """Schedules count as well; each is also a reason while the daemon runs, as with LXD."""
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    body = {"name": "c", "source": {"type": "image", "alias": "busybox"}}
    daemon.do("POST", "/1.0/instances", body)
    volume = "/1.0/storage-pools/default/volumes/custom"
    daemon.do("POST", volume, {"name": "v"})

    def reason() -> str:
        said = utsuwad(daemon, "activateifneeded", "--debug")
        assert said.returncode == 0, said.stderr
        return said.stderr.removeprefix(LOOKING).removesuffix(", activating...\n")

    assert reason() == ""
    for url, expected in (
        (f"{volume}/v", "Daemon has scheduled volume snapshots"),
        ("/1.0/instances/c", "Daemon has scheduled instance snapshots"),
    ):
        daemon.do("PATCH", url, {"config": {"snapshots.schedule": "@hourly"}})
        assert reason() == expected
    daemon.do("PATCH", "/1.0/instances/c", {"config": {"boot.autostart": "true"}})
    assert reason() == "Daemon has auto-started instances"
