"""Programs whose input and output are a stream of a migration."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise
from pathlib import Path

import pytest

from utsuwa.core.errors import InvalidRequest, OutOfSpace
from utsuwa.host.helper.sandbox import Sandbox
from utsuwa.migration.ahead import transfers
from utsuwa.migration.channel import Stream
from utsuwa.migration.rsync import Command, exchange


class Silent:
    """A websocket on which nothing comes."""

    closed = False
    left_on_purpose = False

    async def read(self) -> bytes | str | None:
        await asyncio.Event().wait()
        raise AssertionError

    async def send_bytes(self, data: bytes) -> None:
        raise AssertionError

    async def send_str(self, data: str) -> None:
        raise AssertionError


def pipes() -> set[str]:
    """Return the pipes that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(entry.readlink()))
    return {name for name in found if name.startswith("pipe:")}


@pytest.mark.processes
async def test_a_transfer_that_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    before, started = pipes(), tmp_path / "started"
    command: Command = (["sh", "-c", f"touch {started}; exec sleep 60"], {})
    transfer = asyncio.create_task(exchange(Stream(Silent()), command, lambda _: None))
    while not started.exists():
        await asyncio.sleep(0.01)
    assert pipes() != before
    transfer.cancel()
    await asyncio.wait([transfer])
    assert transfer.cancelled()
    assert pipes() == before


class Endless(Silent):
    """A websocket on which the same comes again and again, for longer than anybody should read."""

    def __init__(self, message: bytes | str) -> None:
        self._message = message
        self.read_so_far = 0

    async def read(self) -> bytes | str | None:
        self.read_so_far += 1
        assert self.read_so_far < 10_000
        return self._message

    async def send_str(self, data: str) -> None:
        assert data == ""


def endless(message: bytes | str) -> tuple[Endless, Stream]:
    socket = Endless(message)
    stream = Stream(socket)
    stream.counts_zeros = True
    return socket, stream


@pytest.mark.processes
@pytest.mark.parametrize("message", [str(2**20), bytes(2**12)], ids=["zeros", "data"])
async def test_what_comes_after_the_end_is_refused_and_stops_nothing_else(message: bytes | str) -> None:
    socket, stream = endless(message)
    steps = [0]

    async def watch() -> None:
        while True:
            steps.append(socket.read_so_far)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    with pytest.raises(InvalidRequest, match="sends more than the files"):
        await exchange(stream, (["true"], {}), lambda _: None)
    watching.cancel()
    at_once = 2**20 // 2**12 if isinstance(message, bytes) else 1  # as much as a pipe takes
    assert max(after - before for before, after in pairwise(steps)) <= at_once + 1


@pytest.mark.processes
async def test_the_reason_of_a_failure_is_told_whatever_comes_meanwhile() -> None:
    _, stream = endless(str(2**20))
    program = "exec <&-; sleep 0.1; echo 'tar: x: Cannot write: No space left on device' >&2; exit 2"
    with pytest.raises(OutOfSpace):
        await exchange(stream, (["sh", "-c", program], {}), lambda _: None)


@pytest.mark.processes
@pytest.mark.parametrize("archive", [False, True])
async def test_zeros_that_are_not_sent_do_not_count_for_the_rate(archive: bool) -> None:
    class Ended(Silent):
        async def read(self) -> bytes | str | None:
            return ""

        async def send_str(self, data: str) -> None:
            sent.append(data)

    sent, counted, size = list[str](), list[int](), 64 * 2**20
    stream = Stream(Ended())
    stream.counts_zeros = True
    command: Command = (["head", f"--bytes={size}", "/dev/zero"], {})
    async with asyncio.timeout(60):  # at this rate, the zeros themselves would take hours
        await exchange(stream, command, counted.append, rate=10_000, archive=archive)
    assert sent.pop() == ""
    assert sum(map(int, sent)) == sum(counted) == size


async def test_a_sandbox_that_is_not_needed_is_ended_however_far_it_is() -> None:
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), list[str]()

    class Recorded(Sandbox):
        def __init__(self) -> None:
            pass

        async def end(self) -> None:
            ended.append("ended")

    async def build() -> Sandbox:
        begun.set()
        await go_on.wait()
        return Recorded()

    async with transfers(build, start=True):
        await begun.wait()
    assert ended == []
    go_on.set()
    async with transfers(build, start=True) as waiting, waiting.next(more=True):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert ended == ["ended", "ended"]
