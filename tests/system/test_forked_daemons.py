"""The daemons of fixtures are forked (`tests/support/forks.py`), and are like those that are started."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.daemon import Daemon
from tests.support.netbox import NetBox
from utsuwa.core.threads import in_thread

pytestmark = pytest.mark.root


@pytest.fixture
def box() -> Iterator[NetBox]:
    made = NetBox()
    yield made
    made.close()


def described(daemon: Daemon) -> dict[str, object]:
    """What a process inherits, or its starter sets, apart from what is the daemon's own."""
    here = Path("/proc", str(daemon.pid))

    def own(text: str) -> str:
        return text.replace(str(daemon.home), "HOME")

    status = dict(line.split(":\t", 1) for line in (here / "status").read_text().splitlines())
    return {
        **{key: status[key] for key in ("Uid", "Gid", "Groups", "Umask", "SigBlk", "SigIgn", "SigCgt")},
        "leads a session": os.getsid(daemon.pid) == daemon.pid,
        "cwd": str((here / "cwd").readlink()),
        "namespaces": {name: str((here / "ns" / name).readlink()) for name in ("net", "mnt", "pid", "user")},
        "limits": (here / "limits").read_text(),
        "cgroup": (here / "cgroup").read_text(),
        "command": [word for word in (here / "cmdline").read_bytes().split(b"\0") if word],
        "shows its directory": f"UTSUWA_DIR={daemon.dir}".encode()
        in (here / "environ").read_bytes().split(b"\0"),
        "output": {own(str((here / "fd" / str(number)).readlink())) for number in (1, 2)},
        # not how many: connections come and go
        "open": sorted({re.sub(r"\d+", "N", own(target)) for target in leaks.open_files(daemon.pid)}),
    }


@pytest.mark.parametrize("boxed", [False, True])
def test_a_forked_daemon_is_like_one_that_was_started(box: NetBox, boxed: bool) -> None:
    before, soft = os.umask(0o027), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (700, soft[1]))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, soft)
        stack.callback(os.umask, before)
        found = []
        for warm in (True, False):
            daemon = Daemon(warm=warm, box=box if boxed else None)
            stack.callback(daemon.close)
            daemon.start()
            found.append(described(daemon))
            assert daemon.stop() == 0
    assert found[0] == found[1]


def test_its_end_is_seen() -> None:
    daemon = Daemon()
    daemon.start()
    process, pid = daemon.process, daemon.pid
    assert process is not None
    assert process.poll() is None
    assert pid in {found for found, _ in leaks.processes_of(daemon.home)}
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL == process.poll()
    assert not Path("/proc", str(pid)).exists()
    daemon.start()
    assert daemon.close() == []


def test_its_end_is_seen_by_several_threads() -> None:
    daemon = Daemon()
    for _ in range(5):
        daemon.start()
        process = daemon.process
        assert process is not None
        with ThreadPoolExecutor(4) as threads:
            codes = [threads.submit(process.wait, 60) for _ in range(3)]
            process.kill()
            assert process.wait(60) == -signal.SIGKILL
            assert [code.result() for code in codes] == [-signal.SIGKILL] * 3
        daemon.process = None
    daemon.start()
    assert daemon.close() == []


def test_a_forked_process_starts_threads_of_its_own() -> None:
    """Those of its parent, and what is queued for them, do not exist there."""

    async def work() -> int:
        return await in_thread(int, "42")

    assert asyncio.run(work()) == 42
    child = os.fork()
    if not child:
        try:
            os._exit(asyncio.run(asyncio.wait_for(work(), 20)))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
