"""Sessions of the helper for mounts: for one container after the other, and killed if they hang."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.netbox import until
from utsuwa.core.errors import HostError
from utsuwa.host.helper import mounting
from utsuwa.host.helper import session as sessions
from utsuwa.host.helper.client import Helper
from utsuwa.host.helper.mounting import InnerPath
from utsuwa.host.mounts.detached import copy_of
from utsuwa.host.processes.pidfds import Process

pytestmark = pytest.mark.root

UID, GID = 100_000, 100_001
INSIDE = "mount -t tmpfs none {folder} && echo ready && exec sleep 1000"


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep sessions for as long as a test may take on a busy machine."""
    monkeypatch.setattr(mounting, "IDLE_SECONDS", 600)


@contextmanager
def namespace(folder: Path, script: str = INSIDE) -> Iterator[Process]:
    """A process in a mount namespace of its own, with an empty file system at a folder."""
    folder.mkdir(exist_ok=True)
    words = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script.format(folder=folder))
    with subprocess.Popen(words, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == b"ready\n"
            process = Process(started.pid)
            yield process
            process.close()
        finally:
            started.kill()


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[InnerPath]:
    """A place in such a namespace, on which nothing is mounted, and which does not exist."""
    with namespace(tmp_path / "in") as init:
        yield InnerPath(init, f"{tmp_path}/in/some/place", UID, GID)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    """A detached mount of a directory."""
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown/file").write_text("shown")
    tree = copy_of(tmp_path / "shown")
    yield tree
    os.close(tree)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def seen(path: InnerPath) -> Path:
    return Path(f"/proc/{path.init.pid}/root{path.path}")


def idle(helper: Helper) -> list[int]:
    """The workers of sessions that are kept."""
    return [pid_of(session._worker) for session in helper.mounting._idle]


def pid_of(pidfd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    (pid,) = [int(line.split()[1]) for line in lines if line.startswith("Pid:")]
    return pid


@pytest.fixture
async def worker(helper: Helper, inside: InnerPath) -> AsyncIterator[Process]:
    """The worker of the only session, which has served a container."""
    assert not await helper.mounting.mounted(inside)
    (pid,) = idle(helper)
    worker = Process(pid)
    yield worker
    worker.close()


def namespace_of(process: int | str) -> str:
    return str(Path(f"/proc/{process}/ns/mnt").readlink())


def state_of(worker: Process) -> tuple[str, str, str, str, list[str], str, list[str]]:
    """What a worker could keep of a container: namespace, root, directory, privileges, and files."""
    process = Path(f"/proc/{worker.pid}")
    links = [str((process / name).readlink()) for name in ("ns/mnt", "root", "cwd")]
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    files = sorted(str(file.readlink()) for file in (process / "fd").iterdir())
    ids = [status["Uid"], status["Gid"]]
    return links[0], links[1], links[2], status["CapEff"], ids, status["Groups"], files


async def test_one_worker_serves_all_containers(
    helper: Helper, worker: Process, inside: InnerPath, tree: int, tmp_path: Path
) -> None:
    before = state_of(worker)
    assert before[0] == namespace_of("self")
    assert before[4] == ["0\t0\t0\t0", "0\t0\t0\t0"]
    await helper.mounting.mount(inside, tree)
    assert (seen(inside) / "file").read_text() == "shown"
    created = seen(inside).parent.stat()
    assert (created.st_uid, created.st_gid) == (UID, GID)
    with namespace(tmp_path / "in") as init:
        other = InnerPath(init, f"{tmp_path}/in/file", 0, 0)
        file = copy_of(tmp_path / "shown/file")
        await helper.mounting.mount(other, file)
        os.close(file)
        assert seen(other).read_text() == "shown"
        assert not await helper.mounting.mounted(InnerPath(init, inside.path, UID, GID))
        assert await helper.mounting.unmount(other, remove_file=True)
        assert not seen(other).exists()
    assert await helper.mounting.mounted(inside)
    assert await helper.mounting.unmount(inside)
    assert not await helper.mounting.unmount(inside)
    assert list(seen(inside).iterdir()) == []
    assert idle(helper) == [worker.pid]
    assert state_of(worker) == before


async def test_a_worker_that_was_refused_something_has_left_the_container(
    helper: Helper, worker: Process, inside: InnerPath, tree: int
) -> None:
    before = state_of(worker)
    seen(inside).parent.mkdir()
    seen(inside).write_text("in the way")
    with pytest.raises(HostError, match="a file, not a directory"):
        await helper.mounting.mount(inside, tree)
    seen(inside).unlink()
    seen(inside).symlink_to("/proc/self/root")
    with pytest.raises(HostError, match="symbolic links"):
        await helper.mounting.mount(inside, tree)
    assert idle(helper) == [worker.pid]
    assert state_of(worker) == before


async def test_a_container_that_has_ended(helper: Helper, inside: InnerPath, tree: int) -> None:
    os.kill(inside.init.pid, 9)
    await asyncio.to_thread(until, lambda: inside.init.ended)
    with pytest.raises(ProcessLookupError):
        await helper.mounting.mount(inside, tree)


async def test_a_lost_worker_is_replaced(
    helper: Helper, worker: Process, inside: InnerPath, tree: int
) -> None:
    os.kill(worker.pid, 9)
    await asyncio.to_thread(until, lambda: worker.ended)
    await helper.mounting.mount(inside, tree)
    assert await helper.mounting.mounted(inside)
    assert worker.pid not in idle(helper)


async def test_calls_at_the_same_time_have_workers_of_their_own(helper: Helper, inside: InnerPath) -> None:
    found = await asyncio.gather(*(helper.mounting.mounted(inside) for _ in range(8)))
    assert found == [False] * 8
    assert len(idle(helper)) == mounting.MAX_IDLE


async def test_unused_workers_end(
    helper: Helper, worker: Process, inside: InnerPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounting, "IDLE_SECONDS", 0.05)
    await helper.mounting.mounted(inside)
    await asyncio.to_thread(until, lambda: worker.ended)
    assert idle(helper) == []
    assert not await helper.mounting.mounted(inside)


async def test_no_worker_outlives_the_helper(inside: InnerPath) -> None:
    helper = Helper()
    await helper.start()
    before = descriptors()
    await asyncio.gather(*(helper.mounting.mounted(inside) for _ in range(3)))
    workers = [Process(pid) for pid in idle(helper)]
    await helper.close()
    assert all(worker.ended for worker in workers)
    for worker in workers:
        worker.close()
    assert descriptors() < before  # the helper's own are closed as well


DEAF = """exec python3 -c '
import ctypes, os, signal
server = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % server
assert ctypes.CDLL(None).mount(b"none", b"{folder}", b"fuse", 0, options) == 0
print("ready", flush=True)
signal.pause()
'"""
"""Mounts a FUSE file system whose server never answers."""


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[InnerPath]:
    with namespace(tmp_path / "deaf", DEAF) as init:
        yield InnerPath(init, f"{tmp_path}/deaf/place", UID, GID)


async def test_a_worker_that_hangs_is_killed(
    helper: Helper, worker: Process, inside: InnerPath, deaf: InnerPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sessions, "CALL_TIMEOUT", 0.2)
        with pytest.raises(HostError, match=r"did not respond within 0\.2 s"):
            await helper.mounting.mounted(deaf)
    assert worker.ended
    assert not await helper.mounting.mounted(inside)


async def test_a_cancelled_call_ends_its_worker(helper: Helper, worker: Process, deaf: InnerPath) -> None:
    call = asyncio.create_task(helper.mounting.mounted(deaf))
    await asyncio.sleep(0)
    await asyncio.to_thread(until, lambda: namespace_of(worker.pid) != namespace_of("self"))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert worker.ended
    assert idle(helper) == []
