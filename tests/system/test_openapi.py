"""Real replies of every route, held against the description that the daemon serves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support import images
from tests.support.api import Reply
from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from utsuwa.api import nothing_yet, routes
from utsuwa.api.http import Raw, Route
from utsuwa.api.lxd_paths import PATHS
from utsuwa.api.routing import Router
from utsuwa.api.storage_volumes import ONE as VOLUME

pytestmark = pytest.mark.root

NOT_IN_THIS_VERSION = {
    ("POST", "/1.0/images/{fingerprint}/export"),
    ("POST", "/1.0/images/{fingerprint}/refresh"),
    ("POST", "/1.0/images/{fingerprint}/secret"),
}
"""Served with a reason of their own why not: 501, or 403 for what is never allowed."""

LISTS_OF_NOTHING = {
    ("GET", "/1.0/network-acls"),
    ("GET", "/1.0/network-zones"),
    ("GET", "/1.0/instances/{name}/backups"),
    ("GET", f"{VOLUME}/backups"),
    ("GET", "/1.0/networks/{networkName}/forwards"),
}
NOTHING_TO_SHOW = {(route.method, route.path) for route in nothing_yet.ROUTES} - LISTS_OF_NOTHING
ELSEWHERE = {
    ("GET", "/1.0/events"),  # websockets have tests of their own
    ("GET", "/1.0/operations/{id}/websocket"),
    ("GET", "/1.0/instances/{name}/sftp"),
    ("GET", "/1.0/metrics"),  # no JSON
    ("PUT", "/internal/shutdown"),
    ("DELETE", "/1.0/operations/{id}"),  # nothing in this version lets itself be cancelled
    ("GET", "/ui"),  # the web page, which has tests of its own
    ("GET", "/ui/"),
    ("GET", "/ui/{path:path}"),
    ("POST", "/1.0/web/session"),
    ("DELETE", "/1.0/web/session"),
}


class Checker:
    """Sends requests and judges replies by the description; remembers which routes succeeded."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.router = Router(routes.all_routes())
        self.description = daemon.api("GET", "/openapi.json").json
        self.components = self.description["components"]
        for schema in self.components["schemas"].values():
            if schema.get("type") == "object" and "properties" in schema:
                schema["additionalProperties"] = False  # nothing is sent that is not described
        self.succeeded: set[tuple[str, str]] = set()

    def ask(self, method: str, url: str, body: object = None, **headers: str) -> Reply:
        """Any reply, valid by the description of its route."""
        reply = self.daemon.api(method, url, body, headers=headers)
        route = self._route(method, url)
        described = self.description["paths"][route.path.replace(":path}", "}")][method.lower()]["responses"]
        if reply.status < 300:
            self.succeeded.add((method, route.path))
            assert str(reply.status) in described, f"{method} {url}: {reply.status} is not described"
            if route.reply is Raw:
                return reply
        if method == "HEAD":
            return reply  # without a body
        found = described.get(str(reply.status), described["default"])
        schema = {**found["content"]["application/json"]["schema"], "components": self.components}
        problems = [
            f"{error.json_path}: {error.message[:300]}"
            for error in Draft202012Validator(schema).iter_errors(reply.json)
        ]
        assert not problems, f"{method} {url}: {reply.status} {problems}"
        assert reply.headers["content-type"] == "application/json"
        return reply

    def _route(self, method: str, url: str) -> Route:
        return self.router.find(method, url.partition("?")[0])[0]

    def good(self, method: str, url: str, body: object = None, **headers: str) -> Any:
        """The metadata of a success; of the ended operation where the work goes on in the background."""
        reply = self.ask(method, url, body, **headers)
        assert reply.status < 300, f"{method} {url}: {reply.status} {reply.body!r}"
        if reply.status != 202:
            return reply.body if self._route(method, url).reply is Raw else reply.metadata
        ended = self.ask("GET", f"{reply.operation}/wait").metadata
        assert ended["status"] == "Success", f"{method} {url}: {ended['err']}"
        return ended["metadata"]


