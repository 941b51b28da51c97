"""Rebuilding instances: a new root disk from an image or an empty one, completely or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("dir_pool")]

URL = "/1.0/instances/c1"


def put(daemon: Daemon, path: str) -> None:
    assert daemon.api("POST", f"{URL}/files?path={path}", b"mark").status == 200


def has(daemon: Daemon, path: str) -> bool:
    return daemon.api("GET", f"{URL}/files?path={path}").status == 200


def from_image(image: str) -> dict[str, Any]:
    return {"source": {"type": "image", "alias": image}}


def test_files_are_those_of_the_image_and_configuration_and_snapshots_stay(
    shared_daemon: Daemon, busybox: str, root_pool: str
) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1", "-s", root_pool, "-c", "user.color=blue")
    put(d, "/root/before")
    d.lxc("snapshot", "c1", "one")
    put(d, "/root/after")
    d.api("PATCH", f"{URL}/metadata", {"properties": {"os": "changed"}})
    old = d.get(URL)["config"]
    d.do("POST", f"{URL}/rebuild", from_image(busybox))
    new = d.get(URL)["config"]
    fresh = ("volatile.cloud-init.instance-id", "volatile.apply_template")
    assert {k: v for k, v in new.items() if k not in fresh} == {
        k: v for k, v in old.items() if k not in fresh
    }
    assert new["volatile.cloud-init.instance-id"] != old["volatile.cloud-init.instance-id"]
    assert not has(d, "/root/before")
    assert d.get(f"{URL}/metadata")["properties"]["os"] == "BusyBox"
    d.lxc("start", "c1")
    assert d.lxc("exec", "c1", "--", "cat", "/etc/hostname").stdout == "c1\n"
    d.lxc("restore", "c1", "one")
    assert has(d, "/root/before")
    assert not has(d, "/root/after")


def test_an_empty_root_disk(shared_daemon: Daemon, busybox: str, root_pool: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1", "-s", root_pool)
    d.do("POST", f"{URL}/rebuild", {"source": {"type": "none"}})
    assert d.get(f"{URL}/files?path=/") == []
    config = d.get(URL)["config"]
    assert not [key for key in config if key.startswith("image.") or key == "volatile.base_image"]
    assert d.get(f"{URL}/metadata")["templates"] == {}
    utsuwa_client(d, "rebuild", busybox, "c1")
    assert has(d, "/bin/busybox")
    utsuwa_client(d, "rebuild", "c1", "--empty")
    assert not has(d, "/bin/busybox")


def test_rejected_rebuild_changes_nothing(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1")
    put(d, "/root/mark")
    for source, status in (
        ({"type": "image", "alias": "no"}, 404),
        ({"type": "image", "alias": busybox, "server": "ftp://localhost"}, 400),
        ({"type": "copy", "source": "c1"}, 400),
        ({}, 400),
    ):
        assert d.api("POST", f"{URL}/rebuild", {"source": source}).status == status
    assert d.api("POST", f"{URL}/rebuild", {}).status == 400
    assert d.api("POST", "/1.0/instances/no/rebuild", from_image(busybox)).status == 404
    d.lxc("config", "device", "add", "c1", "data", "disk", "source=instance:data", "path=/data")
    refused = d.api("POST", f"{URL}/rebuild", from_image(busybox))
    assert (refused.status, "'data' would be lost" in refused.error) == (400, True)
    d.lxc("config", "device", "remove", "c1", "data")
    d.lxc("start", "c1")
    refused = d.api("POST", f"{URL}/rebuild", from_image(busybox))
    assert (refused.status, "is running: stop it" in refused.error) == (400, True)
    for arguments in (("rebuild", "c1"), ("rebuild", busybox, "c1", "--empty")):
        assert utsuwa_client(d, *arguments, check=False).returncode != 0
    assert has(d, "/root/mark")
    utsuwa_client(d, "rebuild", busybox, "c1", "--force")
    assert not has(d, "/root/mark")
    assert d.get(URL)["status"] == "Running"


@pytest.mark.parametrize("point", ["volume is moved away", "before files are changed"])
def test_a_rebuild_cut_off_is_undone(
    shared_daemon: Daemon, busybox: str, tmp_path_factory: pytest.TempPathFactory, point: str
) -> None:
    d, faults = shared_daemon, Faults(tmp_path_factory.mktemp("faults"))
    d.env |= faults.env
    d.restart()
    d.lxc("init", busybox, "c1")
    put(d, "/root/mark")
    old = d.get(URL)["config"]
    with faults.kill_at(d, point):
        d.do("POST", f"{URL}/rebuild", {"source": {"type": "none"}})
    assert d.get(URL)["config"] == old
    assert has(d, "/root/mark")
    assert [path.name for path in Path(d.dir / "storage-pools/default/containers").iterdir()] == ["c1"]
    d.do("POST", f"{URL}/rebuild", from_image(busybox))
    assert not has(d, "/root/mark")
