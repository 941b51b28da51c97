"""Processes by their pids: what has ended is neither waited for nor signalled."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from utsuwa.host.processes import pidfds


@pytest.fixture
def thread_id() -> Iterator[int]:
    """The id of a thread: what the pid of a process that has ended can have become."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    done.set()
    thread.join()


async def test_a_pid_that_has_become_the_id_of_a_thread_has_ended(thread_id: int) -> None:
    await pidfds.wait(thread_id)
    pidfds.kill(thread_id)
    assert pidfds.Process(thread_id).ended


@pytest.mark.processes
async def test_a_process_is_signalled_and_waited_for() -> None:
    with subprocess.Popen(["sleep", "infinity"]) as process:
        pidfds.send_signal(process.pid, signal.SIGTERM)
        await pidfds.wait(process.pid)
        assert process.wait() == -signal.SIGTERM
    await pidfds.wait(process.pid)
    pidfds.kill(process.pid)
