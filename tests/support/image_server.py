"""A simplestreams server on loopback, laid out as public ones are, which can also misbehave."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.images import Image
from tests.support.netbox import NetBox
from tests.support.tls import Identity

INDEX = "streams/v1/index.json"
PRODUCTS = "streams/v1/images.json"

Reply = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class ImageServer:
    """`files` are served by path, unless `odd` has another reply; `requests` lists what was requested."""

    url: str
    certificate: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    odd: dict[str, Reply] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    products: dict[str, dict[str, Any]] = field(default_factory=dict)

    def source(self, alias: str, **more: str) -> dict[str, str]:
        """The source of an instance or an image on this server."""
        return {
            "type": "image",
            "mode": "pull",
            "server": self.url,
            "protocol": "simplestreams",
            "certificate": self.certificate,
            "alias": alias,
        } | more

    def publish(
        self,
        image: Image,
        serial: str,
        *,
        system: str = "busybox",
        release: str = "1",
        arch: str = "amd64",
        aliases: str = "busybox/1,busybox",
        meta: str = "lxd.tar.xz",
        **more: str,
    ) -> str:
        """Add a version of a split image; return its fingerprint."""
        folder = f"images/{system}/{release}/{arch}/default/{serial}"
        files = {meta: image.metadata.read_bytes(), "rootfs.squashfs": image.rootfs.read_bytes()}
        items = {}
        for name, data in files.items():
            self.files[f"{folder}/{name}"] = data
            items[name] = {
                "ftype": "squashfs" if name == "rootfs.squashfs" else name,
                "path": f"{folder}/{name}",
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
            }
        combined = hashlib.sha256(b"".join(files.values())).hexdigest()
        items[meta]["combined_squashfs_sha256"] = combined
        product = self.products.setdefault(
            f"{system}:{release}:{arch}:default",
            {
                "aliases": aliases,
                "arch": arch,
                "os": system.capitalize(),
                "release": release,
                "release_title": release,
                "variant": "default",
                "versions": {},
                **more,
            },
        )
        product["versions"][serial] = {"items": items}
        self.write()
        return combined

    def publish_delta(self, base: str, data: bytes) -> str:
        """Add the difference of the newest version to the rootfs of the version `base`; return its path."""
        path = str(self.item("rootfs.squashfs")["path"]).replace("rootfs.squashfs", f"delta.{base}.vcdiff")
        self.files[path] = data
        (product,) = self.products.values()
        product["versions"][max(product["versions"])]["items"][f"delta.{base}"] = {
            "ftype": "squashfs.vcdiff",
            "delta_base": base,
            "path": path,
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
        }
        self.write()
        return path

    def write(self) -> None:
        """Serve the documents for the current `products`."""
        entry = {
            "datatype": "image-downloads",
            "path": PRODUCTS,
            "format": "products:1.0",
            "products": sorted(self.products),
        }
        self.files[INDEX] = json.dumps({"format": "index:1.0", "index": {"images": entry}}).encode()
        listed = {"content_id": "images", "datatype": "image-downloads", "format": "products:1.0"}
        self.files[PRODUCTS] = json.dumps({**listed, "products": self.products}).encode()

    def item(self, name: str) -> dict[str, Any]:
        """An item of the newest version of the only product, to be changed before `write`."""
        (product,) = self.products.values()
        found: dict[str, Any] = product["versions"][max(product["versions"])]["items"][name]
        return found

    def count(self, end: str) -> int:
        """How often a path with this end was requested."""
        return sum(path.endswith(end) for path in self.requests)


@contextlib.contextmanager
def serving(
    identity: Identity | None = None, host: str = "127.0.0.1", *, box: NetBox | None = None
) -> Iterator[ImageServer]:
    """Run a server, by HTTPS with an identity, whose certificate clients have to pin.

    With `box`, it is in that network namespace.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].lstrip("/")
            server.requests.append(path)
            if path in server.odd:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    server.odd[path](self)
                return
            data = server.files.get(path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if data and self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = False

        def shutdown_request(self, request: Any) -> None:
            """End TLS in order, as other servers do: uvloop loses the end of what comes otherwise."""
            if isinstance(request, ssl.SSLSocket):
                with contextlib.suppress(OSError, ValueError):
                    request.settimeout(1)
                    request.unwrap()
            super().shutdown_request(request)

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that hang up are part of the tests."""

    with ThreadPoolExecutor(1) as inside:  # a socket stays in the namespace of the thread that opened it
        http = inside.submit(_open, lambda: Quiet((host, 0), Handler), box).result()
    if identity is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.certificate_file, identity.key_file)
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    scheme = "http" if identity is None else "https"
    server = ImageServer(f"{scheme}://{host}:{http.server_port}", identity.pem if identity else "")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _open(make: Callable[[], ThreadingHTTPServer], box: NetBox | None) -> ThreadingHTTPServer:
    if box is not None:
        with Path(f"/proc/{box.pid}/ns/net").open("rb") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(namespace.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
    return make()


def redirect(location: str) -> Reply:
    """Reply with a redirect."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return reply


def body(
    data: bytes,
    *,
    length: int | None = None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Reply with `data`, which may be shorter than the stated length (None: it is not stated)."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def endless(ended: threading.Event) -> Reply:
    """Reply with zeros until the client hangs up, which sets `ended`."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 20))
        finally:
            ended.set()

    return reply


def held(release: threading.Event, data: bytes, after: int = 0) -> Reply:
    """Reply with `after` bytes, and with the rest of `data` when released."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data[:after])
        release.wait(60)
        handler.wfile.write(data[after:])

    return reply
