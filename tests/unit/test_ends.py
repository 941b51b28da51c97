"""What follows the end of a container, and the order in which all are stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.instances import C1, instance_row, running_container
from tests.support.open_warnings import no_retries
from utsuwa.core.errors import InvalidRequest, Unavailable
from utsuwa.core.locks import NamedLocks
from utsuwa.core.refs import InstanceRef
from utsuwa.host.processes.pidfds import Process
from utsuwa.instances.context import merge
from utsuwa.instances.lifecycle import autorestart, end, freeze, shutdown, signals, stop
from utsuwa.instances.lifecycle.end import FollowUp
from utsuwa.instances.manager import InstanceManager
from utsuwa.instances.model import PendingRestart, Running, RuntimePaths, RuntimeTable
from utsuwa.instances.running_state import stop as stateful
from utsuwa.projects.restrictions import Restrictions

NOBODY = 2**22 + 1
"""No process has an id that large."""


def a_running(name: str = "c1", **config: str) -> Running:
    return running_container(name, NOBODY, **config)


def flagged(flags: tuple[str, ...]) -> Running:
    running = a_running()
    for flag in flags:
        setattr(running, flag, PendingRestart() if flag == "pending_restart" else True)
    return running


@pytest.mark.parametrize(
    ("flags", "target", "ephemeral", "expected"),
    [
        ((), "stop", False, FollowUp.NONE),
        ((), "", False, FollowUp.NONE),
        ((), "stop", True, FollowUp.DELETE),
        ((), "reboot", False, FollowUp.REBOOT),
        ((), "reboot", True, FollowUp.REBOOT),
        (("forced",), "reboot", False, FollowUp.NONE),
        (("forced",), "reboot", True, FollowUp.DELETE),
        (("pending_restart",), "stop", True, FollowUp.RESTART),
        (("pending_restart", "forced"), "", False, FollowUp.RESTART),
        (("keep_power",), "reboot", False, FollowUp.RESTART),
        (("keep_power",), "stop", True, FollowUp.RESTART),
    ],
)
def test_follow_up_of_an_end(
    flags: tuple[str, ...], target: str, ephemeral: bool, expected: FollowUp
) -> None:
    running = flagged(flags)
    assert end.follow_up(running, target, ephemeral=ephemeral) is expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), FollowUp.REBOOT),
        (("forced",), FollowUp.DELETE),
        (("pending_restart",), FollowUp.RESTART),
        (("keep_power",), FollowUp.RESTART),
    ],
)
def test_autorestart_precedes_the_deletion_of_an_ephemeral_instance(
    flags: tuple[str, ...], expected: FollowUp
) -> None:
    running = flagged(flags)
    assert end.follow_up(running, "stop", ephemeral=True, autorestart=True) is expected


async def test_autorestart_ignores_ends_that_were_requested(tmp_path: Path) -> None:
    paths = RuntimePaths(tmp_path)
    without, instance = (
        merge(instance_row(config=config), [], Restrictions("default"))
        for config in ({}, {"boot.autorestart": "true"})
    )
    assert not await autorestart.wanted(without, paths)
    assert await autorestart.wanted(instance, paths)
    paths.stop_requested.touch()
    assert not await autorestart.wanted(instance, paths)
    long_ago = time.time() - stop.CLEAN_STOP_LIMIT - 60
    os.utime(paths.stop_requested, (long_ago, long_ago))
    assert await autorestart.wanted(instance, paths)
    paths.killed.touch()
    assert not await autorestart.wanted(instance, paths)


def test_restarts_are_limited_for_each_instance() -> None:
    limit = autorestart.RestartLimit()
    assert [limit.allows(1, second) for second in range(11)] == [True] * 10 + [False]
    assert limit.allows(2, 11)
    assert not limit.allows(1, 59.9)
    assert limit.allows(1, 60.0)  # a minute after the first one
    assert not limit.allows(1, 60.5)


def test_nothing_is_recorded_before_a_follow_up_is_complete() -> None:
    """The daemon's next start would not carry it out where this one is killed before."""
    for follow_up in (FollowUp.REBOOT, FollowUp.DELETE):
        assert end._RECORDED[follow_up] == {}
    assert "volatile.last_state.power" not in end._RECORDED[FollowUp.RESTART]


def test_stop_signal_of_an_init_that_has_ended() -> None:
    assert signals.handled_signal(NOBODY) == signal.SIGPWR


async def test_signalling_an_ended_process_does_nothing() -> None:
    gone = Process(NOBODY)
    gone.send_signal(signal.SIGKILL)
    await asyncio.wait_for(gone.wait(), 1)
    gone.close()


