"""The guest API, used from inside of instances."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.guest import Guest, ask
from utsuwa.client.websocket import WebSocket

pytestmark = pytest.mark.root

INCUS = "/dev/incus/sock"
HWADDR = "00:16:3e:01:02:03"


def launch(daemon: Daemon, busybox: str, name: str = "c1", **config: str) -> Guest:
    daemon.lxc("launch", busybox, name, *(f"-c{key}={value}" for key, value in config.items()))
    return Guest(daemon, name)


def test_an_instance_reads_what_is_meant_for_it(shared_daemon: Daemon, busybox: str) -> None:
    """Byte for byte, and nothing else (lxd#1751, lxd#7587, cloud-init#4062)."""
    d = shared_daemon
    text = "ü%s\n" * 50_000
    guest = launch(d, busybox, **{"user.foo": "bar %s bar", "cloud-init.user-data": "#cloud-config"})
    d.do("PATCH", "/1.0/instances/c1", {"config": {"user.meta-data": "key: value", "user.long/ü": text}})
    config = d.get("/1.0/instances/c1")["config"]

    assert guest.get("/") == ["/1.0"]
    assert guest.get("/1.0") == {
        "api_version": "1.0",
        "location": "none",
        "instance_type": "container",
        "state": "Started",
    }
    assert guest.get("/1.0/config") == [
        "/1.0/config/cloud-init.user-data",
        "/1.0/config/user.foo",
        "/1.0/config/user.long/ü",
        "/1.0/config/user.meta-data",
    ]
    assert guest.text("/1.0/config/user.foo") == "bar %s bar"
    assert guest.text("/1.0/config/user.long%2F%C3%BC") == text
    assert guest.text("/1.0/meta-data") == (
        f"#cloud-config\ninstance-id: {config['volatile.cloud-init.instance-id']}\n"
        "local-hostname: c1\nkey: value"
    )
    devices = guest.get("/1.0/devices")
    assert devices["eth0"]["hwaddr"] == config["volatile.eth0.hwaddr"]
    assert devices["root"] == {"type": "disk", "path": "/", "pool": "default"}
    assert guest.api("GET", "/", path=INCUS).json == ["/1.0"]


def test_replies_have_the_status_and_the_form_of_lxd(shared_daemon: Daemon, busybox: str) -> None:
    guest = launch(shared_daemon, busybox, **{"user.a": "x"})
    answers = {
        url: guest.api("GET", url)
        for url in (
            "/1.0/config",
            "/1.0/config/user.a",
            "/1.0/config/user.none",
            "/1.0/config/security.nesting",
            "/1.0/nothing",
            f"/1.0/images/{'0' * 64}/export",
            "/1.0/events?type=operation",
        )
    }
    assert [(reply.status, reply.headers["content-type"], reply.body) for reply in answers.values()] == [
        (200, "application/json", b'["/1.0/config/user.a"]\n'),
        (200, "application/octet-stream; charset=utf-8", b"x"),
        (404, "text/plain; charset=utf-8", b"not found\n"),
        (403, "text/plain; charset=utf-8", b"not authorized\n"),
        (404, "text/plain; charset=utf-8", b"not found\n"),
        (403, "text/plain; charset=utf-8", b"not authorized\n"),
        (
            400,
            "text/plain; charset=utf-8",
            b"Invalid event type 'operation': use config or device\n",
        ),
    ]
    assert guest.api("POST", "/1.0/config/user.a", {}).status == 405
    assert guest.api("GET", "/1.0/config/%ff").status == 400


def test_head_is_answered_without_a_body(shared_daemon: Daemon, busybox: str) -> None:
    guest = launch(shared_daemon, busybox, **{"user.a": "x"})
    (connection,) = guest.connect()
    connection.sendall(
        b"HEAD /1.0/config/user.a HTTP/1.1\r\nHost: lxd\r\n\r\n"
        b"GET /1.0/config/user.a HTTP/1.1\r\nHost: lxd\r\nConnection: close\r\n\r\n"
    )
    with connection, connection.makefile("rb") as stream:
        replies = stream.read()
    assert replies.count(b"HTTP/1.1 200 OK\r\n") == replies.count(b"Content-Length: 1\r\n") == 2
    assert replies.count(b"\r\n\r\nx") == 1
    assert replies.endswith(b"\r\n\r\nx")
    statuses = {
        "/": 200,
        "/1.0": 200,
        "/1.0/config/user.none": 404,
        "/1.0/config/security.nesting": 403,
        "/1.0/nothing": 404,
        "/1.0/events": 405,
        f"/1.0/images/{'0' * 64}/export": 405,
    }
    for url, status in statuses.items():
        reply = guest.api("HEAD", url)
        assert (reply.status, reply.body) == (status, b""), url


def test_only_the_root_of_an_instance_is_answered_for_that_instance(
    shared_daemon: Daemon, busybox: str
) -> None:
    d = shared_daemon
    one = launch(d, busybox, "c1")
    launch(d, busybox, "c2", **{"security.privileged": "true"})
    refused = one.api("GET", "/1.0/meta-data", user=1000)
    assert (refused.status, refused.body) == (401, b"Access denied for non-root user\n")
    # The test is not in any of the two: what counts is where the connection was opened.
    for name in ("c1", "c2"):
        (connection,) = Guest(d, name).connect()
        body = ask(connection, "GET", "/1.0/meta-data").body.decode()
        assert f"\nlocal-hostname: {name}\n" in body
    seen = d.lxc(
        "exec", "c1", "--", "sh", "-c", "ls -ln /dev/lxd; touch /dev/lxd/x 2>&1; rm /dev/lxd/sock 2>&1; true"
    )
    assert re.search(r"(?m)^srw-rw-rw- .* sock$", seen.stdout), seen.stdout
    assert seen.stdout.count("Read-only file system") == 2, seen.stdout


def test_instances_reach_the_daemon_after_its_restart(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    guest = launch(d, busybox, **{"user.a": "1"})
    hidden = launch(d, busybox, "c2", **{"security.devlxd": "false"})
    with guest.connect()[0] as before:
        d.kill()
        d.start()
        assert guest.text("/1.0/config/user.a") == "1"
        assert before.recv(1) == b""
    with pytest.raises(AssertionError, match="FileNotFoundError"):
        hidden.connect()
    d.restart()
    assert guest.text("/1.0/config/user.a") == "1"
    d.lxc("restart", "--force", "c1")
    assert Guest(d, "c1").text("/1.0/config/user.a") == "1"
    d.lxc("delete", "--force", "c1", "c2")
    assert not list((d.dir / "devlxd").iterdir())


@pytest.mark.parametrize("key", ["security.devlxd", "security.guestapi"])
def test_it_is_hidden_and_shown_while_an_instance_runs(shared_daemon: Daemon, busybox: str, key: str) -> None:
    """By LXD's and by Incus' name of the key."""
    d = shared_daemon
    guest = launch(d, busybox, **{"user.a": "1"})
    with guest.connect()[0] as kept:
        d.lxc("config", "set", "c1", key, "false")
        assert kept.recv(1) == b""
    for path in ("/dev/lxd/sock", INCUS):
        with pytest.raises(AssertionError, match="FileNotFoundError"):
            guest.connect(path=path)
    d.lxc("config", "unset", "c1", key)
    assert guest.text("/1.0/config/user.a") == "1"
    assert guest.api("GET", "/", path=INCUS).status == 200
    d.lxc("profile", "set", "default", key, "false")
    with pytest.raises(AssertionError, match="FileNotFoundError"):
        guest.connect()
    d.lxc("profile", "unset", "default", key)
    assert guest.text("/1.0/config/user.a") == "1"


def test_an_instance_reports_that_it_is_ready(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    guest = launch(d, busybox)
    assert guest.api("PATCH", "/1.0", {"state": "Ready"}).status == 200
    assert guest.get("/1.0")["state"] == "Ready"
    shown = d.get("/1.0/instances/c1")
    assert (shown["status"], shown["status_code"]) == ("Ready", 113)
    assert shown["config"]["volatile.last_state.ready"] == "true"
    d.restart()
    assert d.get("/1.0/instances/c1")["status"] == "Ready"

    invalid = guest.api("PATCH", "/1.0", {"state": "Stopped"})
    assert (invalid.status, invalid.body) == (400, b"Invalid state 'Stopped': use one of Ready, Started\n")
    bodies: list[object] = [[], {"state": 1}, {}, {"state": "Ready", "x": "y" * 5000}]
    for body in bodies:
        assert guest.api("PATCH", "/1.0", body).status in (400, 413), body
    assert guest.api("PATCH", "/1.0", {"state": "Started"}).status == 200
    assert d.get("/1.0/instances/c1")["status"] == "Running"

    guest.api("PATCH", "/1.0", {"state": "Ready"})
    utsuwa_client(d, "restart", "--all", "--force")
    assert d.get("/1.0/instances/c1")["status"] == "Running"
    assert "volatile.last_state.ready" not in d.get("/1.0/instances/c1")["config"]


def test_cloud_init_runs_again_after_changes_of_its_data(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    guest = launch(d, busybox)

    def instance_id() -> str:
        stored = d.get("/1.0/instances/c1")["config"]["volatile.cloud-init.instance-id"]
        assert f"\ninstance-id: {stored}\n" in guest.text("/1.0/meta-data")
        return str(stored)

    ids = [instance_id()]
    for change in (
        {"config": {"cloud-init.user-data": "a"}},
        {"config": {"user.network-config": "b"}},
        {"devices": {"eth1": {"type": "nic", "nictype": "p2p", "name": "eth1", "hwaddr": HWADDR}}},
    ):
        d.do("PATCH", "/1.0/instances/c1", change)
        ids.append(instance_id())
    d.lxc("profile", "set", "default", "cloud-init.vendor-data", "c")
    ids.append(instance_id())
    assert len(set(ids)) == 5
    d.lxc("profile", "unset", "default", "cloud-init.vendor-data")
    last = instance_id()
    d.do("PATCH", "/1.0/instances/c1", {"config": {"user.foo": "x", "limits.processes": "500"}})
    d.lxc("config", "device", "set", "c1", "eth1", "user.x=y")
    assert instance_id() == last
    assert guest.get("/1.0/devices")["eth1"]["hwaddr"] == HWADDR


def test_user_data_that_is_too_large_or_no_text_is_refused_and_empty_data_is_none(
    shared_daemon: Daemon, busybox: str
) -> None:
    d = shared_daemon
    guest = launch(d, busybox, **{"cloud-init.user-data": "kept"})
    json_type = {"Content-Type": "application/json"}
    for body, status in (
        (b'{"config": {"cloud-init.user-data": "%s"}}' % (b"x" * (10 << 20)), 413),
        (b'{"config": {"cloud-init.user-data": "\xff"}}', 400),
        (b'{"config": {"cloud-init.user-data": "\\u0000"}}', 400),
    ):
        assert d.api("PATCH", "/1.0/instances/c1", body, headers=json_type).status == status
        assert guest.text("/1.0/config/cloud-init.user-data") == "kept"
    d.do("PATCH", "/1.0/instances/c1", {"config": {"cloud-init.user-data": ""}})
    assert guest.api("GET", "/1.0/config/cloud-init.user-data").status == 404
    assert guest.get("/1.0/config") == []


@pytest.mark.parametrize("key", ["security.devlxd.images", "security.guestapi.images"])
def test_images_are_downloaded_if_that_is_allowed(shared_daemon: Daemon, busybox: str, key: str) -> None:
    d = shared_daemon
    fingerprint = d.get(f"/1.0/images/aliases/{busybox}")["target"]
    url = f"/1.0/images/{fingerprint}/export"
    guest = launch(d, busybox)
    assert guest.api("GET", url).status == 403
    d.lxc("config", "set", "c1", key, "true")
    assert guest.api("GET", url).status == 404  # it is neither public nor was it downloaded
    d.do("PATCH", f"/1.0/images/{fingerprint}", {"public": True})
    try:
        assert guest.api("GET", f"/1.0/images/{fingerprint[:12]}/export").status == 404
        given = guest.api("GET", url)
        assert given.status == 200
        assert len(given.body) == int(given.headers["content-length"])
        assert given.body.count(b"filename=") == 2
    finally:
        d.do("PATCH", f"/1.0/images/{fingerprint}", {"public": False})


def test_json_is_valid_for_any_key(shared_daemon: Daemon, busybox: str) -> None:
    guest = launch(shared_daemon, busybox, **{'user."\\': "a"})
    assert json.loads(guest.text("/1.0/config")) == ['/1.0/config/user."\\']


def test_changes_are_reported_to_listeners(shared_daemon: Daemon, busybox: str, tmp_path: Path) -> None:
    d = shared_daemon
    guest = launch(d, busybox, **{"user.foo": "bar"})
    other = launch(d, busybox, "c2")
    disk = {"type": "disk", "source": str(tmp_path), "path": "/mnt"}
    everything, devices, of_other = guest.listen(), guest.listen("?type=device"), other.listen()
    with contextlib.closing(guest.connect()[0]) as stream:
        stream.sendall(b"GET /1.0/events HTTP/1.1\r\nHost: lxd\r\n\r\n")
        head = stream.recv(1000)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
        for change in (
            {"config": {"user.foo": "baz", "security.nesting": "true", "cloud-init.user-data": "x"}},
            {"devices": {"mnt": disk}},
            {"devices": {"mnt": {**disk, "user.x": "y"}}},
        ):
            d.do("PATCH", "/1.0/instances/c1", change)
        d.lxc("config", "device", "remove", "c1", "mnt")
        expected: list[tuple[str, dict[str, Any]]] = [
            ("config", {"key": "user.foo", "old_value": "bar", "value": "baz"}),
            ("device", {"action": "added", "name": "mnt", "config": disk}),
            ("device", {"action": "updated", "name": "mnt", "config": {**disk, "user.x": "y"}}),
            ("device", {"action": "removed", "name": "mnt", "config": {**disk, "user.x": "y"}}),
        ]
        assert [event(everything) for _ in expected] == expected
        assert [event(devices) for _ in expected[1:]] == expected[1:]
        lines = b""
        while lines.count(b"\n\r\n") < len(expected):
            lines += stream.recv(10_000)
        streamed = [json.loads(line) for line in lines.splitlines() if line.startswith(b"{")]
        assert [(e["type"], e["metadata"]) for e in streamed] == expected
    d.lxc("config", "set", "c2", "user.last", "1")
    assert event(of_other) == ("config", {"key": "user.last", "old_value": "", "value": "1"})
    d.lxc("config", "set", "c1", "security.devlxd", "false")
    for listener in (everything, devices):
        assert listener.receive() is None
        listener.close()
    of_other.close()


def event(listener: WebSocket) -> tuple[str, dict[str, Any]]:
    message = listener.receive()
    assert message is not None
    found = json.loads(message[1])
    assert found.keys() == {"type", "timestamp", "metadata"}
    return found["type"], found["metadata"]
