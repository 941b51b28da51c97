"""The host's NVIDIA libraries in instances, with a program in place of NVIDIA's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import NetBox

pytestmark = pytest.mark.root

FOLDER = "/usr/local/sbin"
"""In the daemon's mount namespace, an empty file system of the test."""
CLI = f"{FOLDER}/nvidia-container-cli"
CALLS = f"{FOLDER}/calls"
CONFIG = {
    "nvidia.runtime": "true",
    "nvidia.driver.capabilities": "utility,video",
    "nvidia.require.cuda": "cuda>=12.0",
}


@pytest.fixture(scope="module")
def d(busybox_image: Image) -> Iterator[Daemon]:
    with boxed_daemon() as daemon:
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        box_of(daemon).run("mount", "-t", "tmpfs", "-o", "mode=1777", "none", FOLDER)
        try:
            yield daemon
        finally:
            box_of(daemon).run("umount", FOLDER)


def box_of(daemon: Daemon) -> NetBox:
    assert daemon.box is not None
    return daemon.box


def install(daemon: Daemon, script: str) -> None:
    box_of(daemon).run("sh", "-ec", f"cat >{CLI}; chmod 755 {CLI}", input=f"#!/bin/sh\n{script}\n")


@pytest.fixture
def c1(d: Daemon) -> Iterator[str]:
    d.do(
        "POST",
        "/1.0/instances",
        {"name": "c1", "source": {"type": "image", "alias": "busybox"}, "config": CONFIG},
    )
    yield "c1"
    d.delete_instances()
    box_of(d).run("rm", "-f", CLI, CALLS)


def test_a_host_without_the_program_refuses_the_start(d: Daemon, c1: str) -> None:
    refused = d.lxc("start", c1, check=False).stderr
    assert "needs the program nvidia-container-cli" in refused
    assert "libnvidia-container-tools, or unset the key" in refused
    d.lxc("config", "unset", c1, "nvidia.runtime")
    d.lxc("start", c1)
    d.lxc("config", "set", c1, "nvidia.runtime", "true")
    assert "was not stopped because" in d.lxc("restart", "-f", c1, check=False).stderr
    assert d.get(f"/1.0/instances/{c1}")["status"] == "Running"


def test_the_program_is_told_what_to_mount(d: Daemon, c1: str) -> None:
    install(d, f'echo "$@" >>{CALLS}')
    d.lxc("start", c1)
    called = box_of(d).run("cat", CALLS).split()
    assert called[:2] == ["--user", "configure"]
    assert {"--utility", "--video", "--require=cuda>=12.0"} <= set(called)
    assert not any(word.startswith("--device") for word in called)


@pytest.mark.parametrize("name", ["BASH_ENV", "LD_PRELOAD", "PATH", "NVIDIA_VISIBLE_DEVICES"])
def test_no_variable_of_the_instance_reaches_the_program(d: Daemon, c1: str, name: str) -> None:
    reply = d.api("PATCH", f"/1.0/instances/{c1}", {"config": {f"environment.{name}": "all"}})
    assert (reply.status, "cannot be set with 'nvidia.runtime'" in reply.error) == (400, True)
    d.do("PATCH", f"/1.0/instances/{c1}", {"config": {"environment.LANG": "C.UTF-8"}})


def test_a_program_that_fails_fails_the_start(d: Daemon, c1: str) -> None:
    install(d, "exit 1")
    refused = d.lxc("start", c1, check=False).stderr
    assert "Failed to run mount hooks" in refused
    assert "look whether `nvidia-container-cli info` succeeds on the host" in refused


def test_privileged_instances_cannot_have_them(d: Daemon, c1: str) -> None:
    reply = d.api("PATCH", f"/1.0/instances/{c1}", {"config": {"security.privileged": "true"}})
    assert (reply.status, "'nvidia.runtime' is for unprivileged instances only" in reply.error) == (400, True)