@pytest.fixture(scope="module")
def module_daemon() -> Iterator[Daemon]:
    """In a network namespace of its own, for it makes networks."""
    with boxed_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def checker(module_daemon: Daemon) -> Checker:
    return Checker(module_daemon)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A client's certificate in base64, as clients send it."""
    folder = tmp_path_factory.mktemp("client")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-nodes"]
        + ["-days", "10", "-subj", "/CN=tester", "-keyout", folder / "key", "-out", folder / "crt"],
        check=True,
        capture_output=True,
    )
    lines = (folder / "crt").read_text().splitlines()
    return "".join(line for line in lines if not line.startswith("-----"))


@pytest.fixture
def no_config(checker: Checker) -> Iterator[None]:
    yield
    checker.daemon.do("PUT", "/1.0", {"config": {}})


def test_the_server(checker: Checker, no_config: None) -> None:
    assert checker.good("GET", "/") == ["/1.0"]
    server = checker.good("GET", "/1.0")
    assert server["auth"] == "trusted"
    assert server["environment"]["storage"] == "overlay"
    checker.good("PUT", "/1.0", {"config": {"core.proxy_https": "http://proxy:3128"}})
    tag = checker.ask("GET", "/1.0").headers["etag"]
    checker.good("PATCH", "/1.0", {"config": {"user.x": "1"}}, **{"If-Match": tag})
    assert checker.ask("PATCH", "/1.0", {"config": {}}, **{"If-Match": tag}).status == 412
    assert checker.good("GET", "/1.0")["config"] == {"core.proxy_https": "http://proxy:3128", "user.x": "1"}
    assert checker.good("GET", "/1.0/resources")["cpu"]["total"] > 0
    assert checker.good("GET", "/1.0/cluster")["enabled"] is False
    checker.good("GET", "/1.0/metadata/configuration")
    checker.good("GET", "/1.0/metadata/openapi")
    checker.good("GET", "/openapi.json")
    checker.good("GET", "/internal/ready")
    checker.good("GET", "/internal/gc")
    assert checker.good("GET", "/internal/debug/tasks")
    assert checker.good("GET", "/internal/debug/threads")
    assert checker.good("GET", "/internal/debug/memory")["resident"] > 0
    checker.good("GET", "/internal/sql?schema=1")
    checker.good("POST", "/internal/sql", {"query": "SELECT 1 AS one; DELETE FROM profiles WHERE id = 0"})
    checker.good("POST", "/internal/testing/warnings", {"type_code": 0, "message": "m"})
    url = checker.good("GET", "/1.0/warnings?filter=last_message%20eq%20m")[0]
    assert checker.good("GET", "/1.0/warnings?recursion=1")
    tag = checker.ask("GET", url).headers["etag"]
    checker.good("PUT", url, {"status": "acknowledged"})
    assert checker.ask("PATCH", url, {"status": "new"}, **{"If-Match": tag}).status == 412
    checker.good("PATCH", url, {"status": "new"})
    assert checker.good("GET", url)["status"] == "new"
    checker.good("DELETE", url)
    for lists in ("network-acls", "network-zones"):
        assert checker.good("GET", f"/1.0/{lists}") == []
        assert checker.good("GET", f"/1.0/{lists}?recursion=1") == []


def test_certificates(checker: Checker, certificate: str) -> None:
    url = checker.ask("POST", "/1.0/certificates", {"type": "client", "certificate": certificate})
    (listed,) = checker.good("GET", "/1.0/certificates")
    assert url.headers["location"] == listed
    (shown,) = checker.good("GET", "/1.0/certificates?recursion=1")
    assert checker.good("GET", listed) == shown
    checker.good("PUT", listed, {"name": "one", "type": "client"})
    checker.good("PATCH", listed, {"name": "two"})
    checker.good("DELETE", listed)
    assert checker.good("GET", "/1.0/certificates") == []


