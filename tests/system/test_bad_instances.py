"""Requests about instances that cannot be granted: each is told why, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.api import Reply
from tests.support.daemon import Daemon
from tests.support.traces import nothing_changes

pytestmark = pytest.mark.root

IMAGE = {"type": "image", "alias": "busybox"}
ROOT = {"type": "disk", "path": "/", "pool": "default"}
NIC = {"type": "nic", "nictype": "p2p"}


@pytest.fixture
def d(module_daemon: Daemon, busybox: str) -> Iterator[Daemon]:
    """The module's daemon: a running container `up` and a stopped one `down`, which tests do not change."""
    if not module_daemon.get("/1.0/instances"):
        for name in ("up", "down"):
            module_daemon.lxc("init", busybox, name)
        module_daemon.lxc("start", "up")
    with nothing_changes(module_daemon):
        yield module_daemon


def refused(reply: Reply, status: int, *words: str) -> None:
    """The reply is an error with this status, in one sentence that has these words."""
    assert reply.status == status, f"{reply.status} {reply.body!r}"
    assert reply.json["type"] == "error"
    assert reply.json["error_code"] == status
    check_sentence(reply.error, *words)


def check_sentence(text: str, *words: str) -> None:
    assert len(text) > 10, text
    assert "Traceback" not in text
    assert "Error(" not in text
    for word in words:
        assert word.lower() in text.lower(), f"{word!r} is not in {text!r}"


def failed(daemon: Daemon, reply: Reply, *words: str) -> None:
    """The reply is an operation that ends as a failure, for a reason with these words."""
    assert reply.status == 202, f"{reply.status} {reply.body!r}"
    ended = daemon.wait(reply)
    assert (ended["status"], ended["status_code"]) == ("Failure", 400)
    check_sentence(ended["err"], *words)


# ---- creating


NAMES: dict[str, str] = {
    "longer than 63": "a" * 64,
    "a leading dash": "-web",
    "a trailing dash": "web-",
    "a leading digit": "1web",
    "digits only": "123",
    "an underscore": "we_b",
    "a dot": "web.example",
    "a slash": "web/1",
    "dots": "..",
    "a space": "we b",
    "a newline": "web\n",
    "NUL": "web\0",
    "an accent": "wéb",
    "other digits": "web\u0661",
}


@pytest.mark.parametrize("what", NAMES)
def test_invalid_names(d: Daemon, what: str) -> None:
    name = NAMES[what]
    refused(d.api("POST", "/1.0/instances", {"name": name, "source": IMAGE}), 400, "name")
    refused(d.api("POST", "/1.0/instances/down", {"name": name}), 400, "name")


