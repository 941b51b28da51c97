"""Rows about many aliases: of images that a daemon has, and of those that an image server lists."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from tests.support.image_server import ImageServer, serving
from tests.support.tls import TestAuthority

from bench import wire
from bench.places import Place, median_of
from bench.table import ALIASES, BUSYBOX

if TYPE_CHECKING:
    from bench.rows import Bench

_ALIASES = "/1.0/images/aliases?recursion=1"
_AUTHORITIES = "SSL_CERT_FILE"
_REPEATS = 5
_SHOP = "shop"


class AliasRows:
    """The part `aliases`, on each daemon's best pool, which it does not depend on."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self) -> None:
        bench, places = self._bench, self._bench.best_places()
        if bench.wants("aliases"):
            for place in places:
                _give_aliases(place)
            bench.turns("aliases", _list_aliases, places)
        if bench.wants("shop-list") or bench.wants("shop-list-own"):
            with _shop() as server:
                for place in places:
                    _add_remote(place, server.url)
                bench.turns("shop-list", lambda p: _list_shop(p, own=False), places)
                bench.turns("shop-list-own", lambda p: _list_shop(p, own=True), places)


def _give_aliases(place: Place) -> None:
    """Publish an image that has all of them, in one request, which takes LXD and Incus minutes."""
    connection, name = place.daemon.wire, place.name("aliased")
    wire.create(connection, name, BUSYBOX, place.pool)
    body = {
        "source": {"type": "instance", "name": name},
        "compression_algorithm": "none",
        "properties": {"os": "aliased"},
        "aliases": [{"name": f"system/{number}"} for number in range(ALIASES)],
    }
    operation = connection.ask("POST", "/1.0/images", body)["operation"]
    while True:  # for longer than a single request may take
        ended = connection.get(f"{operation}/wait?timeout=30")
        if ended["status_code"] >= 200:
            break
    if ended["status_code"] != 200:
        raise wire.WireError(f"the image with {ALIASES} aliases: {ended['err']}")
    wire.remove(connection, name)


def _list_aliases(place: Place) -> float:
    connection = place.daemon.wire
    found = len(connection.get(_ALIASES))
    if found < ALIASES:
        raise wire.WireError(f"{found} aliases are listed instead of {ALIASES}")
    return median_of(_REPEATS, lambda: connection.get(_ALIASES))


def _add_remote(place: Place, url: str) -> None:
    for own in (False, True) if place.daemon.kind.ours else (False,):
        client = place.daemon.chosen_client(own=own)
        with contextlib.suppress(wire.WireError):  # our client and that of LXD share their configuration
            client("remote", "add", _SHOP, url, "--protocol", "simplestreams")


def _list_shop(place: Place, *, own: bool) -> float:
    client = place.daemon.chosen_client(own=own)

    def show() -> None:
        found = client("image", "list", f"{_SHOP}:", "--format", "csv").count("\n")
        if found < ALIASES:
            raise wire.WireError(f"{found} images are listed instead of {ALIASES}")

    return median_of(3, show)


@contextlib.contextmanager
def _shop() -> Iterator[ImageServer]:
    """An image server that all clients trust; its images can be listed only."""
    authority, before = TestAuthority(), os.environ.get(_AUTHORITIES)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    with tempfile.TemporaryDirectory(prefix="ub-") as folder:
        trusted = Path(folder) / "authority.crt"
        trusted.write_bytes(authority.pem)
        with serving(authority.issue(Path(folder), "shop", (address, False))) as server:
            server.products |= {
                f"system:{number}:amd64:default": _product(number) for number in range(ALIASES)
            }
            server.write()
            os.environ[_AUTHORITIES] = str(trusted)
            try:
                yield server
            finally:
                del os.environ[_AUTHORITIES]
                if before is not None:
                    os.environ[_AUTHORITIES] = before


def _product(number: int) -> dict[str, Any]:
    items = {}
    for name in ("lxd.tar.xz", "incus.tar.xz", "rootfs.squashfs"):
        hashed = hashlib.sha256(f"{number} {name}".encode()).hexdigest()
        path = f"images/system/{number}/amd64/default/20260101_0700/{name}"
        ftype = "squashfs" if name == "rootfs.squashfs" else name
        items[name] = {"ftype": ftype, "path": path, "sha256": hashed, "size": 1000}
        if ftype == name:
            whole = hashlib.sha256(f"{number} {name} whole".encode()).hexdigest()
            items[name]["combined_squashfs_sha256"] = whole
    return {
        "aliases": f"system/{number}",
        "arch": "amd64",
        "os": "System",
        "release": str(number),
        "release_title": str(number),
        "variant": "default",
        "versions": {"20260101_0700": {"items": items}},
    }
