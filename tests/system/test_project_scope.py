"""A project without features: instances are its own, all else is the default project's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.images import Image

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def net(busybox_image: Image) -> Iterator[Daemon]:
    """A daemon with the project `other`, and a network on which instances of the profile `net` are."""
    with boxed_daemon() as daemon:
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        config = {"ipv4.address": "10.77.0.1/24", "ipv6.address": "none"}
        daemon.do("POST", "/1.0/networks", {"name": "br", "config": config})
        nic = {"eth0": {"type": "nic", "network": "br"}}
        daemon.do("POST", "/1.0/profiles", {"name": "net", "devices": nic})
        features = {f"features.{name}": "false" for name in ("images", "profiles", "storage.volumes")}
        daemon.do("POST", "/1.0/projects", {"name": "other", "config": features})
        yield daemon


def test_the_life_of_an_instance_of_a_project_that_shares(net: Daemon) -> None:
    url = "/1.0/instances/c1?project=other"
    assert [p["name"] for p in net.get("/1.0/profiles?project=other&recursion=1")] == ["default", "net"]
    net.lxc("launch", "busybox", "c1", "-p", "default", "-p", "net", "--project", "other")
    net.lxc("launch", "busybox", "c1", "-p", "default", "-p", "net")
    assert net.get("/1.0/instances?project=other") == [url]
    assert net.get("/1.0/profiles/net")["used_by"] == ["/1.0/instances/c1", url]
    assert url in net.get("/1.0/networks/br?project=other")["used_by"]
    assert net.lxc("exec", "c1", "--project", "other", "--", "hostname").stdout == "c1\n"
    net.do("PATCH", "/1.0/profiles/net?project=other", {"config": {"limits.processes": "77"}})
    for project in ("default", "other"):
        shown = net.get(f"/1.0/instances/c1?project={project}")
        assert shown["expanded_config"]["limits.processes"] == "77"
    pid = net.get("/1.0/instances/c1/state?project=other")["pid"]
    net.kill()
    net.start()
    assert net.get("/1.0/instances/c1/state?project=other")["pid"] == pid
    refused = net.api("DELETE", "/1.0/profiles/net?project=other")
    assert refused.status == 400
    assert "currently in use" in refused.error
    for project in ("default", "other"):
        net.lxc("delete", "-f", "c1", "--project", project)


def test_addresses_of_all_its_instances_are_judged(net: Daemon) -> None:
    body = {
        "name": "c2",
        "source": {"type": "image", "alias": "busybox"},
        "devices": {"eth0": {"type": "nic", "network": "br", "ipv4.address": "10.77.0.9"}},
    }
    net.do("POST", "/1.0/instances?project=other", body)
    refused = net.api("POST", "/1.0/instances", body | {"name": "c3"})
    assert refused.status == 400
    assert "10.77.0.9 is taken" in refused.error
    net.do("DELETE", "/1.0/instances/c2?project=other")


@pytest.mark.parametrize(
    "path", ["instances", "images", "images/aliases", "profiles", "networks", "storage-pools/default/volumes"]
)
def test_a_missing_project(net: Daemon, path: str) -> None:
    refused = net.api("GET", f"/1.0/{path}?project=nope")
    assert refused.status == 404
    assert "Project 'nope' not found" in refused.error