def test_projects_and_profiles(checker: Checker) -> None:
    assert checker.good("GET", "/1.0/projects") == ["/1.0/projects/default"]
    (project,) = checker.good("GET", "/1.0/projects?recursion=1")
    assert checker.good("GET", "/1.0/projects/default") == project
    checker.good("GET", "/1.0/projects/default/state")
    checker.good("POST", "/1.0/projects", {"name": "one", "config": {"limits.cpu": "2"}})
    checker.good("PUT", "/1.0/projects/one", {"description": "new", "config": {"features.images": "true"}})
    checker.good("PATCH", "/1.0/projects/one", {"config": {"user.a": "1"}})
    checker.good("POST", "/1.0/projects/one", {"name": "two"})
    checker.good("DELETE", "/1.0/projects/two")
    checker.good("POST", "/1.0/profiles", {"name": "p", "config": {"user.a": "1"}, "devices": None})
    checker.good("GET", "/1.0/profiles")
    checker.good("GET", "/1.0/profiles?recursion=1")
    checker.good("PUT", "/1.0/profiles/p", {"description": "new", "config": {}, "devices": {}})
    checker.good("PATCH", "/1.0/profiles/p", {"config": {"user.b": "2"}})
    assert checker.good("GET", "/1.0/profiles/p")["config"] == {"user.b": "2"}
    checker.good("POST", "/1.0/profiles/p", {"name": "q"})
    checker.good("DELETE", "/1.0/profiles/q")


def test_networks(checker: Checker, busybox: str) -> None:
    checker.good("POST", "/1.0/networks", {"name": "net0"})
    assert "/1.0/networks/net0" in checker.good("GET", "/1.0/networks")
    kinds = {n["name"]: n["managed"] for n in checker.good("GET", "/1.0/networks?recursion=1")}
    assert kinds == {"lo": False, "net0": True}
    tag = checker.ask("GET", "/1.0/networks/net0").headers["etag"]
    shown = checker.good("GET", "/1.0/networks/net0")
    checker.good("PUT", "/1.0/networks/net0", {**shown, "description": "x"}, **{"If-Match": tag})
    assert checker.ask("PUT", "/1.0/networks/net0", shown, **{"If-Match": tag}).status == 412
    checker.good("PATCH", "/1.0/networks/net0", {"config": {"user.x": "1"}})
    checker.good("GET", "/1.0/networks/lo/state")
    assert checker.good("GET", "/1.0/networks/net0/state")["type"] == "broadcast"
    nic = {"type": "nic", "network": "net0"}
    source = {"type": "image", "alias": busybox}
    checker.good("POST", "/1.0/instances", {"name": "n", "source": source, "devices": {"eth0": nic}})
    leases = checker.good("GET", "/1.0/networks/net0/leases")
    assert {lease["type"] for lease in leases} == {"gateway", "dynamic"}
    assert checker.ask("DELETE", "/1.0/networks/net0").status == 400
    checker.good("DELETE", "/1.0/instances/n")
    checker.good("POST", "/1.0/networks/net0", {"name": "net1"})
    checker.good("DELETE", "/1.0/networks/net1")


def test_storage(checker: Checker, busybox: str) -> None:
    checker.good("POST", "/1.0/storage-pools", {"name": "more", "driver": "dir"})
    checker.good("GET", "/1.0/storage-pools")
    checker.good("GET", "/1.0/storage-pools?recursion=1")
    checker.good("PUT", "/1.0/storage-pools/more", checker.good("GET", "/1.0/storage-pools/more"))
    checker.good("PATCH", "/1.0/storage-pools/more", {"description": "one more"})
    checker.good("DELETE", "/1.0/storage-pools/more")
    assert checker.good("GET", "/1.0/storage-pools/default/resources")["space"]["total"] > 0
    checker.good("POST", "/1.0/instances", {"name": "v", "source": {"type": "image", "alias": busybox}})
    base = "/1.0/storage-pools/default/volumes"
    for url in (base, f"{base}?recursion=1", f"{base}/container", f"{base}/container?recursion=1"):
        assert checker.good("GET", url)
    checker.good("GET", f"{base}/container/v")
    checker.good("GET", f"{base}/container/v/state")
    tag = checker.ask("GET", f"{base}/container/v").headers["etag"]
    checker.good("PUT", f"{base}/container/v", {"description": "x", "config": {"user.a": "1"}})
    assert checker.ask("PATCH", f"{base}/container/v", {}, **{"If-Match": tag}).status == 412
    checker.good("PATCH", f"{base}/container/v", {"config": {"user.b": "2"}})
    checker.good("POST", "/1.0/instances/v/snapshots", {"name": "s"})
    assert checker.good("GET", f"{base}/container/v/snapshots") == [f"{base}/container/v/snapshots/s"]
    (snapshot,) = checker.good("GET", f"{base}/container/v/snapshots?recursion=1")
    assert snapshot["config"] == {"user.a": "1", "user.b": "2"}
    assert checker.good("GET", f"{base}/container/v/snapshots/s") == {
        **snapshot,
        "name": "s",
        "expires_at": "0001-01-01T00:00:00Z",
    }
    checker.good("DELETE", "/1.0/instances/v")


