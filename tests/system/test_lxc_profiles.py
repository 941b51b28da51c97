"""Profiles and projects with Debian's `lxc` client, and at the wire."""

from __future__ import annotations

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


def test_a_profiles_life_with_the_client(daemon: Daemon) -> None:
    lxc = daemon.lxc
    lxc("profile", "create", "web")
    lxc("profile", "set", "web", "user.a=1", "environment.LANG=C.UTF-8")
    assert lxc("profile", "get", "web", "environment.LANG").stdout == "C.UTF-8\n"
    lxc("profile", "unset", "web", "user.a")
    lxc("profile", "device", "add", "web", "lan", "nic", "nictype=p2p", "name=lan0")
    assert lxc("profile", "device", "list", "web").stdout == "lan\n"
    assert lxc("profile", "device", "get", "web", "lan", "name").stdout == "lan0\n"
    lxc("profile", "copy", "web", "copied")
    lxc("profile", "rename", "copied", "renamed")
    lxc("profile", "device", "remove", "renamed", "lan")
    lxc(
        "profile",
        "edit",
        "renamed",
        input="config: {user.z: '2'}\ndescription: by hand\ndevices: {}\n",
    )
    assert daemon.get("/1.0/profiles/renamed") == {
        "name": "renamed",
        "description": "by hand",
        "config": {"user.z": "2"},
        "devices": {},
        "project": "default",
        "used_by": [],
    }
    assert "renamed" in lxc("profile", "list").stdout
    lxc("profile", "delete", "renamed")
    assert daemon.get("/1.0/profiles") == ["/1.0/profiles/default", "/1.0/profiles/web"]


def test_profiles_on_an_instance(daemon: Daemon) -> None:
    lxc = daemon.lxc
    lxc("profile", "create", "a")
    lxc("profile", "create", "b")
    lxc("profile", "set", "a", "user.who=a")
    lxc("profile", "set", "b", "user.who=b")
    lxc("init", "--empty", "c1")
    lxc("profile", "assign", "c1", "default,b,a")
    assert lxc("config", "get", "-e", "c1", "user.who").stdout == "a\n"
    lxc("profile", "remove", "c1", "a")
    lxc("profile", "add", "c1", "a")
    lxc("profile", "remove", "c1", "a")
    assert lxc("config", "get", "-e", "c1", "user.who").stdout == "b\n"
    assert daemon.get("/1.0/profiles/b")["used_by"] == ["/1.0/instances/c1"]
    refused = lxc("profile", "delete", "b", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: Profile 'b' is currently in use: ")
    unknown = lxc("profile", "assign", "c1", "default,nope", check=False)
    assert unknown.returncode == 1
    assert daemon.get("/1.0/instances/c1")["profiles"] == ["default", "b"]
    root = lxc("profile", "device", "remove", "default", "root", check=False)
    assert "No root device" in root.stderr
    assert "root" in daemon.get("/1.0/profiles/default")["devices"]
    lxc("delete", "c1")
    lxc("profile", "delete", "b")


@pytest.mark.parametrize(
    ("method", "url", "body", "status"),
    [
        ("POST", "/1.0/profiles", {}, 400),
        ("POST", "/1.0/profiles", {"name": "a/b"}, 400),
        ("POST", "/1.0/profiles", {"name": "default"}, 409),
        ("POST", "/1.0/profiles", {"name": "x", "config": {"nothing": "1"}}, 400),
        ("POST", "/1.0/profiles", {"name": "x", "config": {"limits.cpu": 2}}, 400),
        ("POST", "/1.0/profiles", {"name": "x", "config": []}, 400),
        ("POST", "/1.0/profiles", {"name": "x", "devices": {"d": {}}}, 400),
        ("POST", "/1.0/profiles", {"name": "x", "devices": {"d": {"type": "usb"}}}, 501),
        ("POST", "/1.0/profiles?project=nope", {"name": "x"}, 404),
        ("GET", "/1.0/profiles?project=nope", None, 404),
        ("GET", "/1.0/profiles?recursion=3", None, 400),
        ("GET", "/1.0/profiles/nope", None, 404),
        ("PUT", "/1.0/profiles/nope", {}, 404),
        ("PATCH", "/1.0/profiles/nope", {}, 404),
        ("DELETE", "/1.0/profiles/nope", None, 404),
        ("DELETE", "/1.0/profiles/default", None, 403),
        ("POST", "/1.0/profiles/default", {"name": "x"}, 403),
        ("POST", "/1.0/projects", {"name": "a_b"}, 400),
        ("POST", "/1.0/projects", {"name": "x", "config": {"limits.cpu": "many"}}, 400),
        ("POST", "/1.0/projects", {"name": "default"}, 409),
        ("GET", "/1.0/projects/nope", None, 404),
        ("GET", "/1.0/projects/nope/state", None, 404),
        ("PUT", "/1.0/projects/default", {}, 400),
        ("DELETE", "/1.0/projects/default", None, 403),
        ("POST", "/1.0/projects/default", {"name": "x"}, 403),
    ],
)
def test_invalid_requests_are_rejected(
    module_daemon: Daemon, method: str, url: str, body: object, status: int
) -> None:
    before = module_daemon.get("/1.0/profiles?recursion=1"), module_daemon.get("/1.0/projects?recursion=1")
    reply = module_daemon.api(method, url, body)
    assert (reply.status, bool(reply.error)) == (status, True)
    after = module_daemon.get("/1.0/profiles?recursion=1"), module_daemon.get("/1.0/projects?recursion=1")
    assert after == before


@pytest.mark.parametrize("url", ["/1.0/profiles/default", "/1.0/projects/default"])
def test_an_etag_guards_a_change(module_daemon: Daemon, url: str) -> None:
    first = module_daemon.api("GET", url)
    etag = {"If-Match": first.headers["etag"]}
    change = {"description": "changed"}
    assert module_daemon.api("PATCH", url, change, headers=etag).status == 200
    again = module_daemon.api("PUT", url, {**first.metadata, "description": "again"}, headers=etag)
    assert again.status == 412
    assert module_daemon.get(url)["description"] == "changed"
    module_daemon.do("PATCH", url, {"description": first.metadata["description"]})


def test_projects_with_the_client(module_daemon: Daemon) -> None:
    assert "default (current)" in module_daemon.lxc("project", "list").stdout
    shown = module_daemon.lxc("project", "show", "default").stdout
    assert 'features.profiles: "true"' in shown
    assert "CONTAINERS" in module_daemon.lxc("project", "info", "default").stdout.upper()


def test_the_description_of_config_keys(module_daemon: Daemon) -> None:
    groups = module_daemon.get("/1.0/metadata/configuration")["configs"]
    assert {"instance", "server", "project", "devices", "storage_overlay"} <= groups.keys()


def test_a_confirmed_profile_survives_a_crash(bare_daemon: Daemon) -> None:
    bare_daemon.do("POST", "/1.0/profiles", {"name": "kept", "config": {"user.a": "1"}})
    bare_daemon.kill()
    bare_daemon.start()
    assert bare_daemon.get("/1.0/profiles/kept")["config"] == {"user.a": "1"}
