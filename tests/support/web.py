"""A program that does what a browser does with a session of the web page, and can do it wrongly."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.support.api import Reply
from tests.support.daemon import Daemon

KEY = "X-Utsuwa-Key"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@dataclass(frozen=True)
class Token:
    """A token, and the address of the page that it is for."""

    id: str
    secret: str
    origin: str


def local_token(daemon: Daemon) -> Token:
    """Issue a token for the loopback address, as `utsuwa webui` does."""
    found = daemon.api("POST", "/1.0/web/tokens", {"local": True}).metadata
    url = urlsplit(found["url"])
    assert (url.path, url.fragment) == ("/ui/", f"token={found['secret']}")
    return Token(found["id"], found["secret"], f"{url.scheme}://{url.netloc}")


class Page:
    """A page at an origin; `cookie` and `key` are those of its session, once it is signed in."""

    def __init__(self, origin: str, address: str = "") -> None:
        """Connect to `address` (`host:port`), by default to the origin's port on the loopback address."""
        self.origin = origin
        self.host = urlsplit(origin).netloc
        self._address = address or f"127.0.0.1:{urlsplit(origin).port}"
        self.cookie = ""
        self.key = ""

    @property
    def own(self) -> dict[str, str]:
        """What the browser adds to the page's own requests."""
        return {"Origin": self.origin, "Sec-Fetch-Site": "same-origin"}

    @property
    def session(self) -> dict[str, str]:
        return {"Cookie": self.cookie, KEY: self.key}

    def send(
        self, method: str, url: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send exactly these headers, and `Host`, which they may replace."""
        connection = http.client.HTTPConnection(self._address, timeout=60)
        if self.origin.startswith("https:"):
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(self._address, timeout=60, context=context)
        sent = {"Host": self.host, **(headers or {})}
        payload = None if body is None else json.dumps(body)
        if payload is not None:
            sent["Content-Type"] = "application/json"
        return Reply.of(connection, method, url, payload, sent)

    def ask(self, method: str, url: str, body: object = None) -> Reply:
        """Send a request as the signed-in page."""
        return self.send(method, url, body, {**self.own, **self.session})

    def sign_in(self, token: str) -> Reply:
        reply = self.send("POST", "/1.0/web/session", {"token": token}, self.own)
        if reply.status == 200:
            self.cookie = reply.headers["set-cookie"].partition(";")[0]
            self.key = reply.metadata["key"]
        return reply

    def handshake(self, url: str, headers: Mapping[str, str]) -> int:
        """Return the status with which a websocket is answered."""
        host, _, port = self._address.rpartition(":")
        lines = [f"GET {url} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {"Host": self.host, **UPGRADE, **headers}.items()]
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            return int(connection.recv(4096).split()[1])


def signed_in(daemon: Daemon) -> Page:
    """Return a page on the loopback address with a new session."""
    token = local_token(daemon)
    page = Page(token.origin)
    assert page.sign_in(token.secret).status == 200
    return page
