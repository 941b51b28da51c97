"""Projects with real instances: what is in them, their limits and restrictions, and who sees them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Reply
from tests.support.boxed import boxed_daemon
from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image

pytestmark = pytest.mark.root

SHARING = {f"features.{name}": "false" for name in ("images", "profiles", "storage.volumes")}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def host(busybox_image: Image, faults: Faults) -> Iterator[Daemon]:
    """A daemon with an image and the network `br`."""
    with boxed_daemon() as daemon:
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        config = {"ipv4.address": "10.77.0.1/24", "ipv6.address": "none"}
        daemon.do("POST", "/1.0/networks", {"name": "br", "config": config})
        daemon.env |= faults.env
        daemon.restart()
        yield daemon


@pytest.fixture
def daemon(host: Daemon) -> Iterator[Daemon]:
    yield host
    host.delete_instances()
    host.delete_projects()


def create(daemon: Daemon, name: str, project: str = "web", **fields: Any) -> Reply:
    body = {"name": name, "source": {"type": "image", "alias": "busybox"}, **fields}
    reply = daemon.api("POST", f"/1.0/instances?project={project}", body)
    if reply.status == 202:
        daemon.wait(reply)
    return reply


def patch(daemon: Daemon, url: str, **config: str) -> Reply:
    """Change keys, in whose names underscores stand for dots, and return the reply or the ended operation."""
    changes = {key.replace("_", "."): value for key, value in config.items()}
    return daemon.api("PATCH", url, {"config": changes})


def refused(reply: Reply, status: int, *words: str) -> None:
    assert (reply.status, all(word in reply.error for word in words)) == (status, True), reply.body


def test_a_project_of_its_own(daemon: Daemon, busybox_image: Image) -> None:
    """It has its own images, profiles and instances, and nothing of them is seen from elsewhere."""
    lxc = daemon.lxc
    lxc("project", "create", "web")
    lxc("profile", "device", "add", "default", "root", "disk", "path=/", "pool=default", "--project", "web")
    split = [str(busybox_image.metadata), str(busybox_image.rootfs)]
    lxc("image", "import", *split, "--alias", "own", "--project", "web")
    for project in ("web", "default"):
        image = {"web": "own", "default": "busybox"}[project]
        lxc("launch", image, "c1", "--project", project)
    assert daemon.get("/1.0/instances?project=web") == ["/1.0/instances/c1?project=web"]
    assert daemon.get("/1.0/instances") == ["/1.0/instances/c1"]
    everywhere = daemon.get("/1.0/instances?all-projects=true")
    assert everywhere == ["/1.0/instances/c1", "/1.0/instances/c1?project=web"]
    assert lxc("exec", "c1", "--project", "web", "--", "hostname").stdout == "c1\n"
    assert daemon.api("GET", "/1.0/images/aliases/own").status == 404
    assert daemon.api("GET", "/1.0/images/aliases/busybox?project=web").status == 404
    used = daemon.get("/1.0/projects/web")["used_by"]
    assert "/1.0/instances/c1?project=web" in used
    for change in (
        daemon.api("DELETE", "/1.0/projects/web"),
        daemon.api("POST", "/1.0/projects/web", {"name": "net"}),
        patch(daemon, "/1.0/projects/web", features_images="false"),
    ):
        refused(change, 400, "'web' is not empty", "instances c1", "images ")
    daemon.kill()
    daemon.start()
    assert lxc("exec", "c1", "--project", "web", "--", "hostname").stdout == "c1\n"


def test_limits_of_a_project(daemon: Daemon) -> None:
    """They hold for new instances, changed ones, and profiles, also of running instances."""
    limits = {"limits.memory": "1GiB", "limits.containers": "2", "limits.processes": "300"}
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": {**SHARING, **limits}})
    daemon.do("POST", "/1.0/profiles", {"name": "small", "config": {"limits.memory": "256MiB"}})
    own = {"limits.processes": "100"}
    profiles = ["default", "small"]
    refused(create(daemon, "c1", config=own), 403, "limits.memory=1GiB", "instance 'c1' has no limits.memory")
    refused(
        create(daemon, "c1", profiles=profiles, config={**own, "limits.memory": "50%"}),
        403,
        "'c1' has no limits.memory that can be added up",
    )
    assert daemon.get("/1.0/instances?project=web") == []
    assert create(daemon, "c1", profiles=profiles, config=own, start=True).status == 202
    assert create(daemon, "c2", profiles=profiles, config=own).status == 202
    refused(
        create(daemon, "c3", profiles=profiles, config=own), 403, "limits.containers=2", "3 would be used"
    )
    url = "/1.0/instances/c1?project=web"
    refused(patch(daemon, url, limits_memory="769MiB"), 403, "limits.memory=1GiB")
    refused(patch(daemon, url, limits_processes="201"), 403, "limits.processes=300", "301 would")
    refused(patch(daemon, url, limits_processes=""), 403, "'c1' has no limits.processes")
    refused(patch(daemon, "/1.0/profiles/small", limits_memory="513MiB"), 403, "limits.memory=1GiB")
    refused(patch(daemon, "/1.0/profiles/small", limits_memory=""), 403, "has no limits.memory")
    assert daemon.get("/1.0/profiles/small")["config"] == {"limits.memory": "256MiB"}
    assert daemon.get(url)["expanded_config"]["limits.memory"] == "256MiB"
    assert daemon.api("PATCH", "/1.0/profiles/small", {"config": {"limits.memory": "512MiB"}}).status == 200
    resources = daemon.get("/1.0/projects/web/state")["resources"]
    assert resources["memory"] == {"Limit": 2**30, "Usage": 2**30}
    assert resources["containers"] == {"Limit": 2, "Usage": 2}
    below = patch(daemon, "/1.0/projects/web", limits_memory="1023MiB")
    refused(below, 400, "limits.memory=1023MiB", f"{2**30} bytes would be used")
    assert daemon.get("/1.0/projects/web")["config"]["limits.memory"] == "1GiB"


def test_many_instances_at_once_keep_the_limit(daemon: Daemon) -> None:
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": {**SHARING, "limits.instances": "3"}})
    body = {"source": {"type": "none"}}
    replies = [daemon.api("POST", "/1.0/instances?project=web", {**body, "name": f"c{n}"}) for n in range(6)]
    for reply in replies:
        if reply.status == 202:
            daemon.wait(reply)
    assert sorted(reply.status for reply in replies) == [202] * 3 + [403] * 3
    assert len(daemon.get("/1.0/instances?project=web")) == 3


def test_restrictions_of_a_project(daemon: Daemon, tmp_path: Path) -> None:
    """They hold for the final configuration, whether a key is the instance's or comes from a profile."""
    config = {**SHARING, "features.profiles": "true", "restricted": "true"}
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": {**config, "features.images": "false"}})
    profile, project = "/1.0/profiles/default?project=web", "/1.0/projects/web"
    root = {"root": {"type": "disk", "path": "/", "pool": "default"}}
    daemon.do("PATCH", profile, {"devices": root})
    for key, value in (
        ("security.privileged", "true"),
        ("security.nesting", "true"),
        ("raw.lxc", "lxc.environment=A=B"),
        ("raw.idmap", "both 0 0"),
        ("security.syscalls.intercept.mknod", "true"),
    ):
        refused(daemon.api("PATCH", profile, {"config": {key: value}}), 403, "Project 'web' does not allow")
        refused(create(daemon, "c1", config={key: value}), 403, "Project 'web' does not allow")
    refused(create(daemon, "c1", config={"volatile.uuid": "x"}), 403, "'volatile.uuid'")
    folder = {"type": "disk", "source": str(tmp_path), "path": "/mnt"}
    for device in (folder, {"type": "nic", "nictype": "p2p"}):
        devices = {**root, "d": device}
        assert daemon.api("PATCH", profile, {"devices": {"d": device}}).status in (403, 501)
        assert create(daemon, "c1", devices=devices).status in (403, 501)
    assert daemon.get("/1.0/instances?project=web") == []
    assert create(daemon, "c1", start=True).status == 202
    url = "/1.0/instances/c1?project=web"
    refused(patch(daemon, url, security_nesting="true"), 403, "restricted.containers.nesting=block")
    refused(patch(daemon, url, volatile_idmap_base="7"), 403, "'volatile.idmap.base'")
    refused(patch(daemon, url, volatile_uuid="x"), 403, "'volatile.uuid'")
    p2p = {"devices": {"eth0": {"type": "nic", "nictype": "p2p"}}}
    refused(daemon.api("PATCH", url, p2p), 403, "network device 'eth0'", "restricted.devices.nic=managed")
    daemon.do("PATCH", url, {"devices": {"eth0": {"type": "nic", "network": "br"}}})
    refused(patch(daemon, project, restricted_devices_nic="block"), 400, "Instance 'c1'", "'eth0'")
    daemon.do("PATCH", project, {"config": {"restricted.containers.nesting": "allow"}})
    daemon.do("PATCH", profile, {"config": {"security.nesting": "true"}})
    again = patch(daemon, project, restricted_containers_nesting="block")
    refused(again, 400, "Profile 'default'", "restricted.containers.nesting=block")
    assert daemon.get(project)["config"]["restricted.containers.nesting"] == "allow"
    snapshots = "/1.0/instances/c1/snapshots?project=web"
    refused(daemon.api("POST", snapshots, {"name": "s"}), 403, "snapshots (restricted.snapshots=block)")
    assert daemon.get(snapshots) == []
    daemon.do("PATCH", project, {"config": {"restricted.snapshots": "allow"}})
    daemon.do("POST", snapshots, {"name": "s"})
    assert daemon.get(snapshots) == ["/1.0/instances/c1/snapshots/s?project=web"]


