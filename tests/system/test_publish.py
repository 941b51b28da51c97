"""Publishing instances and snapshots as images, with Debian's `lxc` and the client `utsuwa`."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("dir_pool")]

FILES = r"""
cd /root
echo text > one; ln one two; chown 12:34 one; chmod 4755 one
dd if=/dev/zero of=sparse bs=1 count=0 seek=9000000 2>/dev/null
echo odd > "$(printf 'odd\377\nname')"; ln -s /nowhere link; mkfifo pipe
rm /etc/passwd; echo new > /etc/group
"""
LOOK = r"""
cd /root
stat -c '%n %u:%g %a %h %F %s' one two sparse "$(printf 'odd\377\nname')" link pipe
du -k sparse; readlink link; cat two; ls /etc/passwd; cat /etc/group
"""


@pytest.fixture
def d(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon; images that a test makes are deleted."""
    before = set(shared_daemon.get("/1.0/images"))
    yield shared_daemon
    for url in set(shared_daemon.get("/1.0/images")) - before:
        shared_daemon.do("DELETE", url)
    left = [path.name for path in (shared_daemon.dir / "images").iterdir() if path.name.startswith(".")]
    assert left == []


def seen(d: Daemon, name: str) -> str:
    return d.lxc("exec", name, "--", "sh", "-c", LOOK, check=False).stdout


def inside(d: Daemon, name: str, path: str) -> str:
    """A file of a running instance, as the host sees it."""
    return f"/proc/{d.get(f'/1.0/instances/{name}/state')['pid']}/root/{path}"


def image(d: Daemon, alias: str) -> dict[str, Any]:
    target = d.get(f"/1.0/images/aliases/{alias}")["target"]
    found: dict[str, Any] = d.get(f"/1.0/images/{target}")
    return found


def test_an_instance_of_the_published_image_has_all_files(d: Daemon, busybox: str, root_pool: str) -> None:
    """Hard links, holes, owners, modes, names and attributes; what was deleted above the image is gone.

    A symlink to nothing does not end it, and attributes may be large (lxd#2527, lxd#4239, lxd#11773).
    """
    d.lxc("launch", busybox, "c1", "-s", root_pool)
    d.lxc("exec", "c1", "--", "sh", "-c", FILES)
    large = os.urandom(3000)
    os.setxattr(inside(d, "c1", "root/two"), "user.large", large)
    before = seen(d, "c1")
    assert "text" in before
    d.lxc("snapshot", "c1", "s1")
    d.lxc("exec", "c1", "--", "rm", "/root/one")
    d.lxc("publish", "c1/s1", "--alias", "of-snapshot")
    d.lxc("stop", "-f", "c1")
    said = d.lxc("publish", "-q", "c1", "--alias", "of-instance", "--public", "os=Mine", "serial=7").stdout
    found = image(d, "of-instance")
    assert said == f"Instance published with fingerprint: {found['fingerprint']}\n"
    assert (found["public"], found["properties"]) == (True, {"os": "Mine", "serial": "7"})
    assert image(d, "of-snapshot")["properties"]["os"] == "BusyBox"
    d.lxc("launch", "of-snapshot", "c2", "-s", root_pool)
    assert seen(d, "c2") == before
    assert os.getxattr(inside(d, "c2", "root/two"), "user.large") == large
    assert d.lxc("exec", "c2", "hostname").stdout == "c2\n"
    d.lxc("launch", "of-instance", "c3", "-s", root_pool, "-c", "security.privileged=true")
    assert "text" in seen(d, "c3")
    assert "one 12:34" not in seen(d, "c3")


def test_the_image_describes_itself_when_it_is_exported(d: Daemon, busybox: str, tmp_path: Path) -> None:
    d.lxc("init", busybox, "c1")
    d.lxc("publish", "c1", "--alias", "one", "--compression", "none", "--expire", "2099-01-02T03:04:05Z")
    found = image(d, "one")
    assert found["expires_at"] == "2099-01-02T03:04:05Z"
    d.lxc("image", "export", "one", str(tmp_path / "image"))
    (file,) = tmp_path.iterdir()
    with tarfile.open(file) as archive:
        names = archive.getnames()
        content = yaml.safe_load(archive.extractfile("metadata.yaml") or b"")
    assert content["expiry_date"] == datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert content["architecture"] == found["architecture"]
    assert "/etc/hostname" in content["templates"]
    assert names[0] == "metadata.yaml"
    assert {"rootfs", "templates", "templates/hostname.tpl"} <= set(names)
    d.lxc("image", "delete", "one")
    d.lxc("image", "import", str(file), "--alias", "again")
    assert image(d, "again")["fingerprint"] == found["fingerprint"]


