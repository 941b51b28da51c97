"""A browser that holds a trusted client certificate, open on a page of another site (CVE-2025-54286)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import tls
from tests.support.api import Reply
from tests.support.daemon import Daemon
from tests.support.tls import Identity, free_address, make_identity
from utsuwa.api.routes import all_routes

pytestmark = pytest.mark.root

PANEL = "https://panel.example"
FOREIGN = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


class Browser:
    """HTTPS with a trusted certificate, and the headers of a page."""

    def __init__(self, address: str, identity: Identity) -> None:
        self.address = address
        self.identity = identity

    def ask(
        self, method: str, url: str, page: Mapping[str, str], body: object = None, kind: str = ""
    ) -> Reply:
        headers = {**page, **({"Content-Type": kind} if kind else {})}
        return tls.request(self.address, method, url, body, identity=self.identity, headers=headers)

    def handshake(self, url: str, page: Mapping[str, str]) -> int:
        """The status by which a websocket is opened, or is not."""
        lines = [f"GET {url} HTTP/1.1", f"Host: {self.address}"]
        lines += [f"{name}: {value}" for name, value in {**UPGRADE, **page}.items()]
        with tls.connect(self.address, tls.client_context(self.identity)) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            return int(connection.recv(4096).split()[1])

    @property
    def own(self) -> dict[str, str]:
        """What the browser says of a page that the daemon itself serves."""
        return {"Origin": f"https://{self.address}", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def browser(shared_daemon: Daemon, tmp_path: Path) -> Iterator[Browser]:
    address = free_address()
    identity = make_identity(tmp_path, "browser")
    (tmp_path / "browser.crt").write_text(identity.pem)
    shared_daemon.lxc("config", "set", "core.https_address", address)
    shared_daemon.lxc("config", "trust", "add", str(tmp_path / "browser.crt"))
    yield Browser(address, identity)
    keys = [key for key in shared_daemon.get("/1.0")["config"] if key.startswith("core.https_")]
    shared_daemon.do("PATCH", "/1.0", {"config": dict.fromkeys(keys, "")})
    shared_daemon.do("DELETE", f"/1.0/certificates/{identity.fingerprint}")


def everything(daemon: Daemon) -> list[object]:
    lists = ("instances", "profiles", "images", "storage-pools", "networks", "certificates")
    return [daemon.get("/1.0")["config"], *(daemon.get(f"/1.0/{name}?recursion=1") for name in lists)]


def test_a_foreign_page_does_nothing_with_its_readers_certificate(
    shared_daemon: Daemon, browser: Browser
) -> None:
    """All routes over HTTPS, as JSON and as the text/plain of a form; nothing is changed by any of it."""
    shared_daemon.do("POST", "/1.0/profiles", {"name": "x"})
    before = everything(shared_daemon)
    for route in all_routes():
        url = re.sub(r"\{[^}]*\}", "x", route.path)
        for kind in ("text/plain", "application/json"):
            reply = browser.ask(route.method, url, FOREIGN, {"name": "evil"}, kind)
            assert reply.status == 403, (route, kind, reply.body)
        if route.method == "GET":
            assert browser.handshake(url, FOREIGN) == 403, route
    assert everything(shared_daemon) == before
    shared_daemon.do("DELETE", "/1.0/profiles/x")


def test_a_foreign_page_reads_no_events_and_no_terminal(
    shared_daemon: Daemon, browser: Browser, busybox: str
) -> None:
    """Websockets are not held to CORS by browsers: the daemon alone can refuse them."""
    shared_daemon.lxc("launch", busybox, "one")
    body = {"command": ["cat"], "interactive": True, "wait-for-websocket": True}
    operation = shared_daemon.api("POST", "/1.0/instances/one/exec", body)
    secret = operation.metadata["metadata"]["fds"]["0"]
    terminal = f"{operation.operation}/websocket?secret={secret}"
    for page in (FOREIGN, {"Origin": "null"}, {"Origin": f"http://{browser.address}"}):
        assert browser.handshake("/1.0/events", page) == 403
        assert browser.handshake(terminal, page) == 403
    assert browser.handshake("/1.0/events", browser.own) == 101
    assert browser.handshake(terminal, browser.own) == 101


def test_the_unix_socket_refuses_foreign_pages_too(shared_daemon: Daemon) -> None:
    """A proxy on the host may lead there."""
    reply = shared_daemon.api("POST", "/1.0/profiles", {"name": "evil"}, headers=FOREIGN)
    assert reply.status == 403
    assert shared_daemon.get("/1.0/profiles") == ["/1.0/profiles/default"]


def test_a_named_panel_works(shared_daemon: Daemon, browser: Browser, busybox: str) -> None:
    page = {"Origin": PANEL, "Sec-Fetch-Site": "cross-site"}
    preflight = {**page, "Access-Control-Request-Method": "POST"}
    assert browser.ask("OPTIONS", "/1.0/profiles", preflight).status == 403
    shared_daemon.lxc(
        "config", "set", f"core.https_allowed_origin={PANEL}", "core.https_allowed_methods=POST"
    )
    stranger = tls.request(browser.address, "OPTIONS", "/1.0/profiles", headers=preflight)
    assert (stranger.status, stranger.body) == (200, b"")
    assert stranger.headers["access-control-allow-methods"] == "POST"
    made = browser.ask("POST", "/1.0/profiles", page, {"name": "panel"}, "application/json")
    assert (made.status, made.headers["access-control-allow-origin"]) == (201, PANEL)
    shared_daemon.do("DELETE", "/1.0/profiles/panel")
    (image,) = shared_daemon.get("/1.0/images")
    exported = browser.ask("GET", f"{image}/export", page)
    assert (exported.status, exported.headers["access-control-allow-origin"]) == (200, PANEL)
    assert browser.handshake("/1.0/events", page) == 101
    assert browser.ask("GET", "/1.0/profiles", FOREIGN).status == 403


def test_curl_and_forms(shared_daemon: Daemon, browser: Browser) -> None:
    """`curl -d` names the type of forms, which a browser's form would too: that one says where it is from."""
    form = "application/x-www-form-urlencoded"
    assert browser.ask("POST", "/1.0/profiles", {}, {"name": "curl"}, form).status == 201
    assert browser.ask("POST", "/1.0/profiles", browser.own, {"name": "form"}, form).status == 415
    assert browser.ask("POST", "/1.0/profiles", {}, {"name": "text"}, "text/plain").status == 415
    assert browser.ask("POST", "/1.0/images", {}, {"name": "text"}, "text/plain").status == 415
    shared_daemon.do("DELETE", "/1.0/profiles/curl")
    assert shared_daemon.get("/1.0/profiles") == ["/1.0/profiles/default"]
