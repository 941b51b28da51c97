"""The files of instances by SFTP: OpenSSH's client, the `lxc` client's mount, and clients that misbehave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import sftp_bridge
from tests.support.daemon import Daemon
from tests.support.incus import incus
from tests.support.netbox import until
from tests.support.sftp_client import connected
from utsuwa.instances.files import sftp_packets as packets
from utsuwa.instances.files.sftp import MAX_HANDLES, MAX_PACKET
from utsuwa.instances.files.sftp_packets import Status, Type

pytestmark = pytest.mark.root

SFTP = "/1.0/instances/c1/sftp"


def sftp(daemon: Daemon, script: str, *, check: bool = True) -> str:
    """Run commands of OpenSSH's client; return what it says."""
    bridge = f"{sys.executable} {sftp_bridge.__file__} {daemon.socket} {SFTP}"
    ended = subprocess.run(
        ["sftp", "-q", "-b", "-", "-D", bridge],
        input=script,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert not check or ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.fixture(params=["running", "stopped"])
def c1(shared_daemon: Daemon, busybox: str, request: pytest.FixtureRequest) -> Daemon:
    shared_daemon.lxc("launch" if request.param == "running" else "init", busybox, "c1")
    return shared_daemon


@pytest.fixture
def running(shared_daemon: Daemon, busybox: str) -> Daemon:
    shared_daemon.lxc("launch", busybox, "c1")
    return shared_daemon


def test_openssh_s_client(c1: Daemon, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(3_000_000))
    said = sftp(
        c1,
        f"""
        put {tmp_path}/large /tmp/large
        get /tmp/large {tmp_path}/back
        mkdir /tmp/dir
        chmod 2751 /tmp/dir
        chown 5 /tmp/dir
        chgrp 6 /tmp/dir
        ln -s ../large /tmp/dir/link
        ln /tmp/large /tmp/dir/hard
        rename /tmp/large /tmp/dir/new
        ls -la /tmp/dir
        ls -la /tmp
        rm /tmp/dir/link
        rm /tmp/dir/hard
        rm /tmp/dir/new
        rmdir /tmp/dir
        ls -la /tmp
        df /
        """,
    )
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()
    lines = [line.split() for line in said.splitlines() if line[:2] in ("-r", "dr", "lr")]
    assert ["drwxr-x--x", "1", "5", "6"] in [line[:4] for line in lines]
    assert ["lrwxrwxrwx", "1", "0", "0", "8"] in [line[:5] for line in lines]
    assert [line[4] for line in lines if line[-1] in ("hard", "new")] == ["3000000", "3000000"]
    assert [line[-1] for line in lines].count("dir") == 1


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("rm /nope", "No such file"),
        ("rmdir /etc", "Failure"),
        ("mkdir /etc", "Failure"),
        ("ln -s a /etc/passwd", "Failure"),
        ("get /dev/null /dev/null", "not a regular file"),
        ("put /etc/hostname /proc/sys/kernel/core_pattern", "Permission denied"),
    ],
)
def test_refusals(running: Daemon, command: str, reason: str) -> None:
    assert reason in sftp(running, command, check=False)


def test_names_of_any_bytes(running: Daemon) -> None:
    with connected(running, SFTP) as client:
        client.send(Type.INIT, packets.number(3))
        path = packets.string(b"/tmp/\xff\n ")
        reply = client.send(Type.OPEN, packets.number(1), path, packets.number(0x1A), packets.number(0))
        assert reply is not None
        assert reply.byte() == Type.HANDLE
        folder = client.send(Type.OPENDIR, packets.number(2), packets.string("/tmp"))
        assert folder is not None
        folder.take(5)
        names = client.send(Type.READDIR, packets.number(3), packets.string(folder.string()))
        assert names is not None
        assert (names.byte(), names.number(), names.number()) == (Type.NAME, 3, 1)
        assert names.string() == b"\xff\n "


def test_requests_that_make_no_sense(running: Daemon) -> None:
    with connected(running, SFTP) as client:
        assert client.status(99) is Status.UNSUPPORTED
        assert client.status(Type.EXTENDED, packets.string("x@example.com")) is Status.UNSUPPORTED
        assert client.status(Type.READ, packets.string("none"), bytes(12)) is Status.FAILURE
        assert client.status(Type.CLOSE, packets.string("none")) is Status.FAILURE
        assert client.status(Type.LSTAT, packets.string("a\0b")) is Status.FAILURE
        handle = client.open("/etc/passwd")
        assert (
            client.status(Type.WRITE, packets.string(handle), bytes(8), packets.string("x")) is Status.FAILURE
        )
        beyond = (1 << 62).to_bytes(8, "big") + packets.number(10)
        assert client.status(Type.READ, packets.string(handle), beyond) is Status.EOF