def test_directories_that_disks_may_come_from(daemon: Daemon, tmp_path: Path) -> None:
    """Neither by their path nor by a symlink made later do others get into an instance."""
    tmp_path.chmod(0o755)
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    for folder in (allowed / "data", secret):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    keys = {"disk": "allow", "disk.paths": str(allowed), "nic": "allow"}
    config = {"restricted": "true"} | {f"restricted.devices.{key}": value for key, value in keys.items()}
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": {**SHARING, **config}})

    def disk(source: Path) -> dict[str, Any]:
        return {"data": {"type": "disk", "source": str(source), "path": "/mnt"}}

    for source in (secret, tmp_path, allowed / "../secret", Path(f"{allowed}x")):
        refused(create(daemon, "c1", devices=disk(source)), 403, "restricted.devices.disk.paths")
    assert create(daemon, "c1", devices=disk(allowed / "data"), start=True).status == 202
    assert daemon.lxc("exec", "c1", "--project", "web", "--", "cat", "/mnt/file").stdout == "data"
    daemon.lxc("stop", "-f", "c1", "--project", "web")
    (allowed / "data").rename(allowed / "moved")
    (allowed / "data").symlink_to("moved")
    daemon.lxc("start", "c1", "--project", "web")
    daemon.lxc("stop", "-f", "c1", "--project", "web")
    (allowed / "data").unlink()
    (allowed / "data").symlink_to("../secret")
    started = daemon.lxc("start", "c1", "--project", "web", check=False)
    assert (started.returncode, "'data'" in started.stderr, str(allowed) in started.stderr) == (1, True, True)


