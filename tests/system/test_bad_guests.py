"""Instances that misuse the guest API: they get an error or wait, and nobody else notices."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.api import request
from tests.support.daemon import Daemon
from tests.support.guest import Guest
from tests.system.test_guest_api import launch

pytestmark = pytest.mark.root

HUGE = 10 * 2**20


@pytest.fixture(scope="module")
def guests(module_daemon: Daemon, busybox: str) -> tuple[Guest, Guest]:
    """A bad and a good one."""
    return launch(module_daemon, busybox, "bad"), launch(module_daemon, busybox, "good")


@contextlib.contextmanager
def closing(connections: list[socket.socket]) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        for connection in connections:
            stack.enter_context(connection)
        yield connections


def is_well(daemon: Daemon, good: Guest) -> None:
    """Check that others are served."""
    assert good.text("/1.0/meta-data").count("local-hostname: good") == 1
    assert request(daemon.socket, "GET", "/1.0", timeout=30).status == 200


def descriptors(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def memory(daemon: Daemon) -> int:
    """The daemon's resident memory in bytes."""
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "nothing has changed"
        time.sleep(0.1)


# More than are accepted, and than the kernel keeps waiting: the last ones block inside of the instance.
_FLOOD = """
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = []
for _ in range(10_000):
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    try:
        connection.connect(sys.argv[1])
    except BlockingIOError:
        pass
    held.append(connection)
print("connected", flush=True)
sys.stdin.read()
"""


def test_ten_thousand_connections_are_those_of_one_instance(
    module_daemon: Daemon, guests: tuple[Guest, Guest]
) -> None:
    d, (bad, good) = module_daemon, guests
    before = descriptors(d)
    with bad.run(_FLOOD) as flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == b"connected\n"
        is_well(d, good)
        assert descriptors(d) < before + 100
        is_well(d, good)
    until(lambda: descriptors(d) <= before + 2)
    assert bad.text("/1.0/meta-data")


def test_requests_that_never_end_are_cut_off(module_daemon: Daemon, guests: tuple[Guest, Guest]) -> None:
    d, (bad, good) = module_daemon, guests
    halves = (
        b"",
        b"GET /1.0/meta",
        b"GET /1.0/meta-data HTTP/1.1\r\nHost: lxd\r\n",
        b"GET / HTTP/1.1\r\nHost: lxd\r\nContent-Length: 1000\r\n\r\n",
        b"PATCH /1.0 HTTP/1.1\r\nHost: lxd\r\nContent-Length: 20\r\n\r\n{",
        b"PATCH /1.0 HTTP/1.1\r\nHost: lxd\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n",
    )
    with closing(bad.connect(len(halves))) as connections:
        for connection, half in zip(connections, halves, strict=True):
            connection.sendall(half)
            connection.settimeout(60)
        is_well(d, good)
        for connection, half in zip(connections, halves, strict=True):
            while connection.recv(10_000):
                pass
            assert connection.recv(1) == b"", half


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: lxd\r\n" + b"X: y\r\n" * 100_000, b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * HUGE, b"431"),
        (b"GET /" + b"y" * HUGE, b"431"),
        (b"PATCH /1.0 HTTP/1.1\r\nHost: lxd\r\nContent-Length: 10000\r\n\r\n" + b" " * 10_000, b"413"),
        (b"PATCH /1.0 HTTP/1.1\r\nHost: lxd\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"\xff\x00" * 1000 + b"\r\n\r\n", b"400"),
    ],
)
def test_requests_that_are_too_large_or_invalid_are_refused(
    module_daemon: Daemon, guests: tuple[Guest, Guest], head: bytes, status: bytes
) -> None:
    d, (bad, good) = module_daemon, guests
    with closing(bad.connect()) as (connection,):
        reply = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head)
        with contextlib.suppress(ConnectionResetError):
            reply = connection.recv(1000)
        assert reply.split()[1:2] in ([status], []), reply
    is_well(d, good)


def test_who_does_not_read_is_disconnected_and_many_requests_take_turns(
    module_daemon: Daemon, guests: tuple[Guest, Guest]
) -> None:
    d, (bad, good) = module_daemon, guests
    d.do("PATCH", "/1.0/instances/bad", {"config": {"user.large": "x" * (3 << 20)}})
    before = memory(d)
    large = b"GET /1.0/config/user.large HTTP/1.1\r\nHost: lxd\r\n\r\n"
    with closing(bad.connect(20)) as connections:
        for connection in connections:
            connection.sendall(large * 20)
        is_well(d, good)
        assert memory(d) < before + (200 << 20)


def test_listeners_are_limited_and_cost_nothing_when_they_have_left(
    module_daemon: Daemon, guests: tuple[Guest, Guest]
) -> None:
    d, (bad, good) = module_daemon, guests
    stream = b"GET /1.0/events HTTP/1.1\r\nHost: lxd\r\n\r\n"
    for _ in range(2):
        with closing(bad.connect(20)) as connections:
            answers = []
            for connection in connections:
                connection.sendall(stream)
                answers.append(connection.recv(12))
            assert answers == [b"HTTP/1.1 200"] * 16 + [b"HTTP/1.1 503"] * 4
            is_well(d, good)


def test_other_users_inside_do_not_keep_root_from_it(
    module_daemon: Daemon, guests: tuple[Guest, Guest]
) -> None:
    _, (bad, _) = module_daemon, guests
    with closing(bad.connect(60, user=1000)) as connections:
        assert sum(connection.recv(1) == b"" for connection in connections[8:]) == 52
        assert bad.text("/1.0/meta-data")
