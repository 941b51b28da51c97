"""Programs whose input and output are a stream of a migration."""

from __future__ import annotations

import asyncio

import pytest

from utsuwa.migration.rsync import Program


@pytest.mark.processes
async def test_one_whose_end_is_cancelled_leaves_nothing_open() -> None:
    program = Program((["sleep", "60"], {}))
    ends = program._ends
    while ends.their_input in ends._open:  # until it was started
        await asyncio.sleep(0.01)
    ending = asyncio.create_task(program.end())
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait([ending])
    assert ending.cancelled()
    assert program._run.done()
    assert ends._open == set()