@pytest.mark.parametrize("compression", ["none", "zstd", "squashfs"])
def test_every_compression_can_be_launched(d: Daemon, busybox: str, compression: str) -> None:
    """Also with a file that ends with a hole."""
    d.lxc("launch", busybox, "c1")
    d.lxc("exec", "c1", "--", "sh", "-c", "echo text >/root/hole; truncate -s 300000 /root/hole")
    d.lxc("stop", "-f", "c1")
    d.lxc("publish", "c1", "--alias", "one", "--compression", compression)
    d.lxc("launch", "one", "c2")
    assert d.lxc("exec", "c2", "cat", "/etc/hostname").stdout.strip() == "c2"
    found = d.lxc("exec", "c2", "--", "sh", "-c", "stat -c %s /root/hole; head -c 4 /root/hole").stdout
    assert found == "300000\ntext"


def test_the_compression_is_that_of_project_or_server(d: Daemon, busybox: str) -> None:
    d.lxc("init", busybox, "c1")
    magic = {"zstd": b"\x28\xb5\x2f\xfd", "gzip": b"\x1f\x8b"}
    for scope in (["config"], ["project", "set", "default"], ["config"]):
        d.lxc("publish", "c1", "--alias", "one")
        file = d.dir / "images" / image(d, "one")["fingerprint"]
        expected = "gzip" if scope == ["config"] else "zstd"
        with file.open("rb") as opened:
            assert opened.read(4).startswith(magic[expected])
        d.lxc("image", "delete", "one")
        if scope == ["config"]:
            d.lxc("config", "set", "images.compression_algorithm", "zstd -1")
        else:
            d.lxc("project", "set", "default", "images.compression_algorithm", "gzip -1")
    d.lxc("config", "unset", "images.compression_algorithm")
    d.lxc("project", "unset", "default", "images.compression_algorithm")


@pytest.mark.parametrize(
    ("source", "more", "status", "why"),
    [
        ({}, {}, 400, "Unknown image source type"),
        ({"type": "instance"}, {}, 400, "Specify the name of the instance"),
        ({"type": "snapshot", "name": "c1"}, {}, 400, "Not a snapshot"),
        ({"type": "container", "name": "c1/s1"}, {}, 400, "This is a snapshot"),
        ({"type": "instance", "name": "nothing"}, {}, 404, "not found"),
        ({"type": "snapshot", "name": "c1/nothing"}, {}, 404, "not found"),
        (
            {"type": "instance", "name": "c1"},
            {"compression_algorithm": "cat /etc/shadow"},
            400,
            "must be one",
        ),
        ({"type": "instance", "name": "c1"}, {"compression_algorithm": "gzip -77"}, 400, "levels from 1"),
        ({"type": "instance", "name": "c1"}, {"compression_algorithm": "pigz"}, 400, "not installed"),
        ({"type": "instance", "name": "c1"}, {"aliases": [{"name": " x"}]}, 400, "Invalid image alias"),
        ({"type": "instance", "name": "c1"}, {"aliases": [{"name": "busybox"}]}, 409, "already exists"),
        ({"type": "instance", "name": "c1"}, {"properties": {"": "x"}}, 400, "Invalid image property"),
        ({"type": "instance", "name": "c1"}, {"profiles": ["nothing"]}, 404, "nothing"),
        ({"type": "instance", "name": "c1"}, {"expires_at": "soon"}, 400, "expires_at"),
    ],
)
def test_what_cannot_be_published_leaves_nothing(
    d: Daemon, busybox: str, source: dict[str, str], more: dict[str, Any], status: int, why: str
) -> None:
    if why == "not installed" and shutil.which("pigz"):
        pytest.skip("pigz is installed")
    before = d.get("/1.0/images")
    if "c1" not in str(d.get("/1.0/instances")):
        d.lxc("init", busybox, "c1")
    reply = d.api("POST", "/1.0/images", {"source": source, **more})
    if reply.status == 202:
        record = d.get(f"{reply.json['operation']}/wait")
        assert record["status_code"] == 400
        assert why in record["err"]
    else:
        assert (reply.status, why in reply.json["error"]) == (status, True), reply.json
    assert d.get("/1.0/images") == before


def test_a_running_instance_is_stopped_by_force_only(d: Daemon, busybox: str) -> None:
    d.lxc("launch", busybox, "c1", "--ephemeral")
    body = {"source": {"type": "instance", "name": "c1"}}
    assert "Cannot export a running instance" in d.api("POST", "/1.0/images", body).json["error"]
    for client in (d.lxc, lambda *words, **more: utsuwa_client(d, *words, **more)):
        refused = client("publish", "c1", check=False)
        assert refused.returncode != 0
        assert "Use --force to have it stopped and restarted" in refused.stderr
        client("publish", "c1", "--force", "--alias", "one")
        instance = d.get("/1.0/instances/c1")
        assert (instance["status"], instance["ephemeral"]) == ("Running", True)
        d.lxc("image", "delete", "one")


