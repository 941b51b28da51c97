"""A client whose certificate is held to one project finds nothing of another, whichever way it asks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support import tls
from tests.support.api import Reply
from tests.support.daemon import Daemon
from tests.support.tls import HttpsClient, Identity, client_context, free_address, make_identity
from utsuwa.api.http import Route
from utsuwa.api.routes import all_routes
from utsuwa.core.entitlements import Entity
from utsuwa.security.authorization import Access

pytestmark = pytest.mark.root

OWN, FIRST = "other", "default"


@dataclass
class World:
    """A daemon with things in its first project, and a client that is held to the other one."""

    daemon: Daemon
    address: str
    identity: Identity
    client: HttpsClient
    fingerprint: str
    """Of an image of the first project."""
    operation: str
    """The id of an operation of the first project, which goes on."""

    def wait_for_websockets(self) -> tuple[str, list[str]]:
        """The URL of an operation that waits for its websockets, half a minute long, and their secrets."""
        command = {"command": ["cat"], "wait-for-websocket": True}
        reply = self.daemon.api("POST", "/1.0/instances/hidden-one/exec", command)
        return reply.operation, list(reply.metadata["metadata"]["fds"].values())

    def ask(self, method: str, url: str, body: object = None) -> Reply:
        """Send a request as the client, on one connection for the many requests of some tests."""
        return self.client.request(method, url, body)

    @property
    def traces(self) -> list[str]:
        """What tells of something in the first project."""
        names = ["hidden-one", "hidden-profile", "hiddenbr0", "hidden/alias", "hidden%2Falias"]
        return [*names, self.fingerprint, self.operation]


@pytest.fixture(scope="module")
def world(module_daemon: Daemon, busybox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    daemon, address = module_daemon, free_address()
    daemon.do("PATCH", "/1.0", {"config": {"core.https_address": address}})
    daemon.do("POST", "/1.0/projects", {"name": OWN, "config": {"features.networks": "true"}})
    identity = make_identity(tmp_path_factory.mktemp("identity"))
    certificate = {"type": "client", "certificate": identity.pem, "restricted": True, "projects": [OWN]}
    daemon.do("POST", "/1.0/certificates", certificate)

    fingerprint = daemon.get(f"/1.0/images/aliases/{busybox}")["target"]
    daemon.do("POST", "/1.0/images/aliases", {"name": "hidden/alias", "target": fingerprint})
    daemon.do("POST", "/1.0/profiles", {"name": "hidden-profile"})
    network = {"name": "hiddenbr0", "config": {"ipv4.address": "10.77.9.1/24", "ipv6.address": "none"}}
    daemon.do("POST", "/1.0/networks", network)
    instance = {
        "name": "hidden-one",
        "source": {"type": "image", "alias": busybox},
        "profiles": ["default", "hidden-profile"],
        "devices": {"eth0": {"type": "nic", "network": "hiddenbr0"}},
        "start": True,
    }
    daemon.do("POST", "/1.0/instances", instance)
    reply = daemon.api("POST", "/1.0/instances/hidden-one/exec", {"command": ["sleep", "600"]})
    with contextlib.closing(HttpsClient(address, identity)) as client:
        yield World(daemon, address, identity, client, fingerprint, reply.metadata["id"])
    daemon.delete_instances()
    daemon.do("DELETE", "/1.0/profiles/hidden-profile")
    daemon.do("DELETE", "/1.0/networks/hiddenbr0")
    daemon.do("DELETE", f"/1.0/certificates/{identity.fingerprint}")
    daemon.do("POST", "/internal/sql", {"database": "global", "query": "DELETE FROM projects WHERE id > 1"})


def paths(world: World, route: Route, *, real: bool) -> str:
    """The route's path, with the names of things in the first project or with such that nothing has."""
    names = {
        "instances": "hidden-one" if real else "absent-one",
        "containers": "hidden-one" if real else "absent-one",
        "profiles": "hidden-profile" if real else "absent-profile",
        "networks": "hiddenbr0" if real else "absentbr0",
        "images": world.fingerprint if real else "0" * 64,
        "aliases": "hidden%2Falias" if real else "absent%2Falias",
        "operations": world.operation if real else "00000000-0000-4000-8000-000000000000",
        "projects": FIRST if real else "absent",
        "volumes": "container",
        "container": "hidden-one" if real else "absent-one",
        "storage-pools": "default",
    }
    parts: list[str] = []
    for part in route.path.split("/"):
        before = parts[-1] if parts else ""
        parts.append(names.get(before, "x") if part.startswith("{") else part)
    return "/".join(parts)


QUERIES = ("", f"project={FIRST}", f"project={OWN}", "all-projects=true", "project=absent")
LISTENING = ("/1.0/events",)


