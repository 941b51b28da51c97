"""The client's connections through a proxy, which the environment names."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from utsuwa.client import proxies
from utsuwa.client.errors import Unreachable
from utsuwa.core.errors import InvalidRequest


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


Serve = Callable[[bytes], "tuple[int, list[bytes]]"]


@pytest.fixture
def serve() -> Serve:
    """Return what starts a proxy with one reply, which returns its port and the requests that it gets."""

    def start(reply: bytes) -> tuple[int, list[bytes]]:
        listening = socket.create_server(("127.0.0.1", 0))
        requests: list[bytes] = []

        def answer() -> None:
            with listening, listening.accept()[0] as connection:
                requests.append(connection.recv(4096))
                connection.sendall(reply)

        threading.Thread(target=answer).start()
        return listening.getsockname()[1], requests

    return start


def test_tunnel(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    port, requests = serve(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello")
    monkeypatch.setenv("https_proxy", f"http://us%40er:pass@127.0.0.1:{port}/")
    with proxies.connect("images.example", 443, 5) as sock:
        assert sock.recv(100) == b"hello"
    assert requests == [
        b"CONNECT images.example:443 HTTP/1.1\r\nHost: images.example:443\r\n"
        b"Proxy-Authorization: Basic dXNAZXI6cGFzcw==\r\n\r\n"
    ]


def test_address_of_ipv6_is_in_brackets(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    port, requests = serve(b"HTTP/1.1 200 OK\r\n\r\n")
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")
    proxies.connect("2001:db8::1", 8443, 5).close()
    assert requests[0].startswith(b"CONNECT [2001:db8::1]:8443 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not connect to images.example:443: HTTP/1.1 403 Forbidden"),
        (b"SSH-2.0-OpenSSH\r\n", "does not respond as a proxy"),
        (b"", "does not respond as a proxy"),
    ],
)
def test_proxy_that_refuses(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, reply: bytes, message: str
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{serve(reply)[0]}")
    with pytest.raises(Unreachable, match=message):
        proxies.connect("images.example", 443, 5)


@pytest.mark.parametrize(("host", "direct"), [("images.example", True), ("images.other", False)])
def test_hosts_that_are_reached_directly(monkeypatch: pytest.MonkeyPatch, host: str, direct: bool) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    monkeypatch.setenv("no_proxy", "example")
    assert (proxies.proxy_for(host) is None) is direct


@pytest.mark.parametrize("text", ["socks5://proxy:1080", "https://proxy", "http://"])
def test_proxies_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("https_proxy", text)
    with pytest.raises(InvalidRequest, match="only proxies such as"):
        proxies.proxy_for("images.example")