def test_the_client_publishes_with_its_flags(d: Daemon, busybox: str) -> None:
    d.lxc("init", busybox, "c1")
    utsuwa_client(d, "publish", "c1", "a=b=c", "--public", "--alias", "one", "--alias", "two")
    first = image(d, "one")
    assert (first["properties"], first["public"]) == ({"a": "b=c"}, True)
    d.lxc("file", "push", "/etc/hostname", "c1/root/more")
    said = utsuwa_client(
        *(d, "publish", "c1", "local:", "--reuse", "--alias", "two", "--compression", "zstd -1")
    ).stdout
    second = image(d, "two")
    assert said == f"Instance published with fingerprint: {second['fingerprint']}\n"
    assert d.api("GET", f"/1.0/images/{first['fingerprint']}").status == 404
    for words, why in (
        (["c1", "local:name"], 'There is no "image name"'),
        (["local:"], "Instance name is mandatory"),
        (["c1", "local:", "word"], "Bad key=value pair: word"),
        (["c1", "--compression", "rot13"], "must be one of"),
    ):
        assert why in utsuwa_client(d, "publish", *words, check=False).stderr


def test_publishing_is_cancelled_without_a_trace(d: Daemon, busybox: str) -> None:
    d.lxc("init", busybox, "c1")
    filled = d.dir / "storage-pools/default/containers/c1"
    d.lxc("start", "c1")
    d.lxc("exec", "c1", "--", "sh", "-c", "dd if=/dev/urandom of=/root/big bs=1M count=40 2>/dev/null")
    d.lxc("stop", "-f", "c1")
    body = {"source": {"type": "instance", "name": "c1"}, "compression_algorithm": "xz -9"}
    operation = d.api("POST", "/1.0/images", body).json["operation"]
    deadline = time.monotonic() + 30
    while "pack" not in str(record := d.get(operation)["metadata"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert record["create_image_from_container_pack_progress"].startswith("Image pack")
    assert d.api("DELETE", operation).status == 200
    assert d.get(f"{operation}/wait")["status"] == "Cancelled"
    assert not (filled / "rootfs/root/big").exists()  # unmounted again
    d.lxc("start", "c1")


def test_a_project_limits_what_is_published(d: Daemon, busybox: str) -> None:
    d.do("POST", "/1.0/projects", {"name": "p", "config": {"features.profiles": "false"}})
    d.lxc("init", "--project", "p", "--empty", "c1")
    d.lxc("profile", "device", "set", "default", "root", "size=10MiB")
    try:
        d.lxc("project", "set", "p", "limits.disk", "10MiB")
        refused = d.lxc("publish", "--project", "p", "c1", check=False)
        assert "has the limit limits.disk" in refused.stderr
        d.lxc("project", "set", "p", "limits.disk", "20MiB")
        d.lxc("publish", "--project", "p", "c1", "--alias", "in-p")
        assert d.get("/1.0/images/aliases/in-p?project=p")["name"] == "in-p"
        assert d.api("GET", "/1.0/images/aliases/in-p").status == 404
    finally:
        d.lxc("project", "unset", "p", "limits.disk")
        d.lxc("profile", "device", "unset", "default", "root", "size")
        d.delete_projects()


@pytest.fixture
def shifting(make_daemon: Callable[..., Daemon], faults: Faults) -> Iterator[Daemon]:
    """A daemon that can be killed at fault points, and shifts owners as it has no idmapped mounts."""
    daemon = make_daemon(env=faults.env | {"UTSUWA_IDMAPPED_MOUNTS_DISABLE": "1"})
    daemon.start()
    daemon.make_defaults()
    yield daemon
    assert daemon.close() == []


def test_owners_that_were_shifted_are_shifted_back_also_after_a_crash(
    shifting: Daemon, busybox_image: Image, faults: Faults, tmp_path: Path
) -> None:
    """A killed daemon has the image or none, and the instance stays a layer over its image."""
    d = shifting
    assert busybox_image.unified is not None
    d.import_image(busybox_image.unified, alias="bb")
    d.lxc("launch", "bb", "c1")
    d.lxc("exec", "c1", "--", "sh", "-c", "touch /root/mine; chown 1:2 /root/mine")
    d.lxc("stop", "-f", "c1")
    containers = d.dir / "storage-pools/default/containers"
    for point in ("image packed", "after put"):
        with faults.kill_at(d, point):
            d.api("POST", "/1.0/images", {"source": {"type": "instance", "name": "c1"}})
            faults.wait_for(point)
        assert len(d.get("/1.0/images")) == 1
        assert len(list((d.dir / "images").iterdir())) == 1
        assert [folder.name for folder in containers.iterdir()] == ["c1"]
    d.lxc("publish", "c1", "--alias", "one")
    assert [folder.name for folder in containers.iterdir()] == ["c1"]
    assert json.loads((containers / "c1/volume.json").read_text())["image"] is not None
    with tarfile.open(d.dir / "images" / image(d, "one")["fingerprint"]) as archive:
        owners = {member.name: (member.uid, member.gid) for member in archive}
    assert owners["rootfs/root/mine"] == (1, 2)
    assert {owner for name, owner in owners.items() if name.startswith("rootfs/bin")} == {(0, 0)}
    d.lxc("start", "c1")
    assert d.lxc("exec", "c1", "--", "stat", "-c", "%u:%g", "/root/mine").stdout == "1:2\n"