CREATIONS: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "no source": ({}, 400, ("source",)),
    "unknown source": ({"source": {"type": "magic"}}, 400, ("magic", "image")),
    "no image named": ({"source": {"type": "image"}}, 400, ("alias", "fingerprint")),
    "unknown alias": ({"source": {"type": "image", "alias": "none"}}, 404, ("none", "not found")),
    "unknown fingerprint": (
        {"source": {"type": "image", "fingerprint": "0123"}},
        404,
        ("image", "not found"),
    ),
    "no fingerprint": ({"source": {"type": "image", "fingerprint": "../x"}}, 404, ("fingerprint",)),
    "unknown properties": ({"source": {"type": "image", "properties": {"os": "none"}}}, 404, ("properties",)),
    "name taken": ({"name": "up"}, 409, ("up", "already")),
    "unknown key": ({"config": {"no.such": "key"}}, 400, ("no.such",)),
    "volatile key of the daemon": ({"config": {"volatile.no.such.key": "x"}}, 400, ("volatile.no.such.key",)),
    "no bool": ({"config": {"boot.autostart": "perhaps"}}, 400, ("boot.autostart", "perhaps")),
    "no number": ({"config": {"boot.autostart.priority": "1.5"}}, 400, ("boot.autostart.priority",)),
    "negative": ({"config": {"limits.processes": "-1"}}, 400, ("limits.processes",)),
    "no size": ({"config": {"limits.memory": "much"}}, 400, ("limits.memory",)),
    "no raw.lxc": ({"config": {"raw.lxc": "no config"}}, 400, ("raw.lxc",)),
    "no key of liblxc": ({"config": {"raw.lxc": "lxc.no.such = 1"}}, 400, ("raw.lxc", "lxc.no.such")),
    "unknown profile": ({"profiles": ["default", "none"]}, 404, ("none", "profile")),
    "profile twice": ({"profiles": ["default", "default"]}, 400, ("profile",)),
    "no root disk": ({"profiles": []}, 400, ("root", "disk", "path=/")),
    "unknown pool": ({"devices": {"root": {**ROOT, "pool": "none"}}}, 404, ("none", "pool")),
    "root without pool": ({"devices": {"root": {"type": "disk", "path": "/"}}}, 400, ("root", "pool")),
    "two roots": ({"devices": {"other": ROOT}}, 400, ("root", "other")),
    "device without type": ({"devices": {"x": {"path": "/mnt"}}}, 400, ("'x'", "type", "required")),
    "device of an unknown type": ({"devices": {"x": {"type": "toaster"}}}, 400, ("'x'", "toaster")),
    "disk without path": ({"devices": {"x": {"type": "disk", "source": "/tmp"}}}, 400, ("'x'", "path")),
    "disk without source": ({"devices": {"x": {"type": "disk", "path": "/mnt"}}}, 400, ("'x'", "source")),
    "nic without a kind": ({"devices": {"x": {"type": "nic"}}}, 400, ("'x'", "nictype")),
    "nic of no kind": ({"devices": {"x": {"type": "nic", "nictype": "no"}}}, 400, ("'x'", "nictype")),
    "nic with a bad MAC": ({"devices": {"x": {**NIC, "hwaddr": "01:02"}}}, 400, ("'x'", "hwaddr", "MAC")),
    "nic with a long name": ({"devices": {"x": {**NIC, "name": "n" * 16}}}, 400, ("'x'", "name", "15")),
    "nic names twice": ({"devices": {"x": {**NIC, "name": "eth0"}}}, 400, ("'x'", "eth0")),
    "nic of later": ({"devices": {"x": {"type": "nic", "nictype": "macvlan"}}}, 501, ("macvlan",)),
    "unknown device key": ({"devices": {"x": {**NIC, "colour": "red"}}}, 400, ("'x'", "colour")),
    "device name": ({"devices": {"../x": NIC}}, 400, ("device name",)),
    "line break in a device": ({"devices": {"x": {**NIC, "name": "a\nb"}}}, 400, ("'x'", "name")),
    "line break in a value": (
        {"config": {"environment.A": "a\nlxc.net = x"}},
        400,
        ("environment.A",),
    ),
    "virtual machine": ({"type": "virtual-machine"}, 400, ("virtual-machine", "containers")),
    "copy": ({"source": {"type": "copy", "source": "missing"}}, 404, ("missing",)),
    "architecture": ({"source": {"type": "none"}, "architecture": "pdp11"}, 400, ("architecture", "pdp11")),
    "id map too large": (
        {"config": {"security.idmap.isolated": "true", "security.idmap.size": "99999999999"}},
        400,
        ("security.idmap.size",),
    ),
}


@pytest.mark.parametrize("what", CREATIONS)
def test_creations_that_cannot_be(d: Daemon, what: str) -> None:
    """None of them takes the name, which the next one has again (lxd#5597, lxd#10639)."""
    body, status, words = CREATIONS[what]
    request = {"name": "new", "source": IMAGE, **body}
    if what == "no source":
        del request["source"]
    refused(d.api("POST", "/1.0/instances", request), status, *words)
    refused(d.api("GET", "/1.0/instances/new"), 404, "not found")


def test_unknown_project(d: Daemon) -> None:
    for url in ("/1.0/instances", "/1.0/images"):
        refused(d.api("GET", f"{url}?project=none"), 404, "project", "none")
    body = {"name": "new", "source": IMAGE}
    refused(d.api("POST", "/1.0/instances?project=none", body), 404, "project", "none")
    refused(d.api("GET", "/1.0/instances?project=a/b"), 400, "project")


@pytest.mark.parametrize("arguments", [("launch", "none", "new"), ("launch", "busybox", "new", "-p", "none")])
def test_client_names_unknown_image_or_profile(d: Daemon, arguments: tuple[str, ...]) -> None:
    ended = d.lxc(*arguments, check=False)
    assert ended.returncode != 0
    assert "none" in ended.stderr


# ---- the body itself


BODIES: dict[str, tuple[bytes, int, tuple[str, ...]]] = {
    "empty": (b"", 400, ("JSON",)),
    "no JSON": (b"{name: new}", 400, ("JSON",)),
    "cut off": (b'{"name": "new"', 400, ("JSON",)),
    "no UTF-8": (b'{"name": "\xff\xfe"}', 400, ("JSON",)),
    "an array": (b"[]", 400, ("object",)),
    "a string": (b'"new"', 400, ("object",)),
    "null": (b"null", 400, ("object",)),
    "a number as name": (b'{"name": 1}', 400, ("name", "str")),
    "a list as config": (b'{"config": []}', 400, ("config", "object")),
    "a number in config": (b'{"config": {"limits.cpu": 2}}', 400, ("config", "str")),
    "a string as devices": (b'{"devices": {"root": "disk"}}', 400, ("devices", "object")),
    "a string as profiles": (b'{"profiles": "default"}', 400, ("profiles", "array")),
    "a string as ephemeral": (b'{"ephemeral": "yes"}', 400, ("ephemeral", "bool")),
    "a list as source": (b'{"source": []}', 400, ("source", "object")),
    "nested 5,000 deep": (b'{"config":' * 5000 + b"{}" + b"}" * 5000, 400, ("deep",)),
    "5,000 arrays, not closed": (b"[" * 5000, 400, ("deep",)),
    "too large": (b'{"description": "' + b"x" * (20 << 20) + b'"}', 413, ("large", "MiB")),
}


