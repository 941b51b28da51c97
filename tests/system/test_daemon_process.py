"""The daemon as a process: its lock, its socket, its signals, its subcommands."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api import UnixConnection
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import until
from utsuwa.version import __version__

pytestmark = pytest.mark.root

UTSUWAD = (sys.executable, "-m", "utsuwa.daemon.main")


def utsuwad(
    daemon: Daemon, *arguments: str, check: bool = False, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*UTSUWAD, *arguments],
        env={**os.environ, "UTSUWA_DIR": str(daemon.dir)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )


def wait_until_running(daemon: Daemon, name: str) -> None:
    deadline = time.monotonic() + 60
    while daemon.get(f"/1.0/instances/{name}")["status"] != "Running":
        assert time.monotonic() < deadline, f"{name} did not come back"
        time.sleep(0.05)


@pytest.fixture
def stopped_daemon(make_daemon: type[Daemon]) -> Iterator[Daemon]:
    """A daemon of the test's own that it starts itself."""
    daemon = make_daemon()
    yield daemon
    assert daemon.close() == []


def test_containers_do_not_have_the_umask_that_the_daemon_was_started_with(
    stopped_daemon: Daemon, busybox_image: Image
) -> None:
    """Those who are not root inside reach /dev/net/tun (lxc#4186)."""
    before = os.umask(0o077)
    try:
        stopped_daemon.start()
    finally:
        os.umask(before)
    stopped_daemon.make_defaults()
    stopped_daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    stopped_daemon.lxc("launch", "busybox", "c1")
    assert stopped_daemon.lxc("exec", "c1", "--", "stat", "-c", "%a", "/dev/net").stdout == "755\n"


def test_a_second_daemon_on_the_same_folder_is_refused(module_daemon: Daemon) -> None:
    ended = utsuwad(module_daemon)
    assert ended.returncode == 1
    assert f"pid {module_daemon.pid}" in ended.stderr
    assert "UTSUWA_DIR" in ended.stderr
    assert module_daemon.get("/") == ["/1.0"]


def test_a_stale_socket_is_replaced(bare_daemon: Daemon) -> None:
    bare_daemon.kill()
    assert bare_daemon.socket.exists()
    bare_daemon.start()
    assert bare_daemon.get("/") == ["/1.0"]


def test_a_crash_in_native_code_leaves_python_stacks_in_the_log(bare_daemon: Daemon) -> None:
    assert bare_daemon.stop(signal.SIGSEGV) == -signal.SIGSEGV
    log = bare_daemon.log.read_text()
    assert "Fatal Python error: Segmentation fault" in log
    assert "(most recent call first):\n  File " in log
    bare_daemon.start()
    assert bare_daemon.get("/") == ["/1.0"]


def test_the_socket_is_for_the_default_group_or_for_root_alone(module_daemon: Daemon) -> None:
    found = module_daemon.socket.stat()
    shown = (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
    groups = {group.gr_name: group.gr_gid for group in grp.getgrall()}
    if "utsuwa" in groups:
        assert shown == (0o660, 0, groups["utsuwa"])
    else:
        assert shown == (0o600, 0, 0)
        found_types = [warning["type"] for warning in module_daemon.get("/1.0/warnings?recursion=1")]
        assert "Only root can use the unix socket" in found_types


def test_an_unknown_group_keeps_it_from_starting(stopped_daemon: Daemon) -> None:
    ended = utsuwad(stopped_daemon, "--group", "no-such-group")
    assert ended.returncode == 1
    assert "no-such-group" in ended.stderr


def test_other_users_cannot_use_the_socket(module_daemon: Daemon) -> None:
    script = f"import socket; socket.socket(socket.AF_UNIX).connect({str(module_daemon.socket)!r})"
    ended = subprocess.run(
        ["/usr/bin/python3", "-c", script], user=65534, group=65534, extra_groups=[], capture_output=True
    )
    assert b"PermissionError" in ended.stderr


def test_a_member_of_the_group_is_trusted_but_not_root(make_daemon: type[Daemon]) -> None:
    daemon = make_daemon(arguments=("--group", "games"))
    script = f"""
import socket
for url in ("/1.0/profiles", "/internal/gc"):
    s = socket.socket(socket.AF_UNIX)
    s.connect({str(daemon.socket)!r})
    s.sendall(f"GET {{url}} HTTP/1.0\\r\\n\\r\\n".encode())
    print(s.recv(100).split()[1].decode())
"""
    try:
        daemon.start()
        games = grp.getgrnam("games").gr_gid
        found = daemon.socket.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, games)
        ended = subprocess.run(
            ["/usr/bin/python3", "-c", script], user=65534, group=games, extra_groups=[], capture_output=True
        )
        assert ended.stdout.split() == [b"200", b"403"]
    finally:
        assert daemon.close() == []


