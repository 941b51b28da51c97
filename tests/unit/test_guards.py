"""The guards themselves: a guard that catches nothing is worse than none."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import time

import pytest

from tests.support import guards


def test_processes_are_refused_even_where_exceptions_are_swallowed() -> None:
    def careless() -> None:
        with contextlib.suppress(Exception):
            subprocess.run(["/bin/true"], check=True)

    with pytest.raises(guards.ProcessRefused, match="subprocess.Popen"):
        careless()


async def test_processes_are_refused_from_asyncio() -> None:
    with pytest.raises(guards.ProcessRefused):
        await asyncio.create_subprocess_exec("/bin/true")


@pytest.mark.processes
def test_marker_lifts_the_refusal() -> None:
    assert subprocess.run(["/bin/true"], check=False).returncode == 0


def test_a_slow_callback_is_reported() -> None:
    async def hold() -> None:
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass

    with pytest.raises(guards.LoopBlocked, match="held the event loop"), guards.watch_loops(0.02):
        asyncio.run(hold())


async def test_sleep_in_the_loop_is_refused_and_in_a_thread_is_not() -> None:
    with pytest.raises(guards.LoopBlocked, match="in the event loop"):
        time.sleep(0)
    await asyncio.to_thread(time.sleep, 0)


def test_quick_callbacks_pass() -> None:
    async def quick() -> str:
        await asyncio.sleep(0.01)
        return "done"

    with guards.watch_loops(0.5):
        assert asyncio.run(quick()) == "done"


def test_garbage_collections_do_not_count() -> None:
    """Those of a process that has run thousands of tests take half a second."""

    async def collect() -> None:
        gc.collect()

    kept = [[number] for number in range(2_000_000)]  # as many objects as many tests leave
    begin = time.perf_counter()
    gc.collect()
    taken = time.perf_counter() - begin
    with guards.watch_loops(taken / 3):
        asyncio.run(collect())
    assert len(kept) == 2_000_000