def test_custom_volumes(checker: Checker) -> None:
    base = "/1.0/storage-pools/default/volumes"
    url = f"{base}/custom/v1"
    checker.good("POST", base, {"name": "v1", "type": "custom"})
    checker.good("POST", f"{base}/custom", {"name": "v2", "source": {"type": "copy", "name": "v1"}})
    assert checker.good("GET", f"{base}?recursion=1&filter=type+eq+custom")
    assert checker.good("GET", f"{url}/state")["usage"]["total"] == 0
    checker.good("PUT", url, checker.good("GET", url))
    checker.good("POST", f"{url}/snapshots", {"name": "s"})
    snapshot = f"{url}/snapshots/s"
    checker.good("PUT", snapshot, checker.good("GET", snapshot))
    checker.good("PATCH", snapshot, {"description": "x"})
    checker.good("PUT", url, {"restore": "s"})
    checker.good("POST", snapshot, {"name": "t"})
    checker.good("DELETE", f"{url}/snapshots/t")
    checker.good("POST", url, {"name": "v3"})
    checker.good("DELETE", f"{base}/custom/v3")
    checker.good("DELETE", f"{base}/custom/v2")


def test_images(checker: Checker, tmp_path: Path) -> None:
    image = images.build_busybox(tmp_path, {"os": "Testos"})
    assert image.unified is not None
    body = image.unified.read_bytes()
    made = checker.good("POST", "/1.0/images", body, **{"Content-Type": "application/octet-stream"})
    url = f"/1.0/images/{made['fingerprint']}"
    checker.good("GET", "/1.0/images")
    checker.good("GET", "/1.0/images?recursion=1")
    assert url in checker.good("GET", "/1.0/images?filter=properties.os+eq+Testos")
    checker.good("PUT", url, checker.good("GET", url))
    checker.good("PATCH", url, {"properties": {"os": "Other"}})
    assert checker.good("GET", f"{url}/export") == body
    aliases = "/1.0/images/aliases"
    checker.good("POST", aliases, {"name": "a/b", "target": made["fingerprint"]})
    checker.good("GET", aliases)
    checker.good("GET", f"{aliases}?recursion=1")
    checker.good("PUT", f"{aliases}/a%2Fb", checker.good("GET", f"{aliases}/a/b"))
    checker.good("PATCH", f"{aliases}/a%2Fb", {"description": "x"})
    checker.good("POST", f"{aliases}/a%2Fb", {"name": "c"})
    checker.good("DELETE", f"{aliases}/c")
    checker.good("DELETE", url)


def url_name(url: str) -> str:
    """The last segment."""
    return url.partition("?")[0].rpartition("/")[2]