def test_waitready_waits_for_a_starting_daemon(stopped_daemon: Daemon) -> None:
    waiting = subprocess.Popen(
        [*UTSUWAD, "waitready", "--timeout=30"], env={**os.environ, "UTSUWA_DIR": str(stopped_daemon.dir)}
    )
    try:
        stopped_daemon.start(wait=False)
        assert waiting.wait(30) == 0
    finally:
        waiting.kill()
        waiting.wait()


@pytest.mark.alone
def test_waitready_gives_up_in_time(stopped_daemon: Daemon) -> None:
    begin = time.monotonic()
    ended = utsuwad(stopped_daemon, "waitready", "--timeout", "1")
    assert ended.returncode == 1
    assert f"not ready after 1 s: No daemon responds at {stopped_daemon.socket}" in ended.stderr
    assert time.monotonic() - begin < 5


def test_waitready_waits_for_autostarted_instances(daemon: Daemon, busybox_image: Image) -> None:
    """As that of LXD; with --api-only, it does not (a delay may be long)."""
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    for name, priority in (("c1", "2"), ("c2", "1")):
        config = ("-c", "boot.autostart=true", "-c", f"boot.autostart.priority={priority}")
        daemon.lxc("init", "busybox", name, *config)
    daemon.restart()
    assert utsuwad(daemon, "waitready", "--timeout", "60", timeout=90).returncode == 0
    assert [daemon.get(f"/1.0/instances/{name}")["status"] for name in ("c1", "c2")] == ["Running"] * 2
    for name in ("c1", "c2"):
        daemon.lxc("stop", "--force", name)
    daemon.lxc("config", "set", "c1", "boot.autostart.delay", "3600")
    daemon.restart()
    assert utsuwad(daemon, "waitready", "--api-only", "--timeout", "60", timeout=90).returncode == 0
    wait_until_running(daemon, "c1")
    refused = daemon.api("GET", "/internal/ready")
    assert (refused.status, refused.error) == (503, "Instances are still being autostarted")
    ended = utsuwad(daemon, "waitready", "--timeout", "1")
    assert ended.returncode == 1
    assert "not ready after 1 s: Instances are still being autostarted" in ended.stderr
    assert daemon.get("/1.0/instances/c2")["status"] == "Stopped"
    daemon.lxc("start", "c2")


def test_shutdown_returns_when_the_daemon_is_gone(bare_daemon: Daemon) -> None:
    process = bare_daemon.process
    assert process is not None
    ended = utsuwad(bare_daemon, "shutdown", "", "--timeout", "20")
    assert ended.returncode == 0, ended.stderr
    assert process.wait(1) == 0
    assert not bare_daemon.socket.exists()
    bare_daemon.process = None
    bare_daemon.start()


def test_shutdown_without_a_daemon_says_so(stopped_daemon: Daemon) -> None:
    ended = utsuwad(stopped_daemon, "shutdown")
    assert ended.returncode == 1
    assert f"No daemon is running on {stopped_daemon.dir}" in ended.stderr


def test_shutdown_stops_containers_and_the_next_start_starts_them(
    daemon: Daemon, busybox_image: Image
) -> None:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    daemon.lxc("launch", "busybox", "c1")
    process = daemon.process
    assert process is not None
    assert utsuwad(daemon, "shutdown", "--force", "--timeout", "30").returncode == 0
    process.wait(1)
    daemon.process = None
    daemon.start()
    wait_until_running(daemon, "c1")


