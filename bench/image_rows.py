"""Rows about images: imports, first launches, publishing, and images of another server."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from tests.support.image_server import ImageServer, serving
from tests.support.tls import Identity, TestAuthority

from bench import wire
from bench.memory import MIB
from bench.places import Place
from bench.table import BUSYBOX, DEBIAN, PAUSE_SECONDS
from bench.wire import timed

if TYPE_CHECKING:
    from bench.rows import Bench

_ALIAS = "debian/12"
_SERIAL = "20260101_0000"
_ROOTFS = "rootfs.squashfs"
_LAUNCHES = 3
_IMPORTS = ("import", "first-launch-at-once", "first-launch-later")
"""These rows need each other."""


class ImageRows:
    """The part `images`. What is published and downloaded is measured on each daemon's best pool."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self) -> None:
        bench = self._bench
        for number in range((bench.sizes.rounds + 1) // 2 if any(map(bench.wants, _IMPORTS)) else 0):
            places = bench.taking_part(number)
            bench.turns("first-launch-at-once", self._first_launch, places)
            bench.turns("first-launch-later", self._later_first_launch, places)
        self.warm()
        if bench.wants("publish") or bench.wants("publish-size"):
            self._publish_all()
        if bench.wants("download") or bench.wants("launch-cached"):
            self._download_all()

    # ---- imports

    def warm(self) -> None:
        """Have both images everywhere, so that no later row is the first to use one.

        Some pools unpack an image when it is first used, some in the background after its import.
        """
        bench = self._bench
        for daemon in bench.daemons:
            known = {alias["name"] for alias in daemon.wire.get("/1.0/images/aliases?recursion=1")}
            for image in (DEBIAN, BUSYBOX):
                if image not in known:
                    daemon.import_image(bench.images[image], image)
        for place in bench.places:
            for image in (DEBIAN, BUSYBOX):
                bench.samples.measure("warm", place.subject.label, partial(self._launch_once, place, image))

    def _first_launch(self, place: Place) -> float:
        self._import_debian(place)
        return self._launch_once(place, DEBIAN)

    def _later_first_launch(self, place: Place) -> float:
        """Its import is a sample too: what that leaves to do in the background ends before another's turn."""
        samples = self._bench.samples
        samples.measure("import", place.subject.label, partial(self._import_debian, place))
        time.sleep(PAUSE_SECONDS)
        return self._launch_once(place, DEBIAN)

    def _import_debian(self, place: Place) -> float:
        """The import alone; a former one is deleted before."""
        daemon = place.daemon
        _delete_images(place)
        os.sync()  # what the deletion and others have left to write is not this one's
        return timed(lambda: daemon.import_image(self._bench.images[DEBIAN], DEBIAN))

    def _launch_once(self, place: Place, image: str) -> float:
        """A launch alone; the instance is then removed without waiting for its boot."""
        name = place.name("once")
        with self._bench.discarding(place, name):
            seconds = timed(partial(self._bench.launch, place, image, name))
            wire.check_running(place.daemon.wire, name)
        wire.remove(place.daemon.wire, name)
        return seconds

    # ---- publishing

    def _publish_all(self) -> None:
        """Of a stopped container that has booted once, with the daemons' default compression."""
        bench, name = self._bench, "p0"
        places = bench.best_places()
        for place in places:
            connection, whole = place.daemon.wire, place.name(name)
            wire.create(connection, whole, DEBIAN, place.pool)
            wire.set_state(connection, whole, "start")
            wire.settle(connection, whole)
            wire.set_state(connection, whole, "stop")
        for _ in range(min(bench.sizes.rounds, _LAUNCHES)):
            bench.turns("publish", lambda p: self._publish(p, p.name(name)), places)
        for place in places:
            wire.remove(place.daemon.wire, place.name(name))

    def _publish(self, place: Place, name: str) -> float:
        connection = place.daemon.wire
        os.sync()
        start = time.perf_counter()
        made = connection.do("POST", "/1.0/images", {"source": {"type": "instance", "name": name}})
        seconds = time.perf_counter() - start
        url = f"/1.0/images/{made['fingerprint']}"
        size = connection.get(url)["size"] / MIB
        self._bench.samples.measure("publish-size", place.subject.label, lambda: size)
        connection.do("DELETE", url)
        return seconds

    # ---- images of another server

    def _download_all(self) -> None:
        """From a server on the loopback interface of each daemon's network namespace."""
        bench = self._bench
        with tempfile.TemporaryDirectory(prefix="ub-") as folder:
            names = x509.SubjectAlternativeName([x509.DNSName("images.bench")])
            identity = TestAuthority().issue(Path(folder), "images.bench", (names, False))
            for place in bench.best_places():
                with self._serving(place, identity) as remote:
                    for _ in range(min(bench.sizes.rounds, _LAUNCHES)):
                        bench.turns("download", remote.download, [place])
                        bench.turns("launch-cached", remote.launch_again, [place])
                    _delete_images(place)

    @contextmanager
    def _serving(self, place: Place, identity: Identity) -> Iterator[_Remote]:
        with serving(identity, box=place.daemon.box) as server:
            fingerprint = server.publish(
                self._bench.images[DEBIAN],
                _SERIAL,
                system="debian",
                release="12",
                aliases=_ALIAS,
                meta="incus.tar.xz" if place.daemon.name == "incus" else "lxd.tar.xz",
            )
            (path,) = (path for path in server.files if path.endswith(_ROOTFS))
            remote = _Remote(server, fingerprint, path, [])
            server.odd[path] = _timed_reply(server.files[path], remote.seconds)
            yield remote


@dataclass(frozen=True)
class _Remote:
    """A server with the Debian image."""

    server: ImageServer
    fingerprint: str
    path: str
    """That of the root file system."""
    seconds: list[float]
    """How long the server has been sending that file, for each time."""

    def download(self, place: Place) -> float:
        """The time of the transfer, as the server sees it, as a multiple of that to `curl`."""
        _delete_images(place)
        os.sync()
        self.seconds.clear()
        url = f"{self.server.url}/{self.path}"
        place.daemon.box.run("curl", "--silent", "--insecure", "--output", "/dev/null", url)
        made = place.daemon.wire.do("POST", "/1.0/images", {"source": self.server.source(_ALIAS)})
        if made.get("fingerprint") != self.fingerprint:
            raise wire.WireError(f"the image has the fingerprint {made.get('fingerprint')}")
        by_curl, by_daemon = self.seconds
        return by_daemon / by_curl

    def launch_again(self, place: Place) -> float:
        """The second of two launches, which must not transfer any file."""
        _delete_images(place)
        self._launch(place)
        before = self._transfers()
        seconds = self._launch(place)
        more = self._transfers() - before
        if more:
            raise wire.WireError(f"the second launch transferred {more} files")
        return seconds

    def _launch(self, place: Place) -> float:
        connection, name = place.daemon.wire, place.name("once")
        devices = {"root": {"type": "disk", "path": "/", "pool": place.pool}}
        body = {"name": name, "source": self.server.source(_ALIAS), "devices": devices}

        def launch() -> None:
            connection.do("POST", "/1.0/instances", body)
            wire.set_state(connection, name, "start")

        seconds = timed(launch)
        wire.check_running(connection, name)
        wire.remove(connection, name)
        return seconds

    def _transfers(self) -> int:
        return sum(path.startswith("images/") for path in self.server.requests)


def _delete_images(place: Place) -> None:
    connection = place.daemon.wire
    for image in connection.get("/1.0/images"):
        connection.do("DELETE", image)


def _timed_reply(data: bytes, seconds: list[float]) -> Callable[[BaseHTTPRequestHandler], None]:
    """Send `data`, and note how long that took."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        start = time.perf_counter()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(data)
            seconds.append(time.perf_counter() - start)

    return reply