def test_a_profile_of_another_project_that_an_instance_may_not_take(daemon: Daemon) -> None:
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": {**SHARING, "restricted": "true"}})
    daemon.do("POST", "/1.0/profiles", {"name": "used"})
    disk = {"root": {"type": "disk", "path": "/", "pool": "default"}}
    body = {"name": "c1", "source": {"type": "none"}, "profiles": ["used"], "devices": disk}
    for project in ("web", "default"):
        daemon.do("POST", f"/1.0/instances?project={project}", body)
    reply = patch(daemon, "/1.0/profiles/used", security_nesting="true")
    refused(reply, 403, "Instance 'c1'", "Project 'web' does not allow nesting")
    assert daemon.get("/1.0/profiles/used")["config"] == {}
    for project in ("web", "default"):
        shown = daemon.get(f"/1.0/instances/c1?project={project}")
        assert "security.nesting" not in shown["expanded_config"]


def test_networks_that_a_project_does_not_see(daemon: Daemon) -> None:
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": {**SHARING, "restricted": "true"}})
    project, one = "/1.0/projects/web", "/1.0/networks/br?project=web"
    assert daemon.get("/1.0/networks?project=web") == ["/1.0/networks/br"]
    assert daemon.api("GET", "/1.0/networks/lo?project=web").status == 404
    for config in ({"restricted.networks.access": "other"}, {"restricted.devices.nic": "block"}):
        daemon.do("PATCH", project, {"config": config})
        assert daemon.get("/1.0/networks?project=web") == []
        for method, url in (
            ("GET", one),
            ("PATCH", one),
            ("DELETE", one),
            ("GET", "/1.0/networks/br/state?project=web"),
            ("GET", "/1.0/networks/br/leases?project=web"),
        ):
            body = {"description": "x"} if method == "PATCH" else None
            refused(daemon.api(method, url, body), 404, "Network 'br' not found")
        daemon.do("PATCH", project, {"config": {key: "" for key in config}})
    daemon.do("PATCH", project, {"config": {"restricted": "false"}})
    assert "/1.0/networks/lo" in daemon.get("/1.0/networks?project=web")
    daemon.do("PATCH", project, {"config": {"features.networks": "true", "limits.networks": "0"}})
    reply = daemon.api("POST", "/1.0/networks?project=web", {"name": "own0"})
    refused(reply, 403, "limits.networks=0")
    daemon.do("PATCH", project, {"config": {"limits.networks": "", "restricted": "true"}})
    script = {"raw.dnsmasq": "dhcp-script=/bin/true"}
    refused(
        daemon.api("POST", "/1.0/networks?project=web", {"name": "own0", "config": script}), 403, "raw.dns"
    )
    daemon.do("POST", "/1.0/networks?project=web", {"name": "own0", "config": {"ipv6.address": "none"}})
    own = "/1.0/networks/own0?project=web"
    refused(daemon.api("PATCH", own, {"config": script}), 403, "'web' does not allow 'raw.dnsmasq'")
    daemon.do("PATCH", project, {"config": {"restricted": "false"}})
    daemon.do("PATCH", own, {"config": {"ipv4.routes": "10.99.0.0/24"}})
    refused(patch(daemon, project, restricted="true"), 400, "Network 'own0'", "10.99.0.0/24")
    daemon.do("DELETE", own)
    assert daemon.api("GET", "/1.0/networks/own0").status == 404


