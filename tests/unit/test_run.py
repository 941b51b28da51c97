from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.processes import pidfds, run
from utsuwa.host.processes.run import Completed, run_blocking
from utsuwa.host.processes.stopper import Reading, Stopper

pytestmark = pytest.mark.processes

Runner = Callable[..., Awaitable[Completed]]


def open_descriptors() -> set[str]:
    return {fd.name for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}


async def in_thread(*args: Any, **kwargs: Any) -> Completed:
    return await asyncio.to_thread(run.run_blocking, *args, **kwargs)


@pytest.fixture(params=[run.run, in_thread], ids=["async", "blocking"])
def runner(request: pytest.FixtureRequest) -> Runner:
    found: Runner = request.param
    return found


async def test_output_and_code(runner: Runner) -> None:
    done = await runner(["sh", "-c", "echo out; echo err >&2; exit 3"], accept=(0, 3))
    assert (done.stdout, done.stderr, done.code, done.text) == (b"out\n", b"err\n", 3, "out\n")
    assert done.argv[0] == "sh"


async def test_a_code_that_is_not_accepted(runner: Runner) -> None:
    with pytest.raises(ProcessFailed, match=r"^sh: it broke$") as caught:
        await runner(["sh", "-c", "echo it broke >&2; exit 3"])
    assert caught.value.code == 3
    assert caught.value.argv[1] == "-c"


async def test_a_signal_is_a_negative_code(runner: Runner) -> None:
    with pytest.raises(ProcessFailed) as caught:
        await runner(["sh", "-c", "kill -9 $$"])
    assert caught.value.code == -signal.SIGKILL


async def test_missing_programs_name_their_package(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProcessFailed, match=r"^no-such-program: not found$") as caught:
        await runner(["no-such-program"])
    assert caught.value.code is None
    with pytest.raises(ProcessFailed, match="not found; install Debian's package 'squashfs-tools'"):
        await runner(["/nowhere/mksquashfs"])


async def test_failure_to_start_has_a_reason(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="Permission denied"):
        await runner([str(tmp_path)])
    with pytest.raises(ProcessFailed, match="the directory .*missing does not exist"):
        await runner(["true"], cwd=tmp_path / "missing")


async def test_the_environment_is_rebuilt(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "1")
    done = await runner(["/usr/bin/env"], env={"MORE": "2"})
    assert dict(line.split("=", 1) for line in done.text.splitlines()) == {
        "PATH": run.PATH,
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "MORE": "2",
    }
    less = await runner(["/usr/bin/env"], env={"PATH": None, "HOME": None})
    assert less.text == "LANG=C.UTF-8\n"


async def test_stdin_is_closed_or_passed(runner: Runner) -> None:
    assert (await runner(["cat"])).stdout == b""
    data = os.urandom(3_000_000)
    assert (await runner(["cat"], stdin=data)).stdout == data
    assert (await runner(["true"], stdin=data)).code == 0  # one that does not want it