@pytest.mark.processes
async def test_a_reused_pid_is_not_signalled() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        held = Process(child.pid)
        waiting = asyncio.create_task(held.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        held.send_signal(signal.SIGTERM)
        await asyncio.wait_for(waiting, 30)
        assert await asyncio.to_thread(child.wait) == -signal.SIGTERM
    held.pid = os.getpid()  # as if the id were this process's by now
    held.send_signal(signal.SIGKILL)
    held.close()
    held.send_signal(signal.SIGKILL)


class Frozen:
    """A helper whose freezing takes a moment; `meanwhile` happens within it."""

    def __init__(self, meanwhile: Any = None) -> None:
        self.asked: list[str] = []
        self._meanwhile = meanwhile

    async def freeze(self, *_: object) -> None:
        self.asked.append("freeze")
        if self._meanwhile is not None:
            self._meanwhile()

    async def unfreeze(self, *_: object) -> None:
        self.asked.append("unfreeze")


def a_context(helper: Any, *containers: Running) -> Any:
    table = RuntimeTable()
    for container in containers:
        table.add(container)
    return SimpleNamespace(
        runtime=table,
        locks=NamedLocks(),
        helper=helper,
        paths=SimpleNamespace(containers="/nowhere"),
        lifecycle=lambda *_: None,
    )


async def test_a_container_killed_while_being_frozen_is_unfrozen() -> None:
    container = running_container("c1", os.getpid())
    helper = Frozen(lambda: setattr(container, "forced", True))
    with pytest.raises(InvalidRequest, match="being stopped"):
        await freeze.freeze(a_context(helper, container), C1)
    assert helper.asked == ["freeze", "unfreeze"]
    assert not container.frozen


async def test_shutdown_stops_by_priority_including_late_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    last = a_running("last")
    first = a_running("first", **{"boot.stop.priority": "5"})
    late = a_running("late", **{"boot.stop.priority": "9"})
    ctx = a_context(None, last, first)
    order: list[str] = []

    async def stopped(_ctx: object, ref: InstanceRef, **_: object) -> None:
        order.append(ref.name)
        ctx.runtime.remove(next(r for r in (last, first, late) if r.ref == ref))
        if ref.name == "first":
            ctx.runtime.add(late)  # its start was under way

    monkeypatch.setattr(stop, "stop", stopped)
    await shutdown.shutdown_all(ctx, force=False)
    assert order == ["first", "late", "last"]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("stop", ["stopped"]),
        ("force-stop", ["killed"]),
        ("stateful-stop", ["saved"]),
        ("stateful-stop", ["not saved", "stopped"]),
    ],
)
async def test_shutdown_does_what_is_configured(
    monkeypatch: pytest.MonkeyPatch, action: str, expected: list[str]
) -> None:
    """An instance whose running state cannot be saved is stopped cleanly."""
    container = a_running(**{"boot.host_shutdown_action": action})
    ctx = a_context(None, container)
    done: list[str] = []

    async def stopped(*_: object, **__: object) -> None:
        done.append("stopped")
        ctx.runtime.remove(container)

    async def killed(*_: object) -> None:
        done.append("killed")
        ctx.runtime.remove(container)

    async def saved(*_: object) -> None:
        done.append(expected[0])
        if expected[0] == "not saved":
            raise Unavailable("no CRIU")
        ctx.runtime.remove(container)

    monkeypatch.setattr(stop, "stop", stopped)
    monkeypatch.setattr(stop, "kill", killed)
    monkeypatch.setattr(stateful, "stop_stateful", saved)
    await shutdown.shutdown_all(ctx, force=False)
    assert done == expected


async def test_shutdown_continues_after_a_container_that_does_not_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck, other = a_running("stuck"), a_running("other")
    ctx = a_context(None, stuck, other)

    async def stopped(_ctx: object, ref: InstanceRef, **_: object) -> None:
        if ref.name == "stuck":
            raise stop.NotStoppedInTime("no")
        ctx.runtime.remove(other)

    async def killed(*_: object) -> None:
        raise stop.NotStoppedInTime("no")

    monkeypatch.setattr(stop, "stop", stopped)
    monkeypatch.setattr(stop, "kill", killed)
    async with asyncio.timeout(30):
        await shutdown.shutdown_all(ctx, force=False)
    assert ctx.runtime.all() == [stuck]


async def test_a_stop_during_a_reboot_cancels_its_start_and_waits() -> None:
    """Between an end and the start that follows, the instance is not among the running ones."""
    ctx = SimpleNamespace(runtime=RuntimeTable(), locks=NamedLocks())
    manager = InstanceManager(cast(Any, ctx), no_retries())
    started = False

    async def reboot() -> None:
        nonlocal started
        with ctx.runtime.expect_restart(C1) as restart:
            await asyncio.sleep(0.05)
            async with ctx.locks.hold("instance", C1):
                started = not restart.cancelled

    rebooting = asyncio.create_task(reboot())
    await asyncio.sleep(0)
    await manager.stop(C1, force=True, seconds=-1)
    await asyncio.wait_for(rebooting, 0.01)
    assert not started
    assert not ctx.runtime.cancel_restarts(C1)
    with pytest.raises(InvalidRequest, match="already stopped"):
        await manager.stop(C1, force=True, seconds=-1)


def test_cancelling_a_restart_does_not_affect_a_later_one() -> None:
    runtime = RuntimeTable()
    with runtime.expect_restart(C1) as first:
        assert runtime.cancel_restarts(C1) == [first]
        assert not runtime.will_restart(C1)
        with runtime.expect_restart(C1) as second:
            assert runtime.will_restart(C1)
            assert (first.cancelled, second.cancelled) == (True, False)
    assert second.finished.is_set()
    assert not runtime.will_restart(C1)
