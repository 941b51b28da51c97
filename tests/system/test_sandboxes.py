"""Sandboxes of the helper, in which layers are packed and unpacked: what they do and cannot reach."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.support.whole_trees import differences, tree
from utsuwa.core.errors import ProcessFailed
from utsuwa.host.helper import protocol
from utsuwa.host.helper import sandbox as sandbox_client
from utsuwa.host.helper.client import Helper
from utsuwa.host.helper.sandbox import Job, Sandbox
from utsuwa.host.helper.server import IDLE_WORKERS

pytestmark = pytest.mark.root

_NAMESPACES = ("mnt", "net", "ipc", "uts", "pid")
_ROOT = {"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "target"}
_READER, _WRITER = sum(1 << n for n in (1, 2)), sum(1 << n for n in (0, 1, 2, 3, 4, 27, 31))


@asynccontextmanager
async def told(helper: Helper, job: Job, place: Path) -> AsyncIterator[tuple[Sandbox, int, int]]:
    """Have a sandbox with a job, and the other ends of its input and its output."""
    reading, input = os.pipe2(os.O_CLOEXEC)
    output, writing = os.pipe2(os.O_CLOEXEC)
    sandbox = await helper.sandbox()
    try:
        await sandbox.tell(job, place, reading, writing)
        os.close(reading)
        os.close(writing)
        yield sandbox, input, output
    finally:
        await sandbox.end()
        for descriptor in (input, output):
            os.close(descriptor)


def children(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def descendants(pid: int) -> list[int]:
    return [one for child in children(pid) for one in (child, *descendants(child))]


def descendants_of(helper: Helper) -> list[int]:
    assert helper._process is not None
    return descendants(helper._process.pid)


def running(helper: Helper, name: str) -> list[int]:
    """Return the processes of the helper that run a program."""
    return [pid for pid in descendants_of(helper) if comm(pid) == name]


def comm(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def read_all(descriptor: int) -> bytes:
    def read() -> bytes:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read()

    return await asyncio.to_thread(read)


def entries(pid: int, folder: str) -> set[str]:
    return {path.name for path in Path(f"/proc/{pid}", folder).iterdir()}


def namespaces(pid: str) -> set[str]:
    return {str(Path(f"/proc/{pid}/ns", name).readlink()) for name in _NAMESPACES}


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_what_one_packs_another_one_unpacks(helper: Helper, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_bytes(os.urandom(300_000))
    os.chown(source / "folder" / "file", 1000, 2**31)
    async with told(helper, "send", source) as (sender, _, output):
        archive = await read_all(output)
        await sender.wait()
    async with told(helper, "receive", target) as (receiver, input, _):
        with os.fdopen(os.dup(input), "wb") as file:
            os.close(input)
            await asyncio.to_thread(file.write, archive)
        os.dup2(os.open(os.devnull, os.O_RDONLY), input)
        await receiver.wait()
    assert differences(tree(source), tree(target)) == []


@pytest.mark.parametrize(("job", "capabilities"), [("send", _READER), ("receive", _WRITER)])
async def test_the_tree_is_all_that_it_reaches(
    helper: Helper, tmp_path: Path, job: Job, capabilities: int
) -> None:
    (tmp_path / "file").write_bytes(bytes(8 * 2**20))  # more than a pipe takes: tar waits for its reader
    async with told(helper, job, tmp_path):
        await until(lambda: running(helper, "tar"))
        (tar,) = running(helper, "tar")
        first = int(status(tar)["PPid"])
        assert helper._process is not None
        for pid in (first, tar):
            for group in (os.getsid, os.getpgid):
                assert group(pid) != group(helper._process.pid)
            assert not namespaces(str(pid)) & namespaces("self")
            for kind in ("CapEff", "CapPrm", "CapBnd"):
                assert int(status(pid)[kind], 16) == capabilities
            assert (status(pid)["NoNewPrivs"], int(status(pid)["CapInh"], 16)) == ("1", 0)
            assert entries(pid, "root") <= _ROOT
            assert entries(pid, "root/target") == {"file"}
            mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
            options = {mount[4]: set(mount[5].split(",")) for mount in mounts}
            writable = {place for place, found in options.items() if "rw" in found}
            assert writable == ({"/target"} if job == "receive" else set())
            assert all({"nosuid", "nodev"} <= found for found in options.values())
        assert entries(first, "fd") == {"0", "1", "2"}


async def test_nothing_is_left_of_one_that_is_ended(helper: Helper, tmp_path: Path) -> None:
    async with told(helper, "receive", tmp_path):
        await until(lambda: running(helper, "tar"))
        (tar,) = running(helper, "tar")
    with suppress(FileNotFoundError, ProcessLookupError):
        assert entries(tar, "fd") == set()
    unused = await helper.sandbox()
    await until(lambda: len(descendants_of(helper)) > IDLE_WORKERS + 1)
    await unused.end()
    await until(lambda: len(descendants_of(helper)) == IDLE_WORKERS)


async def test_nothing_stays_open_if_the_caller_gives_up(
    helper: Helper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, made, view = threading.Event(), threading.Event(), list[int](), sandbox_client._view

    def slow_view(tree: Path, *, writable: bool) -> int:
        begun.set()
        assert go_on.wait(60)
        made.append(view(tree, writable=writable))
        return made[0]

    monkeypatch.setattr(sandbox_client, "_view", slow_view)
    sandbox = await helper.sandbox()
    telling = asyncio.create_task(sandbox.tell("send", tmp_path, 0, 1))
    assert await asyncio.to_thread(begun.wait, 60)
    telling.cancel()
    go_on.set()
    await asyncio.wait([telling])
    await sandbox.end()
    assert telling.cancelled()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])


async def test_the_reason_of_a_failure_is_told(helper: Helper, tmp_path: Path) -> None:
    async with told(helper, "receive", tmp_path) as (sandbox, input, _):
        os.write(input, b"x" * 512)
        os.dup2(os.open(os.devnull, os.O_RDONLY), input)
        with pytest.raises(ProcessFailed, match="does not look like a tar archive"):
            await sandbox.wait()
    async with told(helper, "receive", tmp_path) as (sandbox, _, _):
        await until(lambda: running(helper, "tar"))
        os.kill(int(status(running(helper, "tar")[0])["PPid"]), 9)
        with pytest.raises(ProcessFailed):
            await sandbox.wait()


async def test_the_reason_is_told_if_it_could_not_be_built(tmp_path: Path) -> None:
    async def fail(descriptors: Sequence[int]) -> socket.socket:
        lifeline, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lifeline.setblocking(False)
        with worker:
            os.write(descriptors[1], b"the sandbox cannot be set up: Cannot allocate memory\n")
            protocol.send(worker, {"ok": 1})
        return lifeline

    sandbox = await Sandbox.begin(fail)
    try:
        with pytest.raises(ProcessFailed, match="cannot be set up: Cannot allocate memory") as failed:
            await sandbox.tell("send", tmp_path, 0, 1)
    finally:
        await sandbox.end()
    assert str(tmp_path) not in failed.value.message
