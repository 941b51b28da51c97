"""Commands that get the confinement that liblxc gave the first one: it must be just the same."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.system.test_helper import Box, attach, output, processes, until
from utsuwa.core.errors import HostError
from utsuwa.host.helper.client import AttachCache, Helper
from utsuwa.host.processes.pidfds import Process

pytestmark = pytest.mark.root

POLICY = "2\ndenylist\n[all]\nswapon errno 38\nreboot errno 1\n"
LOOK = """
grep -E '^(Uid|Gid|Groups|Cap|NoNew|Seccomp|SigBlk|SigIgn|SigCgt)' /proc/self/status
cat /proc/self/cgroup /proc/self/personality /proc/self/limits
for n in cgroup ipc mnt net pid time user uts; do ls -l /proc/self/ns/$n | sed 's/.*->//'; done
env; pwd; umask; ls /proc/self/fd; cat /proc/self/attr/apparmor/current 2>/dev/null || true
"""


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    for name in ("grep", "sed", "swapon", "sleep"):
        link = made.folder / "rootfs/bin" / name
        if not link.is_symlink():
            link.symlink_to("busybox")
    policy = made.folder / "seccomp"
    policy.write_text(POLICY)
    made.write_conf(
        f"lxc.seccomp.profile = {policy}", "lxc.cap.drop = sys_time net_raw", "lxc.net.0.type = empty"
    )
    yield made
    made.remove()


@pytest.fixture
async def cache(box: Box, helper: Helper) -> AsyncIterator[AttachCache]:
    await box.start()
    pid = await helper.init_pid(box.name, box.lxcpath)
    assert pid is not None
    init = Process(pid)
    yield AttachCache(init)
    init.close()
    await box.stop(helper)


Seen = tuple[int, int | None, str]


async def look(helper: Helper, box: Box, cache: AttachCache, uid: int, gid: int) -> Seen:
    """What a command is and may do, as it sees itself."""
    limits = [(7, 99, 100)]
    return await output(
        helper, box, "sh", "-c", LOOK, cache=cache, uid=uid, gid=gid, cwd="/root", rlimits=limits
    )


@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (5, 6)])
async def test_later_commands_have_the_same_confinement(
    box: Box, helper: Helper, cache: AttachCache, uid: int, gid: int
) -> None:
    seen = []
    for _ in range(3):
        seen.append(await look(helper, box, cache, uid, gid))
        assert cache.confinement is not None
    assert seen[0][0] == 0
    assert seen[1] == seen[2] == seen[0]
    said = seen[0][2]
    assert "Seccomp:\t2\n" in said
    assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in said
    assert "container=lxc" in said
    (bounding,) = [line.split()[1] for line in said.splitlines() if line.startswith("CapBnd")]
    assert not int(bounding, 16) >> 13 & 1  # net_raw
    assert not int(bounding, 16) >> 25 & 1  # sys_time


async def test_helper_can_always_use_liblxc(box: Box, helper: Helper, cache: AttachCache) -> None:
    """Nothing is read back then, and commands are the same."""
    switched = Helper(always_by_liblxc=True)
    await switched.start()
    try:
        seen = [await look(switched, box, cache, 5, 6) for _ in range(2)]
        assert (cache.confinement, cache.untried) == (None, True)
        await look(helper, box, cache, 5, 6)
        assert cache.confinement is not None
        assert await look(helper, box, cache, 5, 6) == seen[0] == seen[1]
    finally:
        await switched.close()


async def test_the_filter_is_the_same(box: Box, helper: Helper, cache: AttachCache) -> None:
    """Seen by what it does, and by what is learned of a process that has entered."""
    for _ in range(2):
        code, _, said = await output(helper, box, "sh", "-c", "swapon /root 2>&1", cache=cache)
        assert code != 0
        assert "Function not implemented" in said
    assert cache.confinement is not None
    filters = cache.confinement["filters"]
    assert isinstance(filters, list)
    assert len(filters) == 1


async def test_signals_and_the_end_of_a_session(box: Box, helper: Helper, cache: AttachCache) -> None:
    for seconds in ("71301", "71302"):
        attached, reading = await attach(helper, box, "sh", "-c", f"sleep {seconds} & wait", cache=cache)
        await until(lambda seconds=seconds: processes("sleep", seconds))  # type: ignore[misc]
        attached.close()
        await until(lambda seconds=seconds: not processes("sleep", seconds))  # type: ignore[misc]
        os.close(reading)
    attached, reading = await attach(helper, box, "sleep", "71303", cache=cache)
    await attached.signal(15)
    assert await asyncio.wait_for(attached.wait(), 5) == 128 + 15
    attached.close()
    os.close(reading)


async def test_the_reasons_of_failure(box: Box, helper: Helper, cache: AttachCache) -> None:
    for _ in range(2):
        assert await output(helper, box, "missing", cache=cache) == (127, 2, "")
        assert await output(helper, box, "/bin/not-executable", cache=cache) == (126, 13, "")
        assert await output(helper, box, "sh", "-c", "exit 9", cache=cache) == (9, None, "")


async def test_liblxc_is_used_again_if_a_cgroup_was_removed(
    box: Box, helper: Helper, cache: AttachCache
) -> None:
    await output(helper, box, "true", cache=cache)
    assert cache.confinement is not None
    cache.confinement = {**cache.confinement, "cgroups": ["/nonexistent"]}
    assert await output(helper, box, "id", "-u", cache=cache) == (0, None, "0\n")
    assert cache.confinement is None


async def test_attaching_to_an_ended_container_fails(box: Box, helper: Helper, cache: AttachCache) -> None:
    await output(helper, box, "true", cache=cache)
    await box.stop(helper)
    with pytest.raises(HostError):
        await output(helper, box, "true", cache=cache)


async def test_a_filter_that_the_kernel_refuses_is_never_left_out(
    box: Box, helper: Helper, cache: AttachCache
) -> None:
    await output(helper, box, "true", cache=cache)
    assert cache.confinement is not None
    cache.confinement = {**cache.confinement, "filters": ["ff" * 8]}
    code, failure, said = await output(helper, box, "id", cache=cache)
    assert (code, said) == (126, "")
    assert failure is not None


ENTER = """
import json, sys, time
from utsuwa.host.helper.confinement import ConfinedProcess
process = ConfinedProcess(json.loads(sys.argv[1]), int(sys.argv[2]))
def run(confine):
    confine()
    try:
        import colorsys
    except ImportError as error:
        print("inside:", error, flush=True)
    time.sleep(60)
process.fork(run)
time.sleep(60)
"""
"""It also tries to take code from the container's files."""
SPY = """
for p in /proc/[0-9]*; do
    case "$(cat $p/comm)" in python*) echo found; ls $p/fd; cat $p/environ; cat $p/mem ;; esac
done 2>&1
"""


async def test_helper_is_not_accessible_from_the_container(
    box: Box, helper: Helper, cache: AttachCache
) -> None:
    """What enters is the host's program until it executes: its files and memory stay closed to the inside."""
    await output(helper, box, "true", cache=cache)
    init = cache.init.fileno()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ENTER, json.dumps(cache.confinement), str(init)),
        pass_fds=(init,),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert (
            await asyncio.wait_for(process.stdout.readline(), 10) == b"inside: No module named 'colorsys'\n"
        )
        _, _, said = await output(helper, box, "sh", "-c", SPY, cache=cache)
        assert "found\n" in said
        assert [
            line for line in said.splitlines() if "found" not in line and "ermission denied" not in line
        ] == []
        assert said.count("ermission denied") == 3
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