@pytest.mark.parametrize("kind", ["instances", "containers"])
def test_instances(checker: Checker, busybox: str, kind: str) -> None:
    lists = f"/1.0/{kind}"
    checker.good("POST", lists, {"name": "c1", "source": {"type": "image", "alias": busybox}})
    one = f"{lists}/c1"
    checker.good("PUT", f"{one}/state", {"action": "start", "timeout": 30})
    for recursion in (0, 1, 2):
        assert len(checker.good("GET", f"{lists}?recursion={recursion}")) == 1
    assert checker.good("GET", lists) == [one]
    shown = checker.good("GET", one)
    assert shown["status"] == "Running"
    checker.good("GET", f"{one}?recursion=1")
    assert checker.good("GET", f"{one}/state")["processes"] > 0
    assert not checker.good("GET", f"{one}/checkpoint")["possible"]
    checker.good("PATCH", one, {"config": {"user.x": "1"}})
    checker.good("PUT", one, {**checker.good("GET", one), "description": "changed"})

    command = {"command": ["echo", "hello"], "record-output": True, "wait-for-websocket": False}
    assert checker.good("POST", f"{one}/exec", command)["return"] == 0
    folder = f"{one}/logs/exec-output"
    outputs = [f"{folder}/{url_name(url)}" for url in checker.good("GET", folder)]
    assert sorted(checker.good("GET", o) for o in outputs) == [b"", b"hello\n"]
    for output in outputs:
        checker.good("DELETE", output)
    logs = [f"{one}/logs/{url_name(u)}" for u in checker.good("GET", f"{one}/logs")]
    assert logs
    for log in logs:
        checker.good("GET", log)
    checker.good("GET", f"{one}/console")
    checker.good("DELETE", f"{one}/console")
    assert checker.ask("POST", f"{one}/console", {"width": 80, "height": 24}).status == 202

    checker.good("POST", f"{one}/snapshots", {"name": "s", "expires_at": None})
    assert checker.good("GET", f"{one}/snapshots") == [f"{one}/snapshots/s"]
    (snapshot,) = checker.good("GET", f"{one}/snapshots?recursion=1")
    assert checker.good("GET", f"{one}/snapshots/s") == snapshot
    checker.good("PUT", f"{one}/snapshots/s", {"expires_at": "2099-01-01T00:00:00Z"})
    checker.good("PATCH", f"{one}/snapshots/s", {"description": "one"})
    checker.good("POST", f"{one}/snapshots/s", {"name": "t"})
    assert checker.good("GET", f"{one}?recursion=1")["snapshots"][0]["description"] == "one"
    checker.good("DELETE", f"{one}/snapshots/t")

    metadata = checker.good("GET", f"{one}/metadata")
    checker.good("PUT", f"{one}/metadata", metadata)
    checker.good("PATCH", f"{one}/metadata", {"properties": {"os": "BB"}})
    template = f"{one}/metadata/templates?path=my.tpl"
    checker.good("POST", template, b"hello")
    assert checker.good("GET", template) == b"hello"
    checker.good("DELETE", template)

    file = f"{one}/files?path=/tmp/file"
    checker.good("POST", file, b"hello")
    checker.good("HEAD", file)
    assert checker.good("GET", file) == b"hello"
    checker.good("DELETE", file)

    checker.good("PUT", lists, {"state": {"action": "stop", "force": True, "timeout": 30}})
    (checker.daemon.dir / "logs" / "c1" / "lxc.log.old").write_text("long ago\n")
    checker.good("DELETE", f"{one}/logs/lxc.log.old")
    checker.good("POST", f"{one}/rebuild", {"source": {"type": "image", "alias": busybox}})
    checker.good("POST", one, {"name": "c2"})
    checker.good("DELETE", f"{lists}/c2")


def test_operations(checker: Checker, busybox: str) -> None:
    checker.good("POST", "/1.0/instances", {"name": "o", "source": {"type": "image", "alias": busybox}})
    checker.good("PUT", "/1.0/instances/o/state", {"action": "start", "timeout": 30})
    exec_body = {"command": ["sleep", "100"], "wait-for-websocket": True}
    url = checker.ask("POST", "/1.0/instances/o/exec", exec_body).operation
    checker.good("GET", "/1.0/operations")
    checker.good("GET", "/1.0/operations?recursion=1")
    assert checker.good("GET", url)["status"] == "Running"
    checker.ask("DELETE", url)
    checker.good("PUT", "/1.0/instances/o/state", {"action": "stop", "force": True, "timeout": 30})
    checker.good("DELETE", "/1.0/instances/o")


