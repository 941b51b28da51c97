"""Killing the processes of a container: only what is in its cgroups."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.instances.lifecycle import orphans

pytestmark = pytest.mark.root


@contextmanager
def sleeping_in(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a cgroup of this name below the own one; without a name, in the own one."""
    own = cgroups.own_folder()
    assert own is not None
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(["sleep", "infinity"]))
        stack.callback(process.kill)
        if name:
            folder = own / name
            folder.mkdir()
            stack.callback(folder.rmdir)
            stack.callback(process.wait)
            stack.callback(process.kill)
            cgroups.write(folder / "cgroup.procs", str(process.pid))
        yield process


async def test_processes_of_the_container_are_killed() -> None:
    with sleeping_in("lxc.payload.c1") as process:
        await orphans.kill_container("c1", process.pid)
        assert process.wait(60) < 0


@pytest.mark.parametrize("name", ["lxc.payload.c2", "lxc.payload.c11", ""])
async def test_other_processes_are_left_alone(name: str) -> None:
    """Such as one that has got the pid of the container's init since that has ended."""
    with sleeping_in(name) as process:
        await orphans.kill_container("c1", process.pid)
        assert process.poll() is None


def test_a_failed_start_leaves_an_instance_alone_whose_name_is_longer(
    module_daemon: Daemon, busybox_image: Image
) -> None:
    """Its cgroup is called as a second one of the other instance would be."""
    d = module_daemon
    d.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    d.lxc("launch", "busybox", "web-1")
    pid = d.get("/1.0/instances/web-1/state")["pid"]
    d.lxc("init", "busybox", "web", "-c", "raw.lxc=lxc.init.cmd = /missing")
    assert "Error" in d.lxc("start", "web", check=False).stderr
    assert d.lxc("exec", "web-1", "--", "echo", "runs").stdout == "runs\n"
    assert d.get("/1.0/instances/web-1/state")["pid"] == pid
    d.delete_instances()
