"""Programs whose input and output are a stream of a migration."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

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