@pytest.mark.parametrize(
    "data",
    [
        packets.number(MAX_PACKET + 1),
        packets.number(0),
        packets.number(6) + b"\x07" + bytes(4) + b"x",
        packets.number(9) + b"\x07" + bytes(4) + b"\xff\xff\xff\xff",
        b"GET /1.0 HTTP/1.1\r\n\r\n",
    ],
)
def test_a_broken_packet_ends_the_connection(running: Daemon, data: bytes) -> None:
    with connected(running, SFTP) as client:
        client.socket.sendall(data)
        assert client.receive() is None
    assert running.get("/1.0/instances/c1")["status"] == "Running"


def test_open_files_are_limited(running: Daemon) -> None:
    with connected(running, SFTP) as client:
        for _ in range(MAX_HANDLES):
            client.open("/etc/passwd")
        arguments = (packets.string("/etc/passwd"), packets.number(1), packets.number(0))
        assert client.status(Type.OPEN, *arguments) is Status.FAILURE


def test_a_client_outlasts_stops_and_starts(running: Daemon) -> None:
    with connected(running, SFTP) as client:
        handle = client.open("/etc/passwd")
        running.lxc("stop", "-f", "c1")
        assert client.status(Type.READ, packets.string(handle), bytes(8), packets.number(9)) is Status.FAILURE
        client.status(Type.CLOSE, packets.string(client.open("/etc/passwd")))
        running.lxc("start", "c1")
        client.open("/etc/passwd")
        running.lxc("delete", "-f", "c1")
        assert client.status(Type.LSTAT, packets.string("/")) is Status.NO_SUCH_FILE


def test_the_daemon_ends_with_a_client_connected(running: Daemon) -> None:
    with connected(running, SFTP) as client:
        client.open("/etc/passwd")
        running.restart()
        assert client.receive() is None


def test_invalid_sftp_requests_are_rejected(shared_daemon: Daemon, busybox: str) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "sftp"}
    assert shared_daemon.api("GET", SFTP, headers=upgrade).status == 404
    shared_daemon.lxc("init", busybox, "c1")
    reply = shared_daemon.api("GET", SFTP)
    assert (reply.status, reply.error) == (400, "Missing or invalid upgrade header")


def test_lxc_file_mount(running: Daemon, tmp_path: Path) -> None:
    """By sshfs, which `lxc` connects with the server."""
    mounting = subprocess.Popen(
        ["lxc", "file", "mount", "c1/tmp", str(tmp_path)],
        env=running.lxc_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        until(tmp_path.is_mount)
        (tmp_path / "new").write_text("x" * 100_000)
        (tmp_path / "dir").mkdir()
        (tmp_path / "new").rename(tmp_path / "dir/moved")
        (tmp_path / "dir/link").symlink_to("moved")
        assert (tmp_path / "dir/link").read_text() == "x" * 100_000
        said = running.lxc("exec", "c1", "--", "sh", "-c", "ls /tmp/dir; wc -c </tmp/dir/link").stdout
        assert said.split() == ["link", "moved", "100000"]
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=False)
        mounting.terminate()
        mounting.communicate()


def test_incus_file(running: Daemon, tmp_path: Path) -> None:
    """The client of Incus uses SFTP for all of `incus file`, and opens directories as files."""
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/sub/f").write_text("hello")
    (tmp_path / "d/link").symlink_to("sub/f")
    incus(running, "file", "push", "-r", str(tmp_path / "d"), "c1/tmp/")
    incus(running, "file", "pull", "-r", "c1/tmp/d", str(tmp_path / "back"))
    assert (tmp_path / "back/d/sub/f").read_text() == "hello"
    assert str((tmp_path / "back/d/link").readlink()) == "sub/f"
    incus(running, "file", "create", "c1/tmp/new")
    incus(running, "file", "create", "--type=symlink", "c1/tmp/ln", "new")
    incus(running, "file", "delete", "c1/tmp/new")
    assert running.lxc("exec", "c1", "--", "ls", "/tmp").stdout.split() == ["d", "ln"]