@pytest.mark.parametrize(
    ("minutes", "force", "completed"), [("1", False, True), ("1", True, False), ("0", False, False)]
)
def test_shutdown_waits_for_operations_as_configured(
    daemon: Daemon, busybox_image: Image, minutes: str, force: bool, completed: bool
) -> None:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    daemon.lxc("launch", "busybox", "c1", "-c", "boot.host_shutdown_timeout=1")
    daemon.do("PATCH", "/1.0", {"config": {"core.shutdown_timeout": minutes}})
    script = "touch /root/begun; sleep 4; touch /root/completed"
    body = {"command": ["sh", "-c", script], "wait-for-websocket": False}
    assert daemon.api("POST", "/1.0/instances/c1/exec", body).status == 202
    until(lambda: daemon.api("GET", "/1.0/instances/c1/files?path=/root/begun").status == 200)
    process = daemon.process
    assert process is not None
    ended = utsuwad(daemon, "shutdown", *(["--force"] if force else []), "--timeout", "60")
    assert ended.returncode == 0, ended.stderr
    process.wait(1)
    daemon.process = None
    daemon.start()
    found = daemon.api("GET", "/1.0/instances/c1/files?path=/root/completed").status
    assert found == (200 if completed else 404)


def begin_work(daemon: Daemon, image: Image, seconds: int) -> int:
    """Run a command for some seconds in the instance c1, in an operation; return the pid of its init."""
    daemon.import_image(image.metadata, image.rootfs, alias="busybox")
    daemon.lxc("launch", "busybox", "c1", "-c", "boot.host_shutdown_timeout=1")
    script = f"touch /root/begun; sleep {seconds}; touch /root/completed"
    body = {"command": ["sh", "-c", script], "wait-for-websocket": False}
    assert daemon.api("POST", "/1.0/instances/c1/exec", body).status == 202
    until(lambda: daemon.api("GET", "/1.0/instances/c1/files?path=/root/begun").status == 200)
    return int(daemon.get("/1.0/instances/c1/state")["pid"])


def completed(daemon: Daemon, init: int) -> bool:
    """Whether the command of `begin_work` has completed, in the same container."""
    daemon.start()
    assert daemon.get("/1.0/instances/c1/state")["pid"] == init
    return daemon.api("GET", "/1.0/instances/c1/files?path=/root/completed").status == 200


def test_sigterm_waits_for_operations_and_new_changes_are_refused(
    daemon: Daemon, busybox_image: Image
) -> None:
    init = begin_work(daemon, busybox_image, 3)
    process = daemon.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    until(lambda: daemon.api("GET", "/internal/ready").status == 503)
    for method, url, body in (
        ("POST", "/1.0/profiles", {"name": "p"}),
        ("PATCH", "/1.0/instances/c1", {"config": {"user.a": "1"}}),
        ("POST", "/1.0/instances/c1/exec", {"command": ["true"]}),
    ):
        refused = daemon.api(method, url, body)
        assert (refused.status, refused.error.partition(":")[0]) == (503, "The daemon is shutting down")
    assert len(daemon.get("/1.0/operations")["running"]) == 1
    assert process.wait(20) == 0
    daemon.process = None
    assert completed(daemon, init)


def test_a_second_sigterm_cancels_operations(daemon: Daemon, busybox_image: Image) -> None:
    init = begin_work(daemon, busybox_image, 60)
    process = daemon.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    until(lambda: daemon.api("GET", "/internal/ready").status == 503)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    daemon.process = None
    assert not completed(daemon, init)


def test_a_shutdown_during_the_wait(daemon: Daemon, busybox_image: Image) -> None:
    """Its timeout holds, and the containers stop."""
    init = begin_work(daemon, busybox_image, 60)
    process = daemon.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    until(lambda: daemon.api("GET", "/internal/ready").status == 503)
    assert utsuwad(daemon, "shutdown", "--timeout", "10").returncode == 0
    assert process.wait(1) == 0
    daemon.process = None
    assert not Path(f"/proc/{init}").exists()
    daemon.start()
    wait_until_running(daemon, "c1")


def test_sigpwr_stops_containers_sigterm_does_not(daemon: Daemon, busybox_image: Image) -> None:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    daemon.lxc("launch", "busybox", "c1", "-c", "boot.host_shutdown_timeout=1")
    init = daemon.get("/1.0/instances/c1/state")["pid"]
    assert daemon.stop(signal.SIGTERM) == 0
    assert Path(f"/proc/{init}").exists()
    daemon.start()
    assert daemon.get("/1.0/instances/c1/state")["pid"] == init
    assert daemon.stop(signal.SIGPWR) == 0
    assert not Path(f"/proc/{init}").exists()
    daemon.start()
    wait_until_running(daemon, "c1")