def test_profiles_of_a_project_come_and_go_with_their_feature(daemon: Daemon) -> None:
    """Off, on and off again, each time those of `default` or an own, empty one (lxd#5153)."""
    project = "/1.0/projects/web"
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": {"features.images": "false"}})
    shared = daemon.get("/1.0/profiles/default")["devices"]
    for feature in ("false", "true", "false", "true"):
        daemon.do("PATCH", project, {"config": {"features.profiles": feature}})
        shown = daemon.get("/1.0/profiles/default?project=web")["devices"]
        assert shown == ({} if feature == "true" else shared)
        own = [url for url in daemon.get(project)["used_by"] if "/profiles/" in url]
        assert len(own) == (feature == "true")
        of_default = [] if feature == "true" else daemon.get("/1.0/profiles")
        assert len(daemon.get("/1.0/profiles?project=web")) == (len(of_default) or 1)
        if feature == "false":
            assert create(daemon, "c1").status == 202
            refused(patch(daemon, project, features_profiles="true"), 400, "'web' is not empty")
            daemon.do("DELETE", "/1.0/instances/c1?project=web")
        else:
            daemon.do("POST", "/1.0/profiles?project=web", {"name": "mine"})
            refused(patch(daemon, project, features_profiles="false"), 400, "'web' is not empty", "mine")
            daemon.do("DELETE", "/1.0/profiles/mine?project=web")
    daemon.do("DELETE", project)


def test_cached_image_is_deleted_with_its_project(daemon: Daemon, busybox_image: Image) -> None:
    """It does not keep an otherwise empty one from being deleted (lxd#17316, lxd#13507, lxd#5634)."""
    daemon.do("POST", "/1.0/projects", {"name": "web"})
    split = [str(busybox_image.metadata), str(busybox_image.rootfs)]
    daemon.lxc("image", "import", *split, "--project", "web")
    refused(daemon.api("DELETE", "/1.0/projects/web"), 400, "'web' is not empty", "images ")
    query = "UPDATE images SET cached = 1 WHERE project_id = (SELECT id FROM projects WHERE name = 'web')"
    daemon.do("POST", "/internal/sql", {"database": "global", "query": query})
    daemon.do("PATCH", "/1.0/projects/web", {"config": {"features.profiles": "false"}})
    assert daemon.get("/1.0/images?project=web") == []
    daemon.lxc("image", "import", *split, "--project", "web")
    daemon.do("POST", "/internal/sql", {"database": "global", "query": query})
    daemon.do("DELETE", "/1.0/projects/web")
    assert daemon.get("/1.0/projects") == ["/1.0/projects/default"]
    assert create(daemon, "c1", "default", start=True).status == 202, "the image's files are gone"