ONLY_AT_CREATION = ("a number as name", "a list as source")


@pytest.mark.parametrize(
    ("method", "url", "what"),
    [("POST", "/1.0/instances", what) for what in BODIES]
    + [
        (method, "/1.0/instances/up", what)
        for method in ("PUT", "PATCH")
        for what in BODIES
        if what not in ONLY_AT_CREATION
    ],
)
def test_bodies_that_are_no_request(d: Daemon, method: str, url: str, what: str) -> None:
    body, status, words = BODIES[what]
    refused(d.api(method, url, body, headers={"Content-Type": "application/json"}), status, *words)


@pytest.mark.parametrize("value", ["3", "-1", "yes", "1,2", "0x1"])
def test_an_unknown_recursion(d: Daemon, value: str) -> None:
    for url in ("/1.0/instances", "/1.0/instances/up", "/1.0/images", "/1.0/profiles", "/1.0/storage-pools"):
        refused(d.api("GET", f"{url}?recursion={value}"), 400, "recursion", value)


# ---- changing


CHANGES: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "unknown key": ({"config": {"user.a": "1", "no.such": "key"}}, 400, ("no.such",)),
    "bad value": ({"config": {"user.a": "1", "limits.memory": "much"}}, 400, ("limits.memory",)),
    "bad bool": ({"config": {"user.a": "1", "security.nesting": "maybe"}}, 400, ("security.nesting",)),
    "line break": ({"config": {"environment.A": "a\r\nb"}}, 400, ("environment.A",)),
    "no raw.lxc": ({"config": {"user.a": "1", "raw.lxc": "no config"}}, 400, ("raw.lxc",)),
    "no key of liblxc": ({"config": {"raw.lxc": "lxc.no.such = 1"}}, 400, ("raw.lxc", "lxc.no.such")),
    "no value for liblxc": ({"config": {"raw.lxc": "lxc.pty.max = many"}}, 400, ("raw.lxc", "lxc.pty.max")),
    "profile": ({"config": {"user.a": "1"}, "profiles": ["none"]}, 404, ("none", "profile")),
    "profile twice": ({"profiles": ["default", "default"]}, 400, ("twice",)),
    "no root disk any more": ({"profiles": []}, 400, ("root",)),
    "root without path": ({"devices": {"root": {"type": "disk", "pool": "default"}}}, 400, ("root",)),
    "root on an unknown pool": ({"devices": {"root": {**ROOT, "pool": "none"}}}, 400, ("none", "pool")),
    "device without type": ({"config": {"user.a": "1"}, "devices": {"x": {"a": "b"}}}, 400, ("'x'", "type")),
    "one good, one bad nic": (
        {"devices": {"eth7": {**NIC, "name": "eth7"}, "eth8": {**NIC, "mtu": "huge"}}},
        400,
        ("'eth8'", "mtu"),
    ),
    "a name on the host that is taken": ({"devices": {"eth7": {**NIC, "host_name": "lo"}}}, 400, ("'lo'",)),
    "architecture": ({"architecture": "pdp11"}, 400, ("architecture", "pdp11")),
}


SEEN_WHEN_MADE = "a name on the host that is taken"
"""Only where the container runs: at a stopped one it is seen at the start."""


@pytest.mark.parametrize(
    ("name", "what"), [(n, w) for n in ("up", "down") for w in CHANGES if (n, w) != ("down", SEEN_WHEN_MADE)]
)
def test_changes_that_cannot_be(d: Daemon, name: str, what: str) -> None:
    body, status, words = CHANGES[what]
    url = f"/1.0/instances/{name}"
    interfaces = d.lxc("exec", "up", "--", "ls", "/sys/class/net").stdout
    refused(d.api("PATCH", url, body), status, *words)
    whole = {**d.get(url), **body}
    whole["config"] = {**d.get(url)["config"], **body.get("config", {})}
    reply = d.api("PUT", url, whole)
    if what == SEEN_WHEN_MADE:
        failed(d, reply, *words)
    else:
        refused(reply, status, *words)
    assert "user.a" not in d.get(url)["config"]
    assert d.lxc("exec", "up", "--", "ls", "/sys/class/net").stdout == interfaces


