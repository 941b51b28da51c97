"""What visitors of the public site may try to break: nobody else notices."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import try_site
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import until
from tests.support.try_site import Site, Terminal, Visitor, running
from tests.support.web import UPGRADE

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

TERMINAL = "/api/session/terminal"
RESULT = r"\b(daemon|guest-api|links|outside|routes)=(\d+)\b"


@pytest.fixture(scope="module")
def folder(module_daemon: Daemon, busybox_image: Image) -> Path:
    return try_site.prepared(
        module_daemon, busybox_image, ready=1, sessions=3, sessions_per_address=3, starts_per_hour=1000
    )


@pytest.fixture(scope="module")
def site(module_daemon: Daemon, folder: Path) -> Iterator[Site]:
    with running(module_daemon, folder) as site:
        yield site


@pytest.fixture(scope="module")
def visitor(site: Site) -> Visitor:
    """A visitor whose session lasts until the site is started again, in the last tests."""
    found = site.visitor()
    assert found.begin().status == 201
    return found


@contextlib.contextmanager
def attacking(site: Site, script: str) -> Iterator[Terminal]:
    """Have a visitor run a script for the block."""
    visitor = site.visitor()
    assert visitor.begin().status == 201
    terminal = visitor.terminal()
    terminal.type(f"{script}\n")
    try:
        yield terminal
    finally:
        terminal.close()
        visitor.send("DELETE", "/api/session")


def works(site: Site) -> None:
    """Another visitor is served, and has a terminal and a daemon that answer."""
    other = site.visitor()
    assert other.begin().status == 201
    terminal = other.terminal()
    terminal.type("echo he''re\n")
    terminal.read_until("here")
    terminal.close()
    assert other.check("launch")["hint"] == "no-instance"
    other.send("DELETE", "/api/session")


# ---- requests


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Origin": "{own}", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "{own}", "Sec-Fetch-Site": "same-site"},
        {"Origin": "{own}", "Host": "evil.example"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_pages_elsewhere_can_do_nothing(site: Site, visitor: Visitor, headers: dict[str, str]) -> None:
    own = f"http://{site.address}"
    sent = {key: value.replace("{own}", own) for key, value in headers.items()} | {"Cookie": visitor.cookie}
    for method, url, body in (
        ("POST", "/api/sessions", {"terms": "1"}),
        ("DELETE", "/api/session", None),
        ("POST", "/api/session/steps/launch/check", None),
        ("POST", "/api/session/turn", None),
        ("DELETE", "/api/session/turn", None),
        ("POST", "/api/feedback", {"stars": 5}),
    ):
        refused = visitor.send(method, url, body, sent)
        assert (refused.status, refused.json["code"]) == (403, "forbidden"), url
    assert visitor.send("GET", TERMINAL, None, {**UPGRADE, **sent}).status == 403
    assert visitor.session()["state"] == "ready"


@pytest.mark.parametrize(
    "cookie", ["", "utsuwa-try=", "utsuwa-try=" + "x" * 43, "other=1", "utsuwa-try=\xff"]
)
def test_without_the_cookie_of_a_session_there_is_nothing(site: Site, visitor: Visitor, cookie: str) -> None:
    stranger = site.visitor()
    stranger.cookie = cookie
    for method, url in (
        ("GET", "/api/session"),
        ("DELETE", "/api/session"),
        ("POST", "/api/session/steps/launch/check"),
        ("POST", "/api/session/turn"),
        ("DELETE", "/api/session/turn"),
        ("POST", "/api/feedback"),
    ):
        refused = stranger.send(method, url)
        assert (refused.status, refused.json["code"]) == (404, "no-session"), url
    with pytest.raises(ConnectionRefusedError, match="404"):
        stranger.terminal()
    assert visitor.session()["state"] == "ready"


def test_invalid_requests_are_explained(site: Site, visitor: Visitor) -> None:
    for body, status in (
        ({}, 400),
        ({"terms": "0"}, 400),
        ({"terms": "1", "language": "xx"}, 400),
        (b"{", 400),
        (b"[" * 100_000, 413),
        (b"[" * 1000, 400),
    ):
        assert site.visitor().send("POST", "/api/sessions", body).status == status, body
    sent = {**visitor.own, "Content-Type": "text/plain"}
    assert visitor.send("POST", "/api/feedback", {"stars": 1}, sent).status == 415
    for feedback in ({"stars": 0}, {"stars": 6}, {"stars": "5"}, {"stars": 1, "text": "x" * 2001}):
        assert visitor.send("POST", "/api/feedback", feedback).status == 400
    for url, status in (("/api/x", 404), ("/assets/../try.yaml", 404), ("/etc/passwd", 404)):
        assert visitor.send("GET", url).status == status
    assert visitor.send("POST", "/api/session/steps/none/check").status == 404
    assert visitor.send("PUT", "/api/session").status == 405


def test_replies_are_protected_as_those_of_the_page(site: Site) -> None:
    for method, url in (("GET", "/"), ("HEAD", "/"), ("GET", "/api/site")):
        reply = site.visitor().send(method, url)
        assert reply.status == 200
        headers = reply.headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"


def test_a_terminal_after_the_end_says_so(site: Site) -> None:
    visitor = site.visitor()
    visitor.begin()
    terminal = visitor.terminal()
    visitor.send("DELETE", "/api/session")
    assert terminal.closed() == 4000
    terminal.close()
    again = visitor.terminal()
    assert again.closed() == 4000
    again.close()


def test_a_thousand_connections_of_one_address(site: Site, visitor: Visitor) -> None:
    host, _, port = site.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        open_ones = []
        for _ in range(1000):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            open_ones.append(connection)
        until(lambda: sum(map(is_open, open_ones)) <= 64)
    until(lambda: answers(site))
    assert visitor.session()["state"] == "ready"


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def answers(site: Site) -> bool:
    try:
        return site.visitor().send("GET", "/api/site").status == 200
    except OSError:
        return False


# ---- in the container


def test_the_disk_is_not_theirs_to_fill(visitor: Visitor) -> None:
    terminal = visitor.terminal()
    terminal.type(
        "mount -o remount,rw / 2>/dev/null; mount -o remount,rw,bind / 2>/dev/null;"
        " for d in / /root /tmp /run /var/tmp /var/log /var/lib/utsuwa /dev; do"
        " dd if=/dev/zero of=$d/fill bs=1M 2>/dev/null; done;"
        " echo root=$(ls /fill 2>/dev/null | wc -l) fi''lled\n"
    )
    assert "root=0 filled" in terminal.read_until(" filled")
    terminal.close()


def test_nothing_outside_can_be_reached(
    module_daemon: Daemon, site: Site, visitor: Visitor, folder: Path
) -> None:
    """Neither the host's daemon, nor its guest API, nor any address but the container's own."""
    port = module_daemon.get("/1.0")["config"]["core.https_address"].rpartition(":")[2]
    terminal = visitor.terminal()
    terminal.type(
        f"ip link set lo up; bash -c ': </dev/tcp/127.0.0.1/{port}'; echo daemon=$?;"
        " echo guest-api=$(ls /dev/lxd 2>/dev/null | wc -l);"
        " echo links=$(ip -br link | grep -vc -e ^lo -e ^utsuwabr);"
        " timeout 20 bash -c ': </dev/tcp/192.0.2.1/80'; echo outside=$?;"
        " echo routes=$(ip route | grep -c default); echo loo''ked\n"
    )
    seen = terminal.read_until("looked")
    results = {label: int(value) for label, value in re.findall(RESULT, seen)}
    assert results == {"daemon": 1, "guest-api": 0, "links": 0, "outside": 1, "routes": 0}, seen
    assert "Connection refused" in seen
    assert "Network is unreachable" in seen
    terminal.close()


@pytest.mark.long
@pytest.mark.parametrize(
    "script",
    [
        "f() { f | f & }; f",
        "mount -t tmpfs -o size=10g x /mnt; dd if=/dev/zero of=/mnt/a bs=1M",
        "python3 -c 'b=[]\nwhile True: b.append(bytearray(1<<20))'",
        "while :; do cat /dev/zero; done",
        "kill -9 $(pidof -x utsuwad); while :; do kill -9 $(pidof python) ; done",
        "cat /dev/zero >/dev/console",
    ],
    ids=["forks", "tmpfs", "memory", "output", "daemon", "console"],
)
def test_a_visitor_without_restraint_does_not_disturb_the_others(site: Site, script: str) -> None:
    with attacking(site, script):
        for _ in range(3):
            works(site)


# ---- the end


def test_one_address_has_few_sessions(module_daemon: Daemon, site: Site) -> None:
    site.stop()
    site.start(sessions=2, sessions_per_address=1, proxies=["127.0.0.1"])
    first, second, third = (site.visitor() for _ in range(3))
    told = {"X-Forwarded-For": "2001:db8::1"}
    assert first.begin(**told).status == 201
    # The same /64; what a visitor adds to the header itself is not believed.
    for address in ("2001:db8::2", "192.0.2.7, 2001:db8::3"):
        refused = second.begin(**{"X-Forwarded-For": address})
        assert (refused.status, refused.json["code"]) == (429, "too-many")
    assert second.begin(**{"X-Forwarded-For": "192.0.2.7"}).status == 201
    full = third.begin(**{"X-Forwarded-For": "192.0.2.8"})
    assert (full.status, full.json["code"]) == (503, "full")
    assert int(full.headers["retry-after"]) > 0
    first.send("DELETE", "/api/session")
    assert third.begin(**told).status == 201
    site.stop()
    site.start(sessions=3, sessions_per_address=3, proxies=[])


@pytest.mark.long
def test_sessions_end_in_time(site: Site) -> None:
    site.stop()
    site.start(minutes=1)
    visitor = site.visitor()
    visitor.begin()
    name = visitor.session()["container"]
    terminal = visitor.terminal()
    assert terminal.closed(120) == 4000
    terminal.close()
    until(lambda: name not in site.containers(), 60)
    assert visitor.send("POST", "/api/feedback", {"stars": 4, "text": "good"}).status == 200
    assert visitor.send("POST", "/api/feedback", {"stars": 4}).status == 409
    assert '"text":"good"' in (site.folder / "data/feedback.jsonl").read_text()
    statistics = (site.folder / "data/statistics.jsonl").read_text()
    assert '"end":"time"' in statistics
    assert "127.0.0.1" not in statistics
    site.stop()
    site.start(minutes=30)


def test_a_container_that_the_visitor_stops_ends_the_session(site: Site) -> None:
    visitor = site.visitor()
    visitor.begin()
    terminal = visitor.terminal()
    terminal.type("kill -PWR 1; kill -TERM 1; sleep 5; echo still here\n")
    assert terminal.closed() == 4000
    terminal.close()
    assert visitor.session()["state"] == "ended"


def test_a_killed_site_leaves_nothing_after_its_next_start(site: Site) -> None:
    visitor = site.visitor()
    visitor.begin()
    left = visitor.session()["container"]
    site.kill()
    assert left in site.containers()
    site.start()
    until(lambda: left not in site.containers(), 120)
    again = site.visitor()
    again.cookie = visitor.cookie
    assert again.send("GET", "/api/session").status == 404


def test_sessions_outlive_a_crash_of_the_daemon(module_daemon: Daemon, site: Site) -> None:
    visitor = site.visitor()
    visitor.begin()
    terminal = visitor.terminal()
    terminal.type("echo on''e\n")
    terminal.read_until("one")
    module_daemon.kill()
    module_daemon.start()
    until(lambda: visitor.send("POST", "/api/session/steps/launch/check").status == 200, 60)
    terminal.type("echo tw''o\n")
    terminal.read_until("two")
    terminal.close()
    visitor.send("DELETE", "/api/session")
