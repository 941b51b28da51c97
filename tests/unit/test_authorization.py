"""Who may use which route, and see which project."""

from __future__ import annotations

import pytest

from utsuwa.api.routes import all_routes
from utsuwa.core.errors import Forbidden
from utsuwa.security.authorization import Access, Caller, authorize, may_see, tls_caller, unix_caller

ROOT = unix_caller(0, "root")
USER = unix_caller(1000, "alice")
CLIENT = tls_caller(fingerprint="ab", address="10.0.0.1:5", trusted=True)
STRANGER = tls_caller(fingerprint="cd", address="10.0.0.2:5", trusted=False)


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
    held = tls_caller(fingerprint="ab", address="", trusted=True, projects=frozenset({"one"}))
    assert may_see(held, "one")
    assert not may_see(held, "two")
    assert may_see(CLIENT, "two")
    assert not may_see(STRANGER, "default")
    assert not may_see(Caller(trusted=False), "default")


def test_what_strangers_can_reach_is_written_down_here() -> None:
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
    }


def test_what_acts_on_the_daemon_itself_is_for_root() -> None:
    internal = {r.path: r.access for r in all_routes() if r.path.startswith("/internal/")}
    assert internal["/internal/shutdown"] is Access.ROOT
    assert internal["/internal/gc"] is Access.ROOT
    assert Access.PUBLIC not in internal.values()
