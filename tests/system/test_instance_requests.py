"""Requests for instances as other clients than `lxc` write them."""

from __future__ import annotations

import platform
import shutil
from typing import Any

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root

IMAGE = {"type": "image", "alias": "busybox"}
URL = "/1.0/instances/one"


def volatile(daemon: Daemon) -> dict[str, str]:
    config: dict[str, str] = daemon.get(URL)["config"]
    return {key: value for key, value in config.items() if key.startswith("volatile.")}


@pytest.mark.parametrize("words", ["2", "nonsense", "aarch64", "amd64", "", None])
def test_the_architecture_is_that_of_the_image(
    shared_daemon: Daemon, busybox: str, words: str | None
) -> None:
    """pylxd's own tests send LXD's number for it; LXD looks at the image alone."""
    shared_daemon.do("POST", "/1.0/instances", {"name": "one", "source": IMAGE, "architecture": words})
    assert shared_daemon.get(URL)["architecture"] == platform.machine()


@pytest.mark.parametrize(("words", "stored"), [("amd64", "x86_64"), ("arm64", "aarch64"), ("", None)])
def test_an_empty_instance_has_the_architecture_that_was_asked_for(
    shared_daemon: Daemon, words: str, stored: str | None
) -> None:
    body = {"name": "one", "source": {"type": "none"}, "architecture": words}
    shared_daemon.do("POST", "/1.0/instances", body)
    assert shared_daemon.get(URL)["architecture"] == (stored or platform.machine())


def test_an_unknown_architecture_is_refused_where_it_counts(shared_daemon: Daemon, busybox: str) -> None:
    body = {"name": "one", "source": {"type": "none"}, "architecture": "2"}
    assert "Unknown architecture '2'" in shared_daemon.api("POST", "/1.0/instances", body).error
    shared_daemon.lxc("init", busybox, "one")
    reply = shared_daemon.api("PATCH", URL, {"architecture": "2"})
    assert (reply.status, "Unknown architecture '2'" in reply.error) == (400, True)
    shared_daemon.do("PATCH", URL, {"architecture": "amd64"})
    assert shared_daemon.get(URL)["architecture"] == "x86_64"


def test_a_new_instance_is_started_in_the_same_operation(shared_daemon: Daemon, busybox: str) -> None:
    """`instance_create_start`: without it in the list, `incus launch` starts what runs already."""
    assert "instance_create_start" in shared_daemon.get("/1.0")["api_extensions"]
    shared_daemon.do("POST", "/1.0/instances", {"name": "one", "source": IMAGE, "start": True})
    assert shared_daemon.get(URL)["status"] == "Running"


def test_instance_that_fails_to_start_is_kept(shared_daemon: Daemon, busybox: str) -> None:
    config = {"raw.lxc": "lxc.init.cmd = /nowhere"}
    body = {"name": "one", "source": IMAGE, "start": True, "config": config}
    ended = shared_daemon.wait(shared_daemon.api("POST", "/1.0/instances", body))
    assert ended["status"] == "Failure"
    assert ended["err"]
    assert shared_daemon.get(URL)["status"] == "Stopped"


@pytest.mark.parametrize("more", [{"config": None}, {}, {"config": {}}, {"config": {"user.x": "1"}}], ids=str)
def test_a_put_without_volatile_keys_leaves_them(
    shared_daemon: Daemon, busybox: str, more: dict[str, Any]
) -> None:
    """The next start would give another MAC address and cloud-init id, and write no templates."""
    shared_daemon.lxc("init", busybox, "one")
    before = volatile(shared_daemon)
    assert {"volatile.apply_template", "volatile.eth0.hwaddr", "volatile.cloud-init.instance-id"} <= set(
        before
    )
    shared_daemon.do("PUT", URL, {"profiles": ["default"], **more})
    assert volatile(shared_daemon) == before
    kept = shared_daemon.get(URL)["config"].keys() - before.keys()
    assert kept == ({"user.x"} if more.get("config") else set())


def test_a_volatile_key_can_be_unset_by_name(shared_daemon: Daemon, busybox: str) -> None:
    shared_daemon.lxc("init", busybox, "one")
    shared_daemon.lxc("config", "unset", "one", "volatile.apply_template")
    assert "volatile.apply_template" not in volatile(shared_daemon)


def test_a_patch_with_nulls_changes_nothing(shared_daemon: Daemon, busybox: str) -> None:
    """As LXD 5.0.2: an absent field and a null one are the same."""
    shared_daemon.lxc("init", busybox, "one", "-c", "user.x=1")
    before = shared_daemon.get(URL)
    for field in ("config", "devices", "profiles", "description", "ephemeral"):
        shared_daemon.do("PATCH", URL, {field: None})
        assert shared_daemon.get(URL) == before, field


@pytest.mark.parametrize(
    ("url", "editable"),
    [
        ("/1.0/profiles/one", ("config", "devices", "description")),
        ("/1.0/networks/utone", ("config", "description")),
        ("/1.0/storage-pools/one", ("config", "description")),
    ],
)
def test_nulls_in_requests_about_objects_in_use(
    shared_daemon: Daemon, url: str, editable: tuple[str, ...]
) -> None:
    """PATCH leaves what is null; PUT empties it, but for what cannot change: a pool's source."""
    if "networks" in url and shutil.which("dnsmasq") is None:
        pytest.skip("no dnsmasq")
    folder, name = url.rsplit("/", 1)
    given = {"name": name, "config": {"user.x": "1"}, "description": "d"}
    shared_daemon.do("POST", folder, given if "pools" not in url else {**given, "driver": "dir"})
    try:
        before = shared_daemon.get(url)
        for field in editable:
            shared_daemon.do("PATCH", url, {field: None})
            assert shared_daemon.get(url) == before, field
        reply = shared_daemon.api("PUT", url, dict.fromkeys(editable))
        assert reply.status == 200, reply.body
        after = shared_daemon.get(url)
        assert "user.x" not in after["config"]
        assert after["description"] == ""
        assert after["config"].get("source") == before["config"].get("source")
    finally:
        shared_daemon.do("DELETE", url)


def test_number_in_a_config_is_reported_with_its_key(shared_daemon: Daemon, busybox: str) -> None:
    shared_daemon.lxc("init", busybox, "one")
    for method, url in (("PATCH", URL), ("PUT", URL), ("PATCH", "/1.0/profiles/default")):
        reply = shared_daemon.api(method, url, {"config": {"user.x": "1", "limits.cpu": 2}})
        assert (reply.status, "limits.cpu" in reply.error, '"2"' in reply.error) == (400, True, True), (
            reply.body
        )
    reply = shared_daemon.api("PATCH", URL, {"devices": {"eth0": {"type": "nic", "mtu": 1500}}})
    assert "devices[eth0][mtu]" in reply.error