@pytest.mark.alone
def test_it_ends_quickly_whoever_listens(bare_daemon: Daemon) -> None:
    idle = UnixConnection(bare_daemon.socket)
    idle.request("GET", "/")
    idle.getresponse().read()
    listener = socket.socket(socket.AF_UNIX)
    listener.connect(str(bare_daemon.socket))
    listener.sendall(
        b"GET /1.0/events HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert b"101 Switching" in listener.recv(4096)
    heard: list[bytes] = []

    def listen() -> None:
        while data := listener.recv(4096):
            heard.append(data)
            if data[0] == 0x88:  # a close frame: answer it, as clients do
                with contextlib.suppress(OSError):
                    listener.sendall(b"\x88\x80\x00\x00\x00\x00")

    thread = threading.Thread(target=listen)
    thread.start()
    begin = time.monotonic()
    assert bare_daemon.stop() == 0
    seconds = time.monotonic() - begin
    thread.join(5)
    idle.close()
    listener.close()
    assert seconds < 2.5
    assert any(data[0] == 0x88 for data in heard)
    bare_daemon.start()


def test_a_hangup_does_not_end_it(module_daemon: Daemon) -> None:
    os.kill(module_daemon.pid, signal.SIGHUP)
    time.sleep(0.1)
    assert module_daemon.get("/") == ["/1.0"]


def test_the_log_file_has_one_line_a_record(stopped_daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "daemon.log"
    stopped_daemon.arguments = ("--logfile", str(file))
    stopped_daemon.start()
    text = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert all(
        line.startswith("time=") and " level=" in line and " msg=" in line for line in text.splitlines()
    )
    assert "msg=ready" in text


def test_unwritable_log_file_is_reported(stopped_daemon: Daemon, tmp_path: Path) -> None:
    ended = utsuwad(stopped_daemon, "--logfile", str(tmp_path / "no" / "log"))
    assert ended.returncode == 1
    assert "Cannot write the log file" in ended.stderr


def test_unsupported_subcommand_is_reported(stopped_daemon: Daemon) -> None:
    ended = utsuwad(stopped_daemon, "recover", "--auto")
    assert ended.returncode == 1
    assert "`utsuwad recover` is not supported yet" in ended.stderr


def test_version_and_empty_arguments(stopped_daemon: Daemon) -> None:
    ended = utsuwad(stopped_daemon, "", "version", "")
    assert (ended.returncode, ended.stdout) == (0, f"{__version__}\n")
    assert utsuwad(stopped_daemon, "nonsense").returncode == 2


def test_activateifneeded_starts_the_daemon_only_if_needed(bare_daemon: Daemon) -> None:
    running = utsuwad(bare_daemon, "activateifneeded", "--debug")
    looking = "Looking for a reason to start the daemon\n"
    assert (running.returncode, running.stderr) == (0, looking)
    bare_daemon.stop()
    idle = utsuwad(bare_daemon, "activateifneeded", "--debug")
    assert (idle.returncode, idle.stderr) == (0, looking)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bare_daemon.start()
    bare_daemon.do("PUT", "/1.0", {"config": {"core.https_address": f"127.0.0.1:{port}"}})
    bare_daemon.stop()
    listening = utsuwad(bare_daemon, "activateifneeded", "--debug")
    assert "Daemon has core.https_address set, activating..." in listening.stderr
    assert listening.returncode == 1  # here no systemd holds the socket
    bare_daemon.start()
    bare_daemon.do("PUT", "/1.0", {"config": {}})


def test_bad_bodies_are_refused_over_the_wire(module_daemon: Daemon) -> None:
    for body, status in ((b'{"a":' * 5000, 400), (b"[1]", 400), (b"", 400), (b" " * (5 * 2**20), 413)):
        reply = module_daemon.api("POST", "/1.0/profiles", body)
        assert (reply.status, reply.json["type"]) == (status, "error")
    assert module_daemon.get("/1.0/profiles") == ["/1.0/profiles/default"]


def test_log_records_are_sent_as_events(module_daemon: Daemon) -> None:
    monitor = subprocess.Popen(
        ["lxc", "monitor", "--type=logging", "--format=json"],
        env=module_daemon.lxc_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    too_long = threading.Timer(10, monitor.kill)
    too_long.start()
    try:
        assert monitor.stdout is not None
        while not select.select([monitor.stdout], [], [], 0.1)[0]:
            module_daemon.get("/1.0")  # told at level debug
        event = json.loads(monitor.stdout.readline())
        assert event["type"] == "logging"
        assert set(event["metadata"]) == {"message", "level", "context"}
    finally:
        too_long.cancel()
        monitor.kill()
        monitor.communicate()