def test_added_interface_is_removed_if_the_next_one_fails(d: Daemon) -> None:
    devices = {"eth7": {**NIC, "name": "eth7"}, "eth8": {**NIC, "name": "eth8", "host_name": "lo"}}
    refused(d.api("PATCH", "/1.0/instances/up", {"devices": devices}), 400, "'lo'", "eth8")
    assert "eth7" not in d.lxc("exec", "up", "--", "ls", "/sys/class/net").stdout


def test_a_profile_that_a_running_container_cannot_follow(d: Daemon) -> None:
    profile = d.get("/1.0/profiles/default")
    devices = {**profile["devices"], "eth7": {**NIC, "host_name": "lo"}}
    refused(d.api("PATCH", "/1.0/profiles/default", {"devices": devices}), 400, "'lo'", "eth7")
    refused(d.api("PUT", "/1.0/profiles/default", {**profile, "devices": {}}), 400, "root")
    assert d.get("/1.0/profiles/default") == profile


def test_an_etag_of_yesterday(d: Daemon) -> None:
    for method in ("PUT", "PATCH"):
        reply = d.api(method, "/1.0/instances/up", {"config": {}}, headers={"If-Match": "0" * 64})
        refused(reply, 412, "changed", "again")


# ---- names and states


def test_missing_instances(d: Daemon) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "GET": {}, "PUT": {}, "PATCH": {}, "POST": {"name": "x"}, "DELETE": {},
    }  # fmt: skip
    for name in ("none", "..", "%2e%2e", "a%2fb", "a%00b"):
        for method, body in bodies.items():
            assert d.api(method, f"/1.0/instances/{name}", body or None).status in (400, 404, 405)
    for method, body in bodies.items():
        reply = d.api(method, "/1.0/instances/none", body if method != "GET" else None)
        refused(reply, 404, "not found")
    refused(d.api("PUT", "/1.0/instances/none/state", {"action": "start"}), 404, "not found")
    refused(d.api("POST", "/1.0/instances/none/exec", {"command": ["true"]}), 404, "not found")


def test_states_that_cannot_be(d: Daemon) -> None:
    refused(d.api("PUT", "/1.0/instances/up/state", {"action": "explode"}), 400, "explode", "start")
    refused(d.api("PUT", "/1.0/instances/up/state", {}), 400, "action")
    refused(d.api("PUT", "/1.0/instances/up/state", {"action": "stop", "timeout": "long"}), 400, "timeout")
    refused(d.api("PUT", "/1.0/instances/up/state", {"action": "stop", "stateful": True}), 503, "CRIU")
    refused(d.api("PUT", "/1.0/instances/up/state", {"action": "restart", "stateful": True}), 400, "not kept")
    failed(d, d.api("PUT", "/1.0/instances/up/state", {"action": "start"}), "up", "already running")
    failed(d, d.api("PUT", "/1.0/instances/down/state", {"action": "stop"}), "down", "already stopped")
    failed(d, d.api("PUT", "/1.0/instances/down/state", {"action": "freeze"}), "down", "stopped")
    failed(d, d.api("PUT", "/1.0/instances/up/state", {"action": "unfreeze"}), "up", "not frozen")
    failed(d, d.api("PUT", "/1.0/instances/down/state", {"action": "unfreeze"}), "down", "not frozen")
    refused(d.api("DELETE", "/1.0/instances/up"), 400, "running", "stop")


def test_renames_that_cannot_be(d: Daemon) -> None:
    refused(d.api("POST", "/1.0/instances/up", {"name": "new"}), 400, "running", "stop")
    refused(d.api("POST", "/1.0/instances/down", {"name": "up"}), 409, "up", "already exists")
    refused(d.api("POST", "/1.0/instances/down", {"name": "down"}), 409, "already")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"command": []}, 400, ("command",)),
        ({"command": "true"}, 400, ("command",)),
        ({"command": ["a\0b"]}, 400, ("command",)),
        ({"command": ["true"], "environment": {"A=B": "c"}}, 400, ("environment",)),
        ({"command": ["true"], "user": -1}, 400, ("user",)),
        ({"command": ["true"], "user": 2**40}, 400, ("user",)),
        ({"command": ["true"], "cwd": "a\0b"}, 400, ("working directory",)),
    ],
)
def test_commands_that_cannot_be(
    d: Daemon, body: dict[str, Any], status: int, words: tuple[str, ...]
) -> None:
    refused(d.api("POST", "/1.0/instances/up/exec", body), status, *words)


def test_commands_need_a_running_container(d: Daemon) -> None:
    refused(d.api("POST", "/1.0/instances/down/exec", {"command": ["true"]}), 400, "not running")


def test_invalid_bulk_changes_are_explained(d: Daemon) -> None:
    refused(d.api("PUT", "/1.0/instances", {"state": {"action": "explode"}}), 400, "explode")
    refused(d.api("PUT", "/1.0/instances", json.loads("{}")), 400, "state")