def test_lists_across_projects(daemon: Daemon, busybox_image: Image) -> None:
    config = {"features.networks": "true"}
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": config})
    split = [str(busybox_image.metadata), str(busybox_image.rootfs)]
    daemon.lxc("image", "import", *split, "--project", "web")
    daemon.do("POST", "/1.0/networks?project=web", {"name": "webbr", "config": {"ipv6.address": "none"}})
    for kind in ("profiles", "images", "networks"):
        found = daemon.get(f"/1.0/{kind}?all-projects=true&recursion=1")
        assert {record["project"] for record in found} == {"default", "web"}
        urls = daemon.get(f"/1.0/{kind}?all-projects=true")
        each = daemon.get(f"/1.0/{kind}") + daemon.get(f"/1.0/{kind}?project=web")
        assert {url.partition("?")[0] for url in each} >= {url.partition("?")[0] for url in urls}
        assert {url.partition("?")[2] for url in urls} == {"", "project=web"}
        assert len(set(urls)) == len(found)
        both = daemon.api("GET", f"/1.0/{kind}?all-projects=true&project=web")
        refused(both, 400, "project and all-projects are mutually exclusive")
        rows = utsuwa_client(daemon, kind[:-1], "list", "--all-projects", "-f", "csv").stdout.splitlines()
        assert {row.split(",")[0] for row in rows} == {"default", "web"}


def test_profiles_of_an_image_that_projects_share(daemon: Daemon) -> None:
    """Each project with its own profiles has its own list of them for the images of `default`."""
    config = {"features.images": "false"}
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": config})
    url = "/1.0/images/" + daemon.get("/1.0/images/aliases/busybox")["target"]
    assert daemon.get(f"{url}?project=web")["profiles"] == ["default"]
    daemon.do("POST", "/1.0/profiles?project=web", {"name": "own"})
    daemon.do("PATCH", f"{url}?project=web", {"profiles": ["own"]})
    assert daemon.get(f"{url}?project=web")["profiles"] == ["own"]
    assert daemon.get(url)["profiles"] == ["default"]
    root = {"root": {"type": "disk", "path": "/", "pool": "default"}}
    assert create(daemon, "c1", devices=root).status == 202
    assert daemon.get("/1.0/instances/c1?project=web")["profiles"] == ["own"]


def test_a_project_that_is_deleted_while_something_is_created_in_it(daemon: Daemon) -> None:
    """Either the one or the other succeeds, and nothing is left of what did not."""
    bodies: dict[str, dict[str, Any]] = {
        "instances": {"name": "c1", "source": {"type": "none"}},
        "profiles": {"name": "p1"},
        "networks": {"name": "webbr", "config": {"ipv4.address": "none", "ipv6.address": "none"}},
    }
    for kind, body in bodies.items():
        for _ in range(3):
            features = {**SHARING, "features.profiles": "true", "features.networks": "true"}
            if kind == "instances":
                features["features.profiles"] = "false"
            daemon.do("POST", "/1.0/projects", {"name": "web", "config": features})
            with ThreadPoolExecutor(2) as threads:
                made = threads.submit(daemon.api, "POST", f"/1.0/{kind}?project=web", body)
                gone = threads.submit(daemon.api, "DELETE", "/1.0/projects/web")
            if made.result().status == 202:
                daemon.wait(made.result())
            assert gone.result().status in (200, 400), gone.result().body
            there = daemon.api("GET", "/1.0/projects/web")
            if gone.result().status == 200:
                assert (there.status, made.result().status) == (404, 404)
                continue
            assert made.result().status in (201, 202), made.result().body
            (url,) = [one for one in there.metadata["used_by"] if body["name"] in one]
            daemon.do("DELETE", url)
            daemon.do("DELETE", "/1.0/projects/web")


@pytest.mark.parametrize("point", ["before delete project", "after update project"])
def test_a_daemon_that_is_killed_while_it_changes_a_project(
    daemon: Daemon, faults: Faults, point: str
) -> None:
    daemon.do("POST", "/1.0/projects", {"name": "web"})
    before = daemon.get("/1.0/projects/web")
    with faults.kill_at(daemon, point):
        if "update" in point:
            daemon.do("PATCH", "/1.0/projects/web", {"config": {"features.profiles": "false"}})
        else:
            daemon.do("DELETE", "/1.0/projects/web")
    if point == "before delete project":
        assert daemon.get("/1.0/projects/web") == before
    else:
        assert daemon.get("/1.0/projects/web")["config"]["features.profiles"] == "false"
        assert daemon.get("/1.0/profiles/default?project=web")["project"] == "default"
