"""Who may use which route, and see which project."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from utsuwa.api.routes import all_routes, served
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.core.errors import Forbidden
from utsuwa.core.scope import EVERYTHING, Policy, Scope
from utsuwa.core.urls import object_url
from utsuwa.security.authorization import (
    Access,
    Caller,
    authorize,
    require,
    scope_of,
    tls_caller,
    unix_caller,
)

ROOT = unix_caller(0, "root")
USER = unix_caller(1000, "alice")
CLIENT = tls_caller(fingerprint="ab", address="10.0.0.1:5", trusted=True)
STRANGER = tls_caller(fingerprint="cd", address="10.0.0.2:5", trusted=False)
HELD = scope_of(tls_caller(fingerprint="ab", address="", trusted=True, projects=frozenset({"one"})))


@pytest.mark.parametrize(
    ("caller", "access", "allowed"),
    [
        (ROOT, Access.PUBLIC, True),
        (ROOT, Access.TRUSTED, True),
        (ROOT, Access.ROOT, True),
        (USER, Access.TRUSTED, True),
        (USER, Access.ROOT, False),
        (CLIENT, Access.PUBLIC, True),
        (CLIENT, Access.TRUSTED, True),
        (CLIENT, Access.ROOT, False),
        (STRANGER, Access.PUBLIC, True),
        (STRANGER, Access.TRUSTED, False),
        (STRANGER, Access.ROOT, False),
        (Caller(trusted=False, root=True), Access.ROOT, False),
    ],
)
def test_access(caller: Caller, access: Access, allowed: bool) -> None:
    if allowed:
        authorize(caller, access)
        return
    with pytest.raises(Forbidden, match=r"\Anot authorized\Z"):
        authorize(caller, access)


def test_a_stranger_keeps_address_and_fingerprint_but_has_no_name() -> None:
    assert (STRANGER.protocol, STRANGER.username) == ("", "")
    assert (STRANGER.fingerprint, STRANGER.address) == ("cd", "10.0.0.2:5")
    assert (CLIENT.protocol, CLIENT.username) == ("tls", "ab")
    assert (USER.protocol, USER.username, USER.address) == ("unix", "alice", "@")


def test_projects() -> None:
    assert HELD.sees("one")
    assert not HELD.sees("two")
    assert not HELD.sees(""), "what is in no project is the server's own"
    assert scope_of(CLIENT).sees("two")
    assert scope_of(CLIENT).sees("")
    for stranger in (STRANGER, Caller(trusted=False)):
        assert not scope_of(stranger).sees("default")
        assert scope_of(stranger).restricted


def test_used_by_lists_name_visible_objects_only() -> None:
    urls = [object_url("instances", "c/1", project="one"), object_url("instances", "c2", project="a b")]
    urls.append(object_url("profiles", "default"))
    assert HELD.visible(urls) == urls[:1]
    assert Scope(frozenset({"a b", "default"})).visible(urls) == urls[1:]
    assert EVERYTHING.visible(urls) == urls


def test_the_policy_follows_from_caller_and_server() -> None:
    assert HELD.policy == Policy(restricted=True)
    assert scope_of(CLIENT).policy == scope_of(ROOT).policy == Policy()
    assert scope_of(ROOT, unprivileged_only=True).policy == Policy(unprivileged_only=True)


@pytest.mark.parametrize(
    ("entity", "entitlement", "project", "allowed"),
    [
        (Entity.INSTANCE, Entitlement.CAN_VIEW, "one", True),
        (Entity.INSTANCE, Entitlement.CAN_EXEC, "one", True),
        (Entity.INSTANCE, Entitlement.CAN_VIEW, None, True),
        (Entity.INSTANCE, Entitlement.CAN_VIEW, "two", False),
        (Entity.INSTANCE, Entitlement.CAN_CREATE, "two", False),
        (Entity.PROJECT, Entitlement.CAN_VIEW, "one", True),
        (Entity.PROJECT, Entitlement.CAN_VIEW, "two", False),
        (Entity.PROJECT, Entitlement.CAN_EDIT, "one", False),
        (Entity.SERVER, Entitlement.CAN_VIEW, None, True),
        (Entity.SERVER, Entitlement.CAN_EDIT, None, False),
        (Entity.STORAGE_POOL, Entitlement.CAN_VIEW, None, True),
        (Entity.STORAGE_POOL, Entitlement.CAN_DELETE, None, False),
        (Entity.CERTIFICATE, Entitlement.CAN_CREATE, None, False),
        (Entity.CERTIFICATE, Entitlement.CAN_DELETE, None, False),
        (Entity.CERTIFICATE, Entitlement.CAN_EDIT, None, True),
        (Entity.OPERATION, Entitlement.CAN_UPDATE_STATE, "one", True),
    ],
)
def test_entitlements_of_a_restricted_caller(
    entity: Entity, entitlement: Entitlement, project: str | None, allowed: bool
) -> None:
    require(EVERYTHING, entity, entitlement, project)
    with nullcontext() if allowed else pytest.raises(Forbidden, match=r"\Anot authorized\Z"):
        require(HELD, entity, entitlement, project)


def test_every_route_declares_its_entity() -> None:
    """A route that says nothing is the server's own: callers who are held to some projects cannot use it."""
    kinds = {
        "instances": Entity.INSTANCE,
        "containers": Entity.INSTANCE,
        "images": Entity.IMAGE,
        "profiles": Entity.PROFILE,
        "networks": Entity.NETWORK,
        "storage-pools": Entity.STORAGE_POOL,
        "certificates": Entity.CERTIFICATE,
    }
    for route in served():
        parts = route.path.split("/")
        if len(parts) < 3 or (wanted := kinds.get(parts[2])) is None:
            continue
        if "volumes" in parts:
            wanted = Entity.STORAGE_VOLUME
        assert route.concerns is wanted, route.path
        if route.needs not in (Entitlement.CAN_ACCESS_FILES, Entitlement.CAN_CONNECT_SFTP):
            assert (route.needs is Entitlement.CAN_VIEW) == (route.method == "GET"), route.path


def test_routes_without_authentication_are_listed_here() -> None:
    """Each of these shows strangers less, or asks for a secret; think twice before you add one."""
    assert {f"{r.method} {r.path}" for r in all_routes() if r.access is Access.PUBLIC} == {
        "GET /",
        "GET /1.0",
        "GET /1.0/images",
        "GET /1.0/images/aliases",
        "GET /1.0/images/aliases/{name:path}",
        "GET /1.0/images/{fingerprint}",
        "GET /1.0/images/{fingerprint}/export",
        "GET /1.0/metadata/openapi",
        "GET /1.0/operations/{id}/wait",
        "GET /1.0/operations/{id}/websocket",
        "GET /openapi.json",
        "POST /1.0/certificates",
        # The web page has nothing of the server in it. A session begins with the secret of a token.
        "GET /ui",
        "GET /ui/",
        "GET /ui/{path:path}",
        "POST /1.0/web/session",
        "DELETE /1.0/web/session",
    }


def test_internal_routes_require_root() -> None:
    internal = {r.path: r.access for r in all_routes() if r.path.startswith("/internal/")}
    assert internal["/internal/shutdown"] is Access.ROOT
    assert internal["/internal/gc"] is Access.ROOT
    assert Access.PUBLIC not in internal.values()


def test_what_the_daemon_does_is_not_for_callers_restricted_to_projects() -> None:
    for route in all_routes():
        if route.path.startswith("/internal/debug/"):
            with pytest.raises(Forbidden):
                require(Scope(frozenset({"web"}), Policy(restricted=True)), route.concerns, route.needs, None)
