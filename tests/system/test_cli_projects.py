"""Projects with `utsuwa`, on a daemon of the tests."""

from __future__ import annotations

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


def test_projects(module_daemon: Daemon, busybox: str) -> None:
    d = module_daemon

    def utsuwa(*arguments: str, input: bytes | None = None) -> str:
        return utsuwa_client(d, *arguments, input=input).stdout

    created = utsuwa("project", "create", "web", "-c", "features.images=false", "-c", "limits.memory=1GiB")
    assert created == "Project web created\n"
    utsuwa("project", "set", "web", "limits.containers=3", "user.a=1")
    assert utsuwa("project", "get", "web", "limits.containers") == "3\n"
    utsuwa("project", "unset", "web", "user.a")
    utsuwa(
        "project",
        "edit",
        "web",
        input=b"description: mine\nconfig: {features.images: 'false', features.profiles: 'true', "
        b"features.storage.volumes: 'true', limits.memory: 2GiB, limits.containers: '3'}\n",
    )
    shown = d.get("/1.0/projects/web")
    assert (shown["description"], shown["config"]["limits.memory"]) == ("mine", "2GiB")

    utsuwa("project", "switch", "web")
    utsuwa("profile", "device", "add", "default", "root", "disk", "path=/", "pool=default")
    utsuwa("init", busybox, "c1", "-c", "limits.memory=512MiB")
    rows = utsuwa("project", "info", "web", "--format", "csv").splitlines()
    assert "MEMORY,2.00GiB,512.00MiB" in rows
    assert "CONTAINERS,3,1" in rows
    assert "CPU,UNLIMITED,0" in rows
    assert d.get("/1.0/instances?project=web") == ["/1.0/instances/c1?project=web"]
    refused = utsuwa_client(d, "project", "delete", "web", check=False)
    assert (refused.returncode, "'web' is not empty, it has instances c1" in refused.stderr) == (1, True)
    utsuwa("delete", "c1")

    assert utsuwa("project", "rename", "web", "net") == "Project web renamed to net\n"
    assert "net (current)" in utsuwa("project", "list")
    assert utsuwa("project", "delete", "net") == "Project net deleted\n"
    assert "default (current)" in utsuwa("project", "list")


def test_profiles_between_projects(module_daemon: Daemon) -> None:
    d = module_daemon
    utsuwa_client(d, "project", "create", "web")
    utsuwa_client(d, "profile", "copy", "default", "copied", "--target-project", "web")
    copied = d.get("/1.0/profiles/copied?project=web")
    assert copied["devices"] == d.get("/1.0/profiles/default")["devices"]
    utsuwa_client(d, "profile", "delete", "copied", "--project", "web")
    utsuwa_client(d, "project", "delete", "web")


ALLOWED = ("credentials", "headers", "methods", "origin")
ENFORCED = ["hard", "soft"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["project", "show", "d"], ["default"]),
        (["project", "set", "default", "limits.mem"], ["limits.memory="]),
        (["project", "get", "default", "limits.mem"], ["limits.memory"]),
        (["project", "create", "x", "-c", "restricted.containers.n"], ["restricted.containers.nesting="]),
        (["profile", "set", "default", "security.pri"], ["security.privileged="]),
        (["profile", "unset", "default", "security.pri"], ["security.privileged"]),
        (["config", "unset", "c1", "security.pri"], ["security.privileged"]),
        (
            ["config", "set", "core.https_a"],
            ["core.https_address=", *(f"core.https_allowed_{x}=" for x in ALLOWED)],
        ),
        (["config", "unset", "core.proxy_h"], ["core.proxy_http", "core.proxy_https"]),
        (
            ["config", "set", "core.https_address=:1", "core.proxy_h"],
            ["core.proxy_http=", "core.proxy_https="],
        ),
        (["config", "set", "local:", "core.proxy_h"], ["core.proxy_http=", "core.proxy_https="]),
        (["config", "set", "images.auto_update_cached", ""], ["false", "true"]),
        (["config", "get", "images.auto_update_cached", ""], []),
        (["config", "set", "c1", "limits.memory.enforce="], [f"limits.memory.enforce={x}" for x in ENFORCED]),
        (["config", "set", "c1", "limits.memory.enforce", ""], ENFORCED),
        (["config", "set", "c1", "user.x", ""], []),
        (["config", "set", "c1", "user.x=1", "security.nest"], ["security.nesting="]),
        (["launch", "x", "-c", "security.nesting="], ["security.nesting=false", "security.nesting=true"]),
        (["project", "set", "default", "restricted=t"], ["restricted=true"]),
    ],
)
def test_completion(module_daemon: Daemon, words: list[str], found: list[str]) -> None:
    assert utsuwa_client(module_daemon, "__complete", *words).stdout.split() == found
