"""Warnings at a running daemon: the API, `lxc warning`, and `utsuwa warning`."""

from __future__ import annotations

import json

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.system.test_cli_like_lxc import both

pytestmark = pytest.mark.root

WARNINGS = "/1.0/warnings"


@pytest.fixture
def warned(shared_daemon: Daemon) -> Daemon:
    """A daemon with three warnings, the second of which concerns its project."""
    shared_daemon.lxc("warning", "list")  # whose first run prints more
    utsuwa_client(shared_daemon, "warning", "delete", "--all")
    for code, message, project in ((0, "one", ""), (14, "two", "default"), (24, "three", "")):
        body = {"type_code": code, "message": message, "project": project}
        shared_daemon.do("POST", "/internal/testing/warnings", body)
    return shared_daemon


def filtered(daemon: Daemon, query: str) -> list[str]:
    found = daemon.get(f"{WARNINGS}?recursion=1&{query}")
    return [warning["last_message"] for warning in found]


def test_lists_and_filters(warned: Daemon) -> None:
    assert filtered(warned, "") == ["one", "two", "three"]
    assert filtered(warned, "project=default") == ["two"]
    assert filtered(warned, "filter=severity%20eq%20high") == ["three"]
    assert len(warned.get(f"{WARNINGS}?filter=status%20eq%20new")) == 3
    assert warned.api("GET", f"{WARNINGS}?project=nope").status == 404
    url = warned.get(f"{WARNINGS}?filter=last_message%20eq%20two")[0]
    assert warned.get(url)["type"] == "AppArmor support has been disabled"
    assert warned.api("GET", f"{WARNINGS}/nope").status == 404


def test_invalid_requests_are_rejected(warned: Daemon) -> None:
    url = warned.get(WARNINGS)[0]
    assert warned.api("PUT", url, {"status": "resolved"}).status == 403
    assert warned.api("PUT", url, {"status": "bogus"}).status == 400
    assert warned.api("PATCH", url, {}).status == 400
    for wrong in (
        {"type_code": 999},
        {"project": "nope"},
        {"entity_type_code": 0, "entity_id": 0},
        {"entity_type_code": 1},
    ):
        assert warned.api("POST", "/internal/testing/warnings", wrong).status in (400, 404)
    assert len(warned.get(WARNINGS)) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        "list",
        "list --all",
        "list -c utfc",
        "list -c uL",
        "list --format csv",
        "list -c x",
        "show nope",
        "delete nope",
    ],
)
def test_the_client_prints_what_lxc_prints(warned: Daemon, arguments: str) -> None:
    theirs, ours = both(warned, "warning", *arguments.split())
    assert ours == theirs


def test_warnings_are_acknowledged_and_deleted(warned: Daemon) -> None:
    uuids = [url.rsplit("/", 1)[1] for url in warned.get(WARNINGS)]
    utsuwa_client(warned, "warning", "ack", uuids[0])
    listed = json.loads(utsuwa_client(warned, "warning", "list", "--format", "json").stdout)
    assert [warning["uuid"] for warning in listed] == uuids[1:]
    assert "status: acknowledged" in utsuwa_client(warned, "warning", "show", uuids[0]).stdout
    warned.lxc("warning", "delete", uuids[1])
    utsuwa_client(warned, "warning", "rm", "--all")
    assert warned.get(WARNINGS) == []


def test_uuids_are_completed(warned: Daemon) -> None:
    uuids = {url.rsplit("/", 1)[1] for url in warned.get(WARNINGS)}
    for command in ("show", "acknowledge", "delete"):
        assert set(utsuwa_client(warned, "__complete", "warning", command, "").stdout.split()) == uuids


def test_keys_without_effect_are_named(shared_daemon: Daemon, busybox: str) -> None:
    """Those of the server, of instances and of their profiles, until they are unset."""
    d = shared_daemon
    d.lxc("init", busybox, "c1", "-c", "cluster.evacuate=stop")
    d.lxc("config", "set", "core.bgp_asn=65000")

    def named() -> dict[str, tuple[str, str]]:
        found = d.get(
            f"{WARNINGS}?recursion=1&filter=type%20eq%20%22Configuration%20keys%20without%20effect%22"
        )
        return {w["entity_url"]: (w["status"], w["last_message"].rpartition(": ")[2]) for w in found}

    assert named() == {
        "": ("new", "core.bgp_asn"),
        "/1.0/instances/c1": ("new", "cluster.evacuate"),
    }
    d.lxc("config", "set", "c1", "oci.cwd=/srv")
    assert named()["/1.0/instances/c1"][1] == "cluster.evacuate, oci.cwd"
    d.lxc("config", "unset", "c1", "cluster.evacuate")
    d.lxc("config", "unset", "c1", "oci.cwd")
    d.lxc("profile", "set", "default", "oci.entrypoint=/bin/sh")
    d.lxc("config", "set", "storage.logs_volume=default/logs")
    assert named() == {
        "": ("new", "core.bgp_asn, storage.logs_volume"),
        "/1.0/instances/c1": ("new", "oci.entrypoint"),
    }
    d.lxc("profile", "unset", "default", "oci.entrypoint")
    d.lxc("config", "unset", "storage.logs_volume")
    d.lxc("config", "unset", "core.bgp_asn")
    assert {status for status, _ in named().values()} == {"resolved"}
    d.lxc("delete", "c1")
    assert set(named()) == {""}