async def test_descriptors_are_passed_only_where_asked(runner: Runner, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as out, (tmp_path / "secret").open("w+b") as secret:
        done = await runner(["sh", "-c", "echo hi; ls /proc/self/fd >&2"], stdout_fd=out.fileno())
        assert done.stdout == b""
        out.seek(0)
        assert out.read() == b"hi\n"
        assert str(secret.fileno()) not in done.stderr.decode().split()
        listing = await runner(["ls", "/proc/self/fd"], pass_fds=[secret.fileno()])
        assert str(secret.fileno()) in listing.text.split()


async def test_no_signal_is_kept_from_a_program(runner: Runner) -> None:
    """Python ignores some, and what is ignored stays so in what it starts."""
    status = (await runner(["cat", "/proc/self/status"])).text
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert int(fields["SigIgn"], 16) == int(fields["SigBlk"], 16) == 0
    assert fields["NSsid"].strip() == fields["Pid"].strip()


async def test_programs_that_time_out_are_killed_with_their_children(runner: Runner, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait"
    for seconds in (0.3, 3, 30):  # on a busy machine, it may not have started the other one by then
        with pytest.raises(ProcessFailed, match=f"did not end within {seconds} seconds"):
            await asyncio.wait_for(runner(["sh", "-c", script], timeout=seconds), 60)
        if pid_file.exists():
            break
    await asyncio.wait_for(pidfds.wait(int(pid_file.read_text())), 30)


async def test_who_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GRACE", 0.2)
    with pytest.raises(ProcessFailed, match="did not end"):
        await run.run(["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"], timeout=0.3)


async def test_cancelling_ends_the_program(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(run.run(["sh", "-c", f"echo $$ > {pid_file}; exec sleep 1000"]))
    while not (pid_file.exists() and pid_file.read_text()):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


async def test_endless_output_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "OUTPUT_LIMIT", 100_000)
    with pytest.raises(ProcessFailed, match="wrote more than 100000 bytes"):
        await run.run(["cat", "/dev/zero"])


async def test_nothing_is_left_open() -> None:
    await run.run(["true"])
    before = open_descriptors()
    for _ in range(3):
        await run.run(["cat"], stdin=b"x" * 200_000)
        with pytest.raises(ProcessFailed):
            await run.run(["false"])
        with pytest.raises(ProcessFailed):
            await run.run(["sleep", "100"], timeout=0.05)
    assert open_descriptors() == before


async def test_spawned_programs_run_on_until_they_are_closed(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        program = run.spawn(["sh", "-c", "echo started; sleep 1000"], output_fd=log.fileno())
    waiting = asyncio.create_task(program.wait())
    while not (tmp_path / "log").read_text():
        await asyncio.sleep(0.01)
    assert not waiting.done()
    program.kill()
    assert await waiting == -signal.SIGKILL
    program.close()
    program.close()
    assert (tmp_path / "log").read_text() == "started\n"
    with pytest.raises(ProcessFailed):
        run.spawn(["no-such-program"])


async def test_pidfds_see_the_end_and_carry_signals() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    waiting = asyncio.create_task(pidfds.wait(process.pid))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    pidfds.send_signal(process.pid, signal.SIGTERM)
    await asyncio.wait_for(waiting, 30)
    assert process.wait() == -signal.SIGTERM
    await pidfds.wait(process.pid)
    pidfds.kill(process.pid)


def test_how_far_a_program_is(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    stopper = Stopper()
    assert stopper.progress() is None

    def work() -> None:
        with stopper.reading("cat", 1 << 20):
            run_blocking(["sh", "-c", f"cat <{fifo} >/dev/null; true"], stopper=stopper)

    with ThreadPoolExecutor(1) as threads, fifo.open("r+b", buffering=0) as source:
        working = threads.submit(work)
        source.write(bytes(1 << 19))
        while (progress := stopper.progress()) is None or progress.done < 1 << 19:
            assert not working.done()
        assert (progress.total, progress.percent) == (1 << 20, 50)
        stopper.stop()
        with pytest.raises(ProcessFailed, match="stopped"):
            working.result()
    assert stopper.progress() is None
    assert (Reading(5, 0).percent, Reading(5, 4).percent) == (0, 99)


async def test_a_program_that_was_being_started_for_a_cancelled_caller_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, goes_on = threading.Event(), threading.Event()
    children: list[run.Child] = []
    start = run._start_child

    def start_slowly(*args: Any) -> run.Child:
        began.set()
        assert goes_on.wait(30)
        children.append(start(*args))
        return children[0]

    monkeypatch.setattr(run, "_start_child", start_slowly)
    before = open_descriptors()
    task = asyncio.create_task(run.run(["sleep", "1000"]))
    await asyncio.to_thread(began.wait)
    task.cancel()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children[0].code == -signal.SIGKILL
    assert open_descriptors() == before
