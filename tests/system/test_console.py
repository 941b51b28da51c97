"""The console of a container: our client, Debian's and the wire."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.client import command, environment
from tests.support.daemon import Daemon
from tests.support.netbox import until
from tests.support.terminal import run_in_terminal

pytestmark = pytest.mark.root

SHELL = "setsid sh -c 'exec sh -i </dev/console >/dev/console 2>&1' & sleep 0.1"
PROMPT = "~ # "
HINT = "To detach from the console, press: <ctrl>+a q"


@pytest.fixture
def c1(shared_daemon: Daemon, busybox: str) -> str:
    """A running container with a shell on its console."""
    shared_daemon.lxc("launch", busybox, "c1")
    shared_daemon.lxc("exec", "c1", "--", "sh", "-c", SHELL)
    return "c1"


def post(daemon: Daemon, **body: object) -> tuple[int, str]:
    reply = daemon.api("POST", "/1.0/instances/c1/console", body)
    return reply.status, reply.error if reply.status >= 400 else ""


def test_typed_and_shown(shared_daemon: Daemon, c1: str) -> None:
    argv = command("console", c1)
    typed = [(HINT, "\r"), (PROMPT, "echo he''llo; tty\r"), ("hello", ""), ("/dev/console\r\n", "\x01q")]
    status, screen = run_in_terminal(argv, env=environment(shared_daemon), typed=typed)
    assert status == 0, screen
    assert "\r\r" not in screen
    assert "hello" in shared_daemon.lxc("console", c1, "--show-log").stdout
    # The console is free again, and as it was.
    typed = [(HINT, "echo a''gain\r"), ("again", "\x01q")]
    assert run_in_terminal(argv, env=environment(shared_daemon), typed=typed)[0] == 0


@pytest.mark.parametrize("client", ["utsuwa", "lxc"])
def test_the_end_of_the_container_ends_it(shared_daemon: Daemon, c1: str, client: str) -> None:
    argv = command("console", c1) if client == "utsuwa" else ["lxc", "console", c1]
    typed = [(HINT, "\r"), (PROMPT, "poweroff -f\r")]
    status, screen = run_in_terminal(argv, env=environment(shared_daemon), typed=typed)
    assert status == 0, screen
    until(lambda: shared_daemon.get("/1.0/instances/c1")["status"] == "Stopped")
    assert post(shared_daemon) == (400, "Instance is not running: start it with `utsuwa start c1`")


def test_it_can_be_had_from_the_start_on(shared_daemon: Daemon, busybox: str) -> None:
    shared_daemon.lxc("init", busybox, "c1")
    typed = [(HINT, "\x01q")]
    env = environment(shared_daemon)
    assert run_in_terminal(command("start", "c1", "--console"), env=env, typed=typed)[0] == 0
    shared_daemon.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    status, screen = run_in_terminal(command("start", "c1", "c2", "--console"), env=env)
    assert (status, screen) == (1, "Error: --console only works with a single instance\r\n")
    assert shared_daemon.get("/1.0/instances/c1")["status"] == "Stopped"


def test_ctrl_a_reaches_the_container(shared_daemon: Daemon, c1: str) -> None:
    typed = [(HINT, "\r"), (PROMPT, "cat -v\r"), ("cat -v", "x\x01\x01\x01z\r"), ("x^A^Az", "\x01q")]
    status, screen = run_in_terminal(command("console", c1), env=environment(shared_daemon), typed=typed)
    assert status == 0, screen


@contextmanager
def attached(daemon: Daemon) -> Iterator[subprocess.Popen[bytes]]:
    """Our client at the console of c1, without a terminal; the shell there has answered it."""
    with subprocess.Popen(
        command("console", "c1"), env=environment(daemon), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"\r")
            client.stdin.flush()
            said = b""
            while PROMPT.encode() not in said:
                said += os.read(client.stdout.fileno(), 4096)
                assert client.poll() is None
            yield client
        finally:
            client.kill()


def test_one_session_at_a_time(shared_daemon: Daemon, c1: str) -> None:
    d = shared_daemon
    assert post(d) == (202, "")  # nobody comes for this one
    with attached(d) as first:
        status, error = post(d)
        assert status == 409
        assert "in use by another session" in error
        typed = [(HINT, "\r"), (PROMPT, "\x01q")]
        taken = run_in_terminal(command("console", c1, "--force"), env=environment(d), typed=typed)
        assert taken[0] == 0, taken[1]
        assert first.wait(10) == 1


def test_a_client_that_is_killed_leaves_it(shared_daemon: Daemon, c1: str) -> None:
    with attached(shared_daemon) as client:
        client.kill()
    until(lambda: post(shared_daemon)[0] == 202)


def test_bad_requests(shared_daemon: Daemon, c1: str) -> None:
    status, error = post(shared_daemon, type="vga")
    assert status == 400
    assert "'vga'" in error
    assert post(shared_daemon, width="wide")[0] == 400
    assert shared_daemon.api("POST", "/1.0/instances/none/console", {}).status == 404


def test_a_console_that_nothing_in_the_container_has_open_stays(shared_daemon: Daemon, busybox: str) -> None:
    shared_daemon.lxc("launch", busybox, "c1")
    with subprocess.Popen(
        command("console", "c1"),
        env=environment(shared_daemon),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        try:
            assert client.stdout is not None
            until(lambda: "Showing console" in str(shared_daemon.get("/1.0/operations?recursion=1")))
            said = b""
            for word in (b"one", b"two"):
                while word not in said:
                    shared_daemon.lxc("exec", "c1", "--", "sh", "-c", f"echo {word.decode()} >/dev/console")
                    said += os.read(client.stdout.fileno(), 4096)
                    assert client.poll() is None
        finally:
            client.kill()