def test_nothing_of_another_project_is_found_by_reading(world: World) -> None:
    seen = 0
    for route in all_routes():
        if route.method != "GET" or route.path in LISTENING:
            continue
        own = not route.path.count("{")  # where a path has a name, the answer may repeat it
        for query in QUERIES:
            for more in ("", "recursion=1", "recursion=2", "filter=name eq hidden-one"):
                url = f"{paths(world, route, real=False)}?{query}&{more}".replace(" ", "%20")
                reply = world.ask("GET", url)
                assert reply.status != 500, url
                text = reply.body.decode(errors="replace")
                for trace in world.traces[bool("filter" in more) :]:
                    assert trace not in text, f"{url} tells of {trace}"
                seen += own and reply.status == 200
    assert seen > 20
    assert world.daemon.get(f"/1.0/operations/{world.operation}")["status"] == "Running"


def test_existing_objects_are_indistinguishable_from_missing_ones(world: World) -> None:
    """For every method of every route: status and words are those for a name that nothing has."""
    before = state(world)
    for route in all_routes():
        if "{" not in route.path or route.path in LISTENING:
            continue
        for query in QUERIES:
            real, absent = (f"{paths(world, route, real=real)}?{query}" for real in (True, False))
            if real == absent:  # a pool, which belongs to the server
                changes = route.method != "GET" and route.concerns is Entity.STORAGE_POOL
                assert not changes or world.ask(route.method, real, {}).status == 403, real
                continue
            body = {"name": "renamed"} if route.method != "GET" else None
            found, expected = world.ask(route.method, real, body), world.ask(route.method, absent, body)
            where = f"{route.method} {real}"
            assert found.status == expected.status, where
            assert neutral(world, found) == neutral(world, expected), where
            if route.access is not Access.PUBLIC and query != f"project={OWN}":
                assert found.status >= 400, where
    assert state(world) == before
    assert world.daemon.get(f"/1.0/operations/{world.operation}")["status"] == "Running"


def neutral(world: World, reply: Reply) -> str:
    """The answer without the names that were asked for."""
    text = reply.body.decode(errors="replace")
    pairs = (
        ("hidden", "absent"),
        (world.fingerprint, "0" * 64),
        (world.fingerprint[:12], "0" * 12),
        (world.operation, "00000000-0000-4000-8000-000000000000"),
        (f"/{FIRST}", "/absent"),
        (f"'{FIRST}'", "'absent'"),
    )
    for real, absent in pairs:
        text = text.replace(real, absent)
    return text


def state(world: World) -> list[Any]:
    get = world.daemon.get
    instance = get("/1.0/instances/hidden-one")
    return [
        instance["config"],
        instance["devices"],
        instance["status"],
        get("/1.0/profiles/hidden-profile"),
        get("/1.0/networks/hiddenbr0")["config"],
        get("/1.0/images/aliases/hidden%2Falias"),
        get(f"/1.0/images/{world.fingerprint}")["public"],
        get("/1.0/storage-pools/default"),
        get("/1.0")["config"],
    ]


def test_its_own_project_is_at_its_disposal(world: World) -> None:
    created = world.ask("POST", f"/1.0/profiles?project={OWN}", {"name": "mine"})
    assert created.status == 201
    assert created.headers["location"] == f"/1.0/profiles/mine?project={OWN}"
    url = f"/1.0/profiles/mine?project={OWN}"
    assert world.ask("PATCH", url, {"description": "x"}).status == 200
    assert world.ask("GET", "/1.0/projects").metadata == [f"/1.0/projects/{OWN}"]
    assert [p["name"] for p in world.ask("GET", "/1.0/projects?recursion=1").metadata] == [OWN]
    assert world.ask("DELETE", url).status == 200
    for method, path in (("PUT", f"/1.0/projects/{OWN}"), ("POST", "/1.0/projects"), ("PATCH", "/1.0")):
        assert world.ask(method, path, {"config": {}}).status == 403


def test_objects_inherited_from_the_default_project_are_read_only(world: World) -> None:
    def feature(value: str) -> None:
        world.daemon.do("PATCH", f"/1.0/projects/{OWN}", {"config": {"features.profiles": value}})

    url = f"/1.0/profiles/hidden-profile?project={OWN}"
    before = world.daemon.get("/1.0/profiles/hidden-profile")
    feature("false")
    try:
        shown = world.ask("GET", url)
        assert (shown.status, shown.metadata["used_by"]) == (200, [])
        for method in ("PUT", "PATCH", "POST", "DELETE"):
            assert world.ask(method, url, {"name": "x", "description": "x"}).status == 403, method
        assert world.ask("POST", f"/1.0/profiles?project={OWN}", {"name": "x"}).status == 403
    finally:
        feature("true")
    assert world.daemon.get("/1.0/profiles/hidden-profile") == before
    assert world.ask("GET", url).status == 404


def test_information_about_the_host_is_hidden(world: World) -> None:
    assert world.ask("GET", "/1.0").metadata["config"] == {}
    (pool,) = world.ask("GET", "/1.0/storage-pools?recursion=1").metadata
    assert (pool["config"], pool["used_by"]) == ({}, [])


