"""Utsuwa in a container of Utsuwa: layers without id-mapped mounts, ids, checks, and three levels."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.nested import ENVIRONMENT, PREPARE, SHOWN, START_DAEMON, Outer
from utsuwa.security.idmap import NESTING, USEFUL

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

POOL = "/var/lib/utsuwa/storage-pools/default"
CHANGE = (
    "mkdir -p /d/e && echo 1 >/d/e/f && ln /d/e/f /d/e/g && chown -R 1000:1000 /d/e && "
    "rm -r /home/user && mkdir /home/user && mv /mnt /moved && rm /linuxrc"
)
SHOW = (
    "stat -c %A:%u:%g:%n / /d/e /moved /home/user && stat -c %h:%u:%n /d/e/* && cat /d/e/f && "
    "ls -a /home/user /mnt /linuxrc 2>&1 | sort"
)


@pytest.fixture(scope="module")
def host(busybox_image: Image) -> Iterator[Daemon]:
    with boxed_daemon() as daemon:
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        yield daemon


def ready(daemon: Daemon, image: Image, name: str, **config: str) -> Outer:
    """Start a container in which a daemon has a pool `default` and the image `busybox`."""
    outer = Outer(daemon, name, **config)
    outer.start_daemon()
    outer.run("utsuwad init --auto")
    assert image.unified is not None
    daemon.lxc("file", "push", str(image.unified), f"{name}/root/busybox.tar.xz")
    outer.run("utsuwa image import /root/busybox.tar.xz --alias busybox")
    return outer


@pytest.fixture(scope="module")
def outer(host: Daemon, busybox_image: Image) -> Outer:
    return ready(host, busybox_image, "outer")


def inside(outer: Outer, instance: str, script: str) -> str:
    return outer.run(f"utsuwa exec {instance} -- sh -c '{script}'")


def forms(outer: Outer) -> int:
    """Return of how many copies of images the pool consists."""
    return len(outer.run(f"ls {POOL}/images").split())


def record(outer: Outer, instance: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outer.run(f"cat {POOL}/containers/{instance}/volume.json"))
    return found


def test_the_copy_of_the_image_outlasts_its_only_instance(outer: Outer) -> None:
    outer.run("utsuwa launch busybox first")
    copies = outer.run(f"stat -c %i {POOL}/images/*")
    assert forms(outer) == 2
    outer.run("utsuwa delete --force first && utsuwa launch busybox second")
    assert outer.run(f"stat -c %i {POOL}/images/*") == copies
    outer.run("utsuwa delete --force second")


def test_instances_share_one_copy_of_the_image(outer: Outer) -> None:
    for name in ("a1", "a2"):
        outer.run(f"utsuwa launch busybox {name}")
    assert outer.run("utsuwa storage show default | grep -c overlay").strip() != "0"
    assert "userxattr" in outer.run(f"grep {POOL}/containers/a1/rootfs /proc/mounts")
    assert forms(outer) == 2
    assert record(outer, "a1")["owners"] == record(outer, "a2")["owners"]
    assert inside(outer, "a1", "stat -c %u:%g / /bin /home/user").split() == ["0:0", "0:0", "1000:1000"]
    used = outer.run(f"du -skx {POOL}/containers/a2")
    assert int(used.split()[0]) < 100, "KiB of its own"


def test_what_is_deleted_stays_deleted_in_snapshots_and_copies(outer: Outer) -> None:
    outer.run("utsuwa launch busybox b1")
    inside(outer, "b1", CHANGE)
    shown = inside(outer, "b1", SHOW)
    assert "No such file" in shown
    outer.run("utsuwa snapshot b1 running")
    outer.run("utsuwa stop --force b1 && utsuwa snapshot b1 stopped && utsuwa start b1")
    inside(outer, "b1", "rm -r /d /moved; echo x >/linuxrc; mkdir /mnt")
    for snapshot in ("running", "stopped"):
        outer.run(f"utsuwa copy b1/{snapshot} copy && utsuwa start copy")
        assert inside(outer, "copy", SHOW) == shown
        assert record(outer, "copy")["image"] is not None
        outer.run("utsuwa delete --force copy")
    outer.run("utsuwa restore b1 running")
    assert inside(outer, "b1", SHOW) == shown


def test_a_chain_of_layers_is_merged(outer: Outer) -> None:
    """More snapshots than there may be layers: deletions must survive their merging."""
    outer.run("utsuwa init busybox c1 && utsuwa start c1")
    inside(outer, "c1", CHANGE)
    shown = inside(outer, "c1", SHOW)
    for number in range(11):
        inside(outer, "c1", f"echo {number} >/root/{number}")
        outer.run(f"utsuwa stop --force c1 && utsuwa snapshot c1 s{number} && utsuwa start c1")
    assert inside(outer, "c1", SHOW) == shown
    assert len(inside(outer, "c1", "ls /root").split()) == 11
    assert len(record(outer, "c1")["layers"]) < 9


def test_other_ids_than_those_of_the_layers(outer: Outer) -> None:
    """An isolated instance has a copy of its own of the image, and becomes whole as a copy of another one."""
    outer.run("utsuwa launch busybox d1 && utsuwa launch busybox d2 -c security.idmap.isolated=true")
    inside(outer, "d1", CHANGE)
    shown = inside(outer, "d1", SHOW)
    assert record(outer, "d1")["owners"] != record(outer, "d2")["owners"]
    assert forms(outer) == 3
    outer.run("utsuwa copy d1 d3 -c security.idmap.isolated=true && utsuwa start d3")
    assert inside(outer, "d3", SHOW) == shown
    assert record(outer, "d3")["image"] is None
    outer.run("utsuwa delete --force d2 && utsuwa launch busybox d4 -c security.idmap.isolated=true")
    assert forms(outer) == 3, "a copy for ids that nobody uses was kept"


def test_an_instance_is_published(outer: Outer) -> None:
    outer.run("utsuwa init busybox e1 && utsuwa start e1")
    inside(outer, "e1", CHANGE)
    shown = inside(outer, "e1", SHOW)
    outer.run("utsuwa stop --force e1 && utsuwa publish e1 --alias published && utsuwa launch published e2")
    assert inside(outer, "e2", SHOW) == shown
    assert record(outer, "e1")["image"] is not None
    outer.run("utsuwa start e1")
    assert inside(outer, "e1", SHOW) == shown


def test_templates_are_rendered_in_a_process_of_their_own(outer: Outer) -> None:
    """Whose namespaces, root and user can be had in a container, too."""
    metadata = {"templates": {"/etc/greeting": {"when": ["start"], "template": "x.tpl"}}}
    outer.run(
        "utsuwa init busybox t1 && utsuwa config template create t1 x.tpl && "
        "echo '{{ container.name|upper }}' | utsuwa config template edit t1 x.tpl && "
        f"utsuwa query -X PATCH -d '{json.dumps(metadata)}' /1.0/instances/t1/metadata && utsuwa start t1"
    )
    assert inside(outer, "t1", "cat /etc/greeting") == "T1\n"


def test_a_killed_daemon_leaves_its_instances_running(outer: Outer) -> None:
    outer.run("utsuwa launch busybox f1")
    pid = outer.run("utsuwa info f1 | grep -i pid")
    outer.kill_daemon()
    outer.start_daemon()
    assert outer.run("utsuwa info f1 | grep -i pid") == pid
    outer.run("utsuwa restart --force f1")
    assert inside(outer, "f1", "cat /etc/hostname").strip() == "f1"


def test_the_check_judges_as_in_a_container(outer: Outer) -> None:
    said = json.loads(outer.attempt("utsuwad check --format json").stdout)
    found = {requirement["name"]: requirement for requirement in said["requirements"]}
    assert found["overlay"]["status"] == "found"
    assert found["squashfs on loop devices"]["remedy"] == "none inside a container"
    assert "copied once for each id map" in found["overlay of idmapped layers"]["cost"]


def test_the_capabilities_that_docker_passes_on(outer: Outer) -> None:
    last = int(outer.run("cat /proc/sys/kernel/cap_last_cap"))
    (bounds,) = outer.run("grep CapBnd /proc/1/status").split()[1:]
    assert int(bounds, 16) == 2 ** (last + 1) - 1


def test_an_isolated_container_has_ids_for_containers(host: Daemon, busybox_image: Image) -> None:
    """Root's usual range does not lie within its ids, so another one is suggested, and works."""
    outer = ready(host, busybox_image, "isolated", security__idmap__isolated="true")
    try:
        assert outer.run("cat /etc/subuid").strip() == f"root:{USEFUL}:{NESTING - USEFUL}"
        outer.run("utsuwa launch busybox g1")
        assert inside(outer, "g1", "cat /proc/self/uid_map").split() == [
            "0",
            str(USEFUL),
            str(NESTING - USEFUL),
        ]
    finally:
        host.lxc("delete", "--force", "isolated")


def test_a_third_level(outer: Outer) -> None:
    folders = " && ".join(
        f"utsuwa config device add middle shown{number} disk source={folder} path={folder} readonly=true"
        for number, folder in enumerate(SHOWN)
    )
    outer.run(
        f"utsuwa init busybox middle -c security.nesting=true && {folders} && "
        "utsuwa config device add middle state disk source=instance:utsuwa path=/var/lib/utsuwa && "
        "utsuwa start middle && utsuwa file push /root/busybox.tar.xz middle/root/"
    )

    def in_middle(script: str) -> str:
        command = shlex.join(["utsuwa", "exec", "middle", *ENVIRONMENT, "--", "sh", "-c", script])
        return outer.run(command)

    in_middle(PREPARE)
    in_middle(START_DAEMON)
    in_middle("utsuwad init --auto && utsuwa image import /root/busybox.tar.xz --alias busybox")
    in_middle("utsuwa launch busybox inner")
    assert in_middle("utsuwa exec inner -- cat /etc/hostname").strip() == "inner"
    assert "userxattr" in in_middle("grep inner/rootfs /proc/mounts")
