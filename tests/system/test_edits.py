"""One way to edit, whatever the object: no update gets lost, and a stale ETag is refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.tls import make_identity

pytestmark = pytest.mark.root

AT_ONCE = 8


@dataclass(frozen=True)
class Kind:
    """An object that can be edited: where it is, and the map or the fields that several clients change."""

    url: str
    map: str = "config"
    """The field that is a map of strings."""


@pytest.fixture(scope="module")
def alias_url() -> str:
    return "/1.0/images/aliases/debian%2F12%20%26%20more"


@pytest.fixture
def objects(shared_daemon: Daemon, busybox: str, alias_url: str, tmp_path: Any) -> Iterator[dict[str, Kind]]:
    """One of each kind."""
    daemon = shared_daemon
    fingerprint = daemon.get(f"/1.0/images/aliases/{busybox}")["target"]
    pool = daemon.get("/1.0/storage-pools")[0]
    source = {"type": "image", "alias": busybox}
    daemon.do("POST", "/1.0/instances", {"name": "c1", "source": source})
    daemon.do("POST", "/1.0/profiles", {"name": "web"})
    network = {"name": "utsuwaedit0", "config": {"ipv4.address": "10.77.3.1/24", "ipv6.address": "none"}}
    daemon.do("POST", "/1.0/networks", network)
    daemon.do("POST", "/1.0/images/aliases", {"name": "debian/12 & more", "target": fingerprint})
    identity = make_identity(tmp_path)
    daemon.do("POST", "/1.0/certificates", {"type": "client", "name": "n", "certificate": identity.pem})
    yield {
        "server": Kind("/1.0"),
        "project": Kind("/1.0/projects/default"),
        "profile": Kind("/1.0/profiles/web"),
        "pool": Kind(pool),
        "network": Kind("/1.0/networks/utsuwaedit0"),
        "image": Kind(f"/1.0/images/{fingerprint}", "properties"),
        "instance": Kind("/1.0/instances/c1"),
        "alias": Kind(alias_url, ""),
        "certificate": Kind(f"/1.0/certificates/{identity.fingerprint}", ""),
    }
    daemon.delete_instances()
    for url in ("/1.0/profiles/web", "/1.0/networks/utsuwaedit0", alias_url):
        daemon.do("DELETE", url)
    daemon.do("DELETE", f"/1.0/certificates/{identity.fingerprint}")
    forget = {f"user.n{n}": "" for n in range(AT_ONCE)}
    for url, name in (("/1.0", "config"), ("/1.0/projects/default", "config"), (pool, "config")):
        daemon.do("PATCH", url, {name: forget})
    daemon.do("PATCH", f"/1.0/images/{fingerprint}", {"properties": {"description": "", **forget}})


WITH_MAPS = ("server", "project", "profile", "pool", "network", "image", "instance")


def test_concurrent_patches_are_all_applied(shared_daemon: Daemon, objects: dict[str, Kind]) -> None:
    for name in WITH_MAPS:
        kind = objects[name]

        def patch(number: int, kind: Kind = kind) -> None:
            shared_daemon.do("PATCH", kind.url, {kind.map: {f"user.n{number}": str(number)}})

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(patch, range(AT_ONCE)))
        found = shared_daemon.get(kind.url)[kind.map]
        assert {f"user.n{n}": str(n) for n in range(AT_ONCE)}.items() <= found.items(), name


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("alias", {"description": "a"}, {"target": ""}),
        ("certificate", {"name": "laptop"}, {"type": "client"}),
        ("image", {"public": True}, {"auto_update": True}),
        ("pool", {"description": "a"}, {"config": {"user.n0": "1"}}),
        ("network", {"description": "a"}, {"config": {"user.n0": "1"}}),
        ("profile", {"description": "a"}, {"config": {"user.n0": "1"}}),
        ("instance", {"description": "a"}, {"config": {"user.n0": "1"}}),
    ],
)
def test_concurrent_patches_of_different_fields_are_all_applied(
    shared_daemon: Daemon, objects: dict[str, Kind], name: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    kind = objects[name]
    if name == "alias":
        second = {"target": shared_daemon.get(kind.url)["target"]}
    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda body: shared_daemon.do("PATCH", kind.url, body), (first, second)))
        found = shared_daemon.get(kind.url)
        for field, value in {**first, **second}.items():
            held = found[field]
            assert value.items() <= held.items() if isinstance(value, dict) else held == value, field


def test_of_clients_with_the_same_etag_one_gets_through(
    shared_daemon: Daemon, objects: dict[str, Kind]
) -> None:
    for name, kind in objects.items():
        field = "name" if name == "certificate" else "description"
        etag = shared_daemon.api("GET", kind.url).headers["etag"]

        def patch(number: int, kind: Kind = kind, field: str = field, etag: str = etag) -> int:
            body: dict[str, Any] = {field: f"by {number}"}
            if kind.map == "properties":
                body = {"properties": body}
            elif kind.url == "/1.0":
                body = {"config": {"user.n0": f"by {number}"}}
            return shared_daemon.api("PATCH", kind.url, body, headers={"If-Match": etag}).status

        with ThreadPoolExecutor(AT_ONCE) as pool:
            statuses = sorted(pool.map(patch, range(AT_ONCE)))
        assert statuses == [200] + [412] * (AT_ONCE - 1), name


def test_unknown_keys_cannot_be_unset(shared_daemon: Daemon, objects: dict[str, Kind]) -> None:
    """As that is a known key which is spelled wrongly, and still set."""
    volumes = f"{objects['pool'].url}/volumes/custom"
    shared_daemon.do("POST", volumes, {"name": "data"})
    configs = {**objects, "volume": Kind(f"{volumes}/data")}
    for name in (*(name for name in WITH_MAPS if name != "image"), "volume"):
        url = configs[name].url
        config = shared_daemon.get(url)["config"]
        for method, kept in (("PATCH", {}), ("PUT", config)):
            reply = shared_daemon.api(method, url, {"config": {**kept, "limits.memry": ""}})
            assert reply.status == 400, (name, method)
            assert reply.error.startswith("Unknown configuration key 'limits.memry'"), (name, method)
        shared_daemon.do("PATCH", url, {"config": {"user.none": ""}})
        assert shared_daemon.get(url)["config"] == config, name
    shared_daemon.do("DELETE", f"{volumes}/data")


def test_names_are_escaped_in_urls(shared_daemon: Daemon, objects: dict[str, Kind], alias_url: str) -> None:
    assert alias_url in shared_daemon.get("/1.0/images/aliases")
    reply = shared_daemon.api("POST", alias_url, {"name": "a/b?c=d#e%"})
    assert reply.headers["location"] == "/1.0/images/aliases/a%2Fb%3Fc%3Dd%23e%25"
    assert shared_daemon.get(reply.headers["location"])["name"] == "a/b?c=d#e%"
    shared_daemon.do("POST", reply.headers["location"], {"name": "debian/12 & more"})


def test_of_background_changes_with_the_same_etag_one_gets_through(
    shared_daemon: Daemon, objects: dict[str, Kind]
) -> None:
    """Each is checked when it is requested, and again when its turn comes after another's."""
    url = objects["instance"].url
    found = shared_daemon.api("GET", url)
    headers = {"If-Match": found.headers["etag"]}

    def put(number: int) -> bool:
        body = found.metadata | {"description": f"by {number}", "config": {"user.by": str(number)}}
        reply = shared_daemon.api("PUT", url, body, headers=headers)
        assert reply.status in (202, 412)
        return reply.status == 202 and shared_daemon.wait(reply)["status_code"] == 200

    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = list(pool.map(put, range(AT_ONCE)))
    assert done.count(True) == 1
    now = shared_daemon.get(url)
    assert now["description"] == f"by {now['config']['user.by']}" == f"by {done.index(True)}"
