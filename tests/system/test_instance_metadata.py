"""Metadata and templates of instances: read and changed by the API and the client, and applied at a start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Reply
from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.monitor import heard
from tests.system.test_lxc_instances import background

pytestmark = pytest.mark.root

METADATA = "/1.0/instances/c1/metadata"
TEMPLATES = f"{METADATA}/templates"
IMAGE = ["hostname.tpl", "hosts.tpl"]
"""The templates of the image."""


@pytest.fixture
def instance(shared_daemon: Daemon, busybox: str) -> Daemon:
    shared_daemon.do("POST", "/1.0/instances", {"name": "c1", "source": {"type": "image", "alias": busybox}})
    return shared_daemon


def folder(daemon: Daemon) -> Path:
    """The directory of the instance's volume."""
    (found,) = (daemon.dir / "storage-pools").glob("*/containers/c1")
    return found


def template(daemon: Daemon, method: str, name: str, content: bytes | None = None) -> Reply:
    return daemon.api(method, f"{TEMPLATES}?path={name}", content)


def client(daemon: Daemon, *arguments: str, text: str = "") -> str:
    return utsuwa_client(daemon, "config", *arguments, input=text.encode()).stdout


def test_the_metadata_is_shown_replaced_and_merged(instance: Daemon) -> None:
    d = instance
    shown = d.get(METADATA)
    assert shown["properties"]["os"] == "BusyBox"
    assert shown["templates"]["/etc/hosts"]["template"] == "hosts.tpl"

    part: dict[str, Any] = {
        "properties": {"a": "", "os": "BB"},
        "templates": {"/etc/x": {"when": ["start"], "template": "x"}},
    }
    assert d.api("PATCH", METADATA, part).status == 200
    merged = d.get(METADATA)
    assert merged["properties"] == {**shown["properties"], **part["properties"]}
    assert merged["templates"].keys() == {*shown["templates"], "/etc/x"}
    assert merged["creation_date"] == shown["creation_date"]

    assert d.api("PUT", METADATA, {"properties": {"b": "c"}}).status == 200
    wanted = {
        "architecture": "",
        "creation_date": 0,
        "expiry_date": 0,
        "properties": {"b": "c"},
        "templates": {},
    }
    assert d.get(METADATA) == wanted
    d.lxc("start", "c1")  # although an image without an architecture could not be imported
    assert d.api("PUT", METADATA, shown).status == 200
    assert d.get(METADATA) == shown


def test_a_change_with_an_old_etag_is_refused(instance: Daemon) -> None:
    d = instance
    etag = d.api("GET", METADATA).headers["etag"]
    assert d.api("PATCH", METADATA, {"properties": {"a": "b"}}, headers={"If-Match": etag}).status == 200
    for method in ("PUT", "PATCH"):
        assert d.api(method, METADATA, {"properties": {}}, headers={"If-Match": etag}).status == 412
    assert d.get(METADATA)["properties"]["a"] == "b"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"architecture": "vax"}, "architecture"),
        ({"expiry_date": -5}, "expiry_date"),
        ({"properties": {"a": 5}}, "properties"),
        ({"properties": {"a": "x" * 70_000}}, "longer"),
        ({"properties": {f"a{i}": "x" * 60_000 for i in range(20)}}, "larger than 1 MiB"),
        ({"properties": {"a\nb": "c"}}, "invalid name"),
        ({"templates": {"etc/x": {"template": "x"}}}, "absolute path"),
        ({"templates": {"/../x": {"template": "x"}}}, "inside the instance"),
        ({"templates": {"/x": {"template": "../x"}}}, "plain file name"),
        ({"templates": {"/x": {"create_only": True}}}, "plain file name"),
        ({"templates": {"/x": None}}, "plain file name"),
        ({"templates": {"/x": {"template": None, "when": None, "properties": None}}}, "plain file name"),
        ({"templates": {"/x": {"when": "start", "template": "x"}}}, "when"),
        ([], "object"),
    ],
)
def test_invalid_metadata_changes_nothing(instance: Daemon, body: Any, reason: str) -> None:
    before = instance.get(METADATA)
    for method in ("PUT", "PATCH"):
        reply = instance.api(method, METADATA, body)
        assert reply.status == 400
        assert reason in reply.error
    assert instance.get(METADATA) == before


def test_templates_are_created_replaced_shown_and_deleted(instance: Daemon) -> None:
    d = instance
    assert d.get(TEMPLATES) == IMAGE
    for content in (b"one", "zw\u00f6lf\n".encode()):
        assert template(d, "POST", "my.tpl", content).status == 200
        shown = template(d, "GET", "my.tpl")
        assert shown.body == content
        assert shown.headers["content-type"] == "application/octet-stream"
        assert shown.headers["content-disposition"] == "inline;filename=my.tpl"
    assert d.get(TEMPLATES) == [*IMAGE, "my.tpl"]
    assert template(d, "DELETE", "my.tpl").status == 200
    for method in ("GET", "DELETE"):
        reply = template(d, method, "my.tpl")
        assert (reply.status, reply.error) == (404, 'Template "my.tpl" not found')
    assert d.get(TEMPLATES) == IMAGE
    assert not (folder(d) / ".new").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "../metadata.yaml", "%0a", "x" * 256, "%C3%B6" * 200])
def test_invalid_names_of_templates(instance: Daemon, name: str) -> None:
    for method in ("GET", "POST", "DELETE") if name else ("POST", "DELETE"):
        assert template(instance, method, name, b"x" if method == "POST" else None).status == 400
    assert instance.get(TEMPLATES) == IMAGE


