"""Killing the processes of a container: only what is in cgroups of its name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

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