def test_lines_for_liblxc_that_reach_out_are_refused(world: World) -> None:
    """In an instance, and in a profile that others may give their instances."""
    config = {"raw.lxc": "lxc.hook.pre-start = /bin/true"}
    reply = world.ask("POST", f"/1.0/profiles?project={OWN}", {"name": "trap", "config": config})
    assert (reply.status, "restricted callers" in reply.error) == (400, True)
    root = {"root": {"type": "disk", "path": "/", "pool": "default"}}
    body = {"name": "c1", "source": {"type": "none"}, "profiles": [], "config": config, "devices": root}
    reply = world.ask("POST", f"/1.0/instances?project={OWN}", body)
    assert (reply.status, "restricted callers" in reply.error) == (400, True)


async def test_events_are_those_of_its_own_project(world: World) -> None:
    async def heard(query: str) -> list[str]:
        url = f"https://{world.address}/1.0/events?{query}"
        found = []
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, ssl=client_context(world.identity)) as socket,
        ):
            await asyncio.to_thread(make_noise, world.daemon)
            async for message in socket:
                found.append(message.data)
                if "last-one" in message.data:
                    break
        return found

    for query in (f"project={OWN}", "all-projects=true"):
        events = await asyncio.wait_for(heard(query), 30)
        text = "\n".join(events)
        assert [json.loads(e)["metadata"]["action"] for e in events] == ["profile-created"] * 1
        assert not [trace for trace in world.traces if trace in text]
        await asyncio.to_thread(world.daemon.do, "DELETE", f"/1.0/profiles/last-one?project={OWN}")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await asyncio.wait_for(heard(f"project={FIRST}"), 30)
    assert refused.value.status == 403


def make_noise(daemon: Daemon) -> None:
    daemon.do("PATCH", "/1.0/instances/hidden-one", {"description": "changed"})
    daemon.do("PUT", "/1.0/instances/hidden-one/state", {"action": "freeze"})
    daemon.do("PUT", "/1.0/instances/hidden-one/state", {"action": "unfreeze"})
    daemon.do("PATCH", "/1.0", {"config": {"user.x": "1"}})
    daemon.do("PATCH", "/1.0", {"config": {"user.x": ""}})
    daemon.do("POST", f"/1.0/profiles?project={OWN}", {"name": "last-one"})


def test_a_secret_that_was_handed_on_opens_its_websocket_alone(world: World) -> None:
    url, (secret, *_) = world.wait_for_websockets()
    shown = world.ask("GET", "/1.0/operations?all-projects=true&recursion=1").body.decode()
    assert secret not in shown
    assert world.ask("GET", f"{url}/wait?timeout=0").status == 404
    assert world.ask("GET", f"{url}/wait?timeout=0&secret=x").status == 404
    assert world.ask("GET", f"{url}/wait?timeout=0&secret={secret}").status == 200
    assert world.ask("GET", url).status == 404
    assert world.ask("DELETE", url).status == 404


def test_lists_as_lxc_shows_them(world: World, tmp_path: Path) -> None:
    """What every client asks first does not fail for one that is held to a project."""
    for url in (
        "/1.0",
        f"/1.0/instances?project={OWN}&recursion=2",
        f"/1.0/images?project={OWN}",
    ):
        assert world.ask("GET", url).status == 200, url
    assert world.ask("GET", f"/1.0/instances?project={OWN}&recursion=2").metadata == []
    assert world.ask("GET", "/1.0/instances?all-projects=true").metadata == []


def test_a_certificate_follows_its_project(world: World, tmp_path: Path) -> None:
    """It is held to the project itself, not to whatever gets the project's name later."""
    daemon, identity = world.daemon, make_identity(tmp_path)

    def ask(method: str, url: str, body: object = None) -> Reply:
        return tls.request(world.address, method, url, body, identity=identity)

    daemon.do("POST", "/1.0/projects", {"name": "web", "config": {"limits.networks": "1"}})
    certificate = {"type": "client", "certificate": identity.pem, "restricted": True, "projects": ["web"]}
    daemon.do("POST", "/1.0/certificates", certificate)
    assert ask("GET", "/1.0/projects").metadata == ["/1.0/projects/web"]
    assert ask("GET", "/1.0/projects/web/state").metadata["resources"]["networks"]["Limit"] == 1
    daemon.do("POST", "/1.0/projects/web", {"name": "net"})
    daemon.do("POST", "/1.0/projects", {"name": "web"})
    assert ask("GET", "/1.0/projects").metadata == ["/1.0/projects/net"]
    for url in ("/1.0/projects/web", "/1.0/profiles?project=web"):
        assert ask("GET", url).status == 403
    assert ask("PATCH", "/1.0/projects/net", {"config": {"limits.networks": ""}}).status == 403
    daemon.do("DELETE", "/1.0/projects/net")
    daemon.do("POST", "/1.0/projects", {"name": "net"})
    assert ask("GET", "/1.0/projects").metadata == []