def test_templates_that_are_too_large_or_not_text(instance: Daemon) -> None:
    assert template(instance, "POST", "big.tpl", bytes(64 * 1024 + 1)).status == 413
    assert template(instance, "POST", "raw.tpl", b"\xff").status == 400
    assert instance.get(TEMPLATES) == IMAGE


def test_entries_that_are_not_templates_are_ignored(instance: Daemon, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    templates = folder(instance) / "templates"
    (templates / "link").symlink_to(secret)
    (templates / "folder").mkdir()
    assert instance.get(TEMPLATES) == IMAGE
    for name in ("link", "folder"):
        assert template(instance, "GET", name).status == 404
        assert template(instance, "DELETE", name).status == 404
    assert template(instance, "POST", "folder", b"x").status == 400
    assert template(instance, "POST", "link", b"x").status == 200  # replaced, not followed
    assert secret.read_text() == "of the host"
    (templates / "folder").rmdir()


def test_an_instance_without_metadata(instance: Daemon) -> None:
    d, place = instance, folder(instance)
    (place / "metadata.yaml").unlink()
    for entry in (place / "templates").iterdir():
        entry.unlink()
    (place / "templates").rmdir()
    assert d.get(METADATA)["templates"] == {}
    assert d.get(TEMPLATES) == []
    assert template(d, "POST", "my.tpl", b"x").status == 200
    assert d.get(TEMPLATES) == ["my.tpl"]
    assert d.api("PATCH", METADATA, {"properties": {"a": "b"}}).status == 200
    assert d.get(METADATA)["properties"] == {"a": "b"}


def test_metadata_of_a_missing_instance_is_not_found(shared_daemon: Daemon) -> None:
    for url in ("/1.0/instances/no/metadata", "/1.0/instances/no/metadata/templates"):
        assert shared_daemon.api("GET", url).status == 404
    assert shared_daemon.api("PUT", "/1.0/instances/no/metadata", {}).status == 404


def test_a_changed_template_is_applied_at_the_next_start(instance: Daemon) -> None:
    d = instance
    entry = {"/etc/motd": {"when": ["start"], "template": "motd.tpl", "properties": {"to": "you"}}}
    assert d.api("PATCH", METADATA, {"templates": entry}).status == 200
    template(d, "POST", "motd.tpl", b"{{ instance.name }} to {{ properties.to }}\n")
    d.lxc("snapshot", "c1")
    d.lxc("start", "c1")
    assert d.lxc("exec", "c1", "--", "cat", "/etc/motd").stdout == "c1 to you\n"
    template(d, "DELETE", "motd.tpl")
    d.lxc("restore", "c1", "snap0")
    assert template(d, "GET", "motd.tpl").body.startswith(b"{{ instance.name }}")


def test_templates_of_the_creation_outlast_a_new_name(instance: Daemon) -> None:
    d = instance
    entries = {f"/etc/{when}": {"when": [when], "template": "x.tpl"} for when in ("create", "copy", "rename")}
    assert d.api("PATCH", METADATA, {"templates": entries}).status == 200
    template(d, "POST", "x.tpl", b"{{ trigger }} {{ instance.name }}\n")

    def made(name: str) -> str:
        d.lxc("start", name)
        shown = d.lxc(
            "exec", name, "--", "sh", "-c", "cat /etc/create /etc/copy /etc/rename 2>/dev/null || true"
        )
        d.lxc("stop", "--force", name)
        return shown.stdout

    d.lxc("copy", "c1", "c2")
    d.lxc("rename", "c1", "c3")
    assert made("c3") == "create c3\n"
    d.do("POST", "/1.0/instances/c2", {"name": "c4", "config": {"user.a": "b"}})
    assert made("c4") == "copy c4\n"
    d.lxc("rename", "c3", "c1")
    assert made("c1") == "create c3\nrename c1\n"


def test_lifecycle_events(instance: Daemon) -> None:
    d = instance
    with background(d, "monitor", "--type=lifecycle", "--format=json") as monitor:
        lines = heard(d, monitor)
        d.get(METADATA)
        d.api("PATCH", METADATA, {})
        template(d, "POST", "a.tpl", b"")
        template(d, "GET", "a.tpl")
        template(d, "DELETE", "a.tpl")
        events = [json.loads(next(lines))["metadata"] for _ in range(5)]
    sources = {event["action"].removeprefix("instance-metadata-"): event["source"] for event in events}
    assert sources == {
        "retrieved": METADATA,
        "updated": METADATA,
        "template-created": TEMPLATES,
        "template-retrieved": TEMPLATES,
        "template-deleted": TEMPLATES,
    }
    contexts = [event["context"] for event in events if "template" in event["action"]]
    assert contexts == [{"path": "a.tpl"}] * 3


def test_the_client(instance: Daemon) -> None:
    d = instance
    shown = client(d, "metadata", "show", "c1")
    assert shown == d.lxc("config", "metadata", "show", "c1").stdout
    client(d, "metadata", "edit", "c1", text=shown.replace("BusyBox", "BB"))
    assert client(d, "metadata", "show", "c1") == shown.replace("BusyBox", "BB")
    client(d, "template", "create", "c1", "my.tpl")
    assert client(d, "template", "show", "c1", "my.tpl") == ""
    client(d, "template", "edit", "c1", "my.tpl", text="some content\n")
    assert client(d, "template", "show", "c1", "my.tpl") == "some content\n"
    for style in ("table", "csv", "json", "yaml", "compact"):
        listed = client(d, "template", "list", "c1", "--format", style)
        assert "my.tpl" in listed
        assert listed == d.lxc("config", "template", "list", "c1", "--format", style).stdout
    client(d, "template", "delete", "c1", "my.tpl")
    assert "my.tpl" not in client(d, "template", "list", "c1")