def test_lists_of_what_is_not_supported_yet_are_empty(checker: Checker) -> None:
    """Clients look at them by themselves; creating one, and things that it would belong to, are refused."""
    checker.good("POST", "/1.0/instances", {"name": "n", "source": {"type": "none"}})
    checker.good("POST", "/1.0/networks", {"name": "utn0", "config": {"ipv4.address": "none"}})
    checker.good("POST", "/1.0/storage-pools/default/volumes/custom", {"name": "n"})
    for of, many, reason in (
        ("/1.0/instances/n", "backups", "Backups are not supported yet"),
        ("/1.0/containers/n", "backups", "Backups are not supported yet"),
        ("/1.0/storage-pools/default/volumes/custom/n", "backups", "Backups are not supported yet"),
        ("/1.0/networks/utn0", "forwards", "Network forwards are not supported yet"),
        ("/1.0", "network-acls", "Network ACLs are not supported yet"),
        ("/1.0", "network-zones", "Network zones are not supported yet"),
    ):
        for query in ("", "?recursion=1"):
            assert checker.good("GET", f"{of}/{many}{query}") == []
        for method in ("GET", "DELETE"):
            reply = checker.ask(method, f"{of}/{many}/x")
            assert (reply.status, "not found" in reply.error) == (404, True)
        created = checker.daemon.api("POST", f"{of}/{many}", {"name": "x"})
        assert (created.status, created.error.startswith(reason)) == (501, True), created.body
        if of != "/1.0":
            assert checker.ask("GET", f"{of.rpartition('/')[0]}/none/{many}").status == 404
    assert checker.ask("GET", "/1.0/storage-pools/default/volumes/container/n/backups").status == 400
    for url, reason in (
        ("/1.0/networks/utn0/peers", "cannot have peers"),
        ("/1.0/cluster/members", "not clustered"),
        ("/1.0/cluster/groups/x", "not clustered"),
    ):
        reply = checker.ask("GET", url)
        assert (reply.status, reason in reply.error) == (400, True)
    checker.good("DELETE", "/1.0/instances/n")
    checker.good("DELETE", "/1.0/networks/utn0")
    checker.good("DELETE", "/1.0/storage-pools/default/volumes/custom/n")


def test_tokens_of_the_web_page(checker: Checker) -> None:
    token = checker.good("POST", "/1.0/web/tokens", {})
    assert checker.good("GET", f"/1.0/web/tokens/{token['id']}") == {"id": token["id"]}


def test_every_route_fails_as_described(checker: Checker) -> None:
    """Names that do not exist and bodies that say nothing: an error of the described shape, never a 500."""
    for route in routes.served():
        parts = [("nope" if s.startswith("{") else s) for s in route.path.split("/")]
        if (route.method, route.path) in ELSEWHERE or len(parts) == len([p for p in parts if p != "nope"]):
            continue
        body = None if route.method in ("GET", "DELETE") else b"{}"
        reply = checker.ask(route.method, "/".join(parts), body)
        assert 400 <= reply.status < 500 or reply.status == 501, f"{route}: {reply.status} {reply.body!r}"


def test_every_documented_get_answers(checker: Checker) -> None:
    """200, 404, 501, or 400 for what needs a cluster or another type of network, whatever the path."""
    for documented, methods in PATHS:
        path = documented.replace("{type}", "container").replace("{name}", "default")
        if (
            "GET" not in methods.split()
            or path in ("/1.0/events", "/1.0/metrics")
            or path.endswith("/websocket")
        ):
            continue
        concrete = "/".join(
            "container"
            if s == "{type}"
            else "default"
            if s == "{name}"
            else "abc"
            if s.startswith("{")
            else s
            for s in path.split("/")
        )
        reply = checker.daemon.api("GET", concrete)
        assert reply.status in (200, 400, 404, 501), f"GET {concrete}: {reply.status} {reply.body!r}"
        assert "error" in json.loads(reply.body) or reply.status == 200


def test_every_route_has_succeeded_once(checker: Checker) -> None:
    """Runs last: whoever adds a route also shows its real reply to the description."""
    known = NOT_IN_THIS_VERSION | NOTHING_TO_SHOW | ELSEWHERE
    known |= {(method, path.replace("/instances", "/containers")) for method, path in known}
    assert {(r.method, r.path) for r in routes.served()} - known - checker.succeeded == set()
