"""The tree of routes, and that the table covers what LXD documents."""

from __future__ import annotations

import pytest

from utsuwa.api import routes
from utsuwa.api.http import Empty, Request, Result, Route
from utsuwa.api.lxd_paths import PATHS
from utsuwa.api.routing import Router
from utsuwa.core.errors import InvalidRequest, MethodNotAllowed, NotFound


async def handler(request: Request) -> Result:
    return Empty()


def table(*entries: str) -> Router[Route]:
    pairs = [entry.split() for entry in entries]
    return Router(Route(method, path, handler, "x") for method, path in pairs)


@pytest.fixture(scope="module")
def router() -> Router[Route]:
    return table(
        "GET /",
        "GET /1.0",
        "GET /1.0/images/{fingerprint}",
        "PUT /1.0/images/{fingerprint}",
        "GET /1.0/images/{fingerprint}/export",
        "GET /1.0/images/aliases",
        "GET /1.0/images/aliases/{name:path}",
        "GET /1.0/instances/{name}/logs/{filename}",
    )


@pytest.mark.parametrize(
    ("path", "pattern", "params"),
    [
        ("/", "/", {}),
        ("/1.0", "/1.0", {}),
        ("/1.0/images/abc", "/1.0/images/{fingerprint}", {"fingerprint": "abc"}),
        ("/1.0/images/aliases", "/1.0/images/aliases", {}),
        ("/1.0/images/aliases/debian/12", "/1.0/images/aliases/{name:path}", {"name": "debian/12"}),
        ("/1.0/images/aliases/debian%2F12", "/1.0/images/aliases/{name:path}", {"name": "debian/12"}),
        ("/1.0/images/abc/export", "/1.0/images/{fingerprint}/export", {"fingerprint": "abc"}),
        (
            "/1.0/instances/w%20b/logs/a%2Fb%C3%A9",
            "/1.0/instances/{name}/logs/{filename}",
            {"name": "w b", "filename": "a/bé"},
        ),
    ],
)
def test_paths_find_their_route(
    router: Router[Route], path: str, pattern: str, params: dict[str, str]
) -> None:
    route, found = router.find("GET", path)
    assert (route.path, found) == (pattern, params)


@pytest.mark.parametrize(
    "path",
    ["", "//", "/1.0/", "/1.0//", "/2.0", "/1.0/images/", "/1.0/images//export", "/1.0/images/a/b", "/1.0/x"],
)
def test_unknown_paths_are_not_found(router: Router[Route], path: str) -> None:
    with pytest.raises(NotFound):
        router.find("GET", path)


def test_an_error_for_a_wrong_method_lists_the_allowed_ones(router: Router[Route]) -> None:
    with pytest.raises(MethodNotAllowed, match="GET, PUT"):
        router.find("DELETE", "/1.0/images/x")


def test_bytes_that_are_no_text_are_refused(router: Router[Route]) -> None:
    with pytest.raises(InvalidRequest, match="UTF-8"):
        router.find("GET", "/1.0/images/%ff")


def test_two_routes_for_one_thing_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two routes for GET"):
        table("GET /1.0/a/{x}", "GET /1.0/a/{y}")


def test_everything_that_lxd_documents_has_a_route() -> None:
    router = Router(routes.all_routes())
    for path, methods in PATHS:
        concrete = "/".join("x" if s.startswith("{") else s for s in path.split("/"))
        for method in methods.split():
            router.find(method, concrete)


def test_served_routes_are_not_listed_as_unsupported() -> None:
    served = {(r.method, r.path) for r in routes.served()}
    refused = {(r.method, r.path) for r in routes.not_served(routes.served())}
    assert ("GET", "/1.0") in served
    assert ("POST", "/1.0/cluster/members") in refused
    assert not served & refused


def test_instances_are_served_as_containers_too() -> None:
    served = routes.served()
    by_path = {(r.method, r.path): r for r in served}
    instances = [r for r in served if r.path.startswith("/1.0/instances")]
    assert instances
    for route in instances:
        twin = by_path[route.method, route.path.replace("/1.0/instances", "/1.0/containers", 1)]
        assert twin.containers_api
        assert not route.containers_api
        assert (twin.handler, twin.access) == (route.handler, route.access)
