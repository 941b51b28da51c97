"""Connections through the proxy that the environment names for HTTPS, as those of Go and curl."""

from __future__ import annotations

import binascii
import socket
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from utsuwa.client.errors import Unreachable
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.proxies import Proxies

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_DEFAULT_PORT = 3128
_REPLY_LIMIT = 16 * 1024


def connect(host: str, port: int, seconds: float) -> socket.socket:
    """Connect to a server, directly or through the proxy for it.

    Raises OSError, InvalidRequest if the proxy's URL cannot be used, Unreachable if the proxy refuses.
    """
    proxy = proxy_for(host)
    if proxy is None:
        return socket.create_connection((host, port), timeout=seconds)
    sock = socket.create_connection((proxy.hostname, proxy.port or _DEFAULT_PORT), timeout=seconds)
    try:
        _open_tunnel(sock, proxy, host, port)
    except BaseException:
        sock.close()
        raise
    return sock


def proxy_for(host: str) -> SplitResult | None:
    """Return the URL of the proxy for a host, None if it is to be reached directly. Raises InvalidRequest."""
    text = Proxies.of().find("https", host)
    if not text:
        return None
    proxy = urlsplit(text)
    if proxy.scheme != "http" or not proxy.hostname:
        raise InvalidRequest(f"https_proxy is {text!r}: only proxies such as http://HOST:PORT can be used")
    return proxy


def _open_tunnel(sock: socket.socket, proxy: SplitResult, host: str, port: int) -> None:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
        lines.append(f"Proxy-Authorization: Basic {binascii.b2a_base64(login, newline=False).decode()}")
    sock.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    reply = bytearray()
    # One byte at a time: what follows the head belongs to the tunnel.
    while not reply.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte or len(reply) > _REPLY_LIMIT:
            raise Unreachable(f"The proxy {proxy.hostname} does not respond as a proxy")
        reply += byte
    status, _, _ = reply.partition(b"\r\n")
    if status.split(b" ")[1:2] != [b"200"]:
        shown = status.decode("latin-1")[:100]
        raise Unreachable(f"The proxy {proxy.hostname} does not connect to {target}: {shown}")
