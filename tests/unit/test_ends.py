"""What follows the end of a container, and the order in which all are stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.idmap import IdMap
from utsuwa.core.locks import NamedLocks
from utsuwa.host.processes.pidfds import Process
from utsuwa.instances.lifecycle import end, shutdown, signals, stop
from utsuwa.instances.lifecycle.end import Sequel
from utsuwa.instances.manager import InstanceManager
from utsuwa.instances.model import Comeback, Running, RuntimeTable

NOBODY = 2**22 + 1
"""No process has an id that large."""


def a_running(name: str = "c1", **config: str) -> Running:
    return Running(1, "default", name, NOBODY, None, {}, config, IdMap())


@pytest.mark.parametrize(
    ("flags", "target", "ephemeral", "expected"),
    [
        ((), "stop", False, Sequel.STOPPED),
        ((), "", False, Sequel.STOPPED),
        ((), "stop", True, Sequel.DELETE),
        ((), "reboot", False, Sequel.REBOOT),
        ((), "reboot", True, Sequel.REBOOT),
        (("forced",), "reboot", False, Sequel.STOPPED),
        (("forced",), "reboot", True, Sequel.DELETE),
        (("comeback",), "stop", True, Sequel.BACK),
        (("comeback", "forced"), "", False, Sequel.BACK),
        (("keep_power",), "reboot", False, Sequel.BACK),
        (("keep_power",), "stop", True, Sequel.BACK),
    ],
)
def test_what_follows(flags: tuple[str, ...], target: str, ephemeral: bool, expected: Sequel) -> None:
    running = a_running()
    for flag in flags:
        setattr(running, flag, Comeback() if flag == "comeback" else True)
    assert end.sequel(running, target, ephemeral=ephemeral) is expected


def test_nothing_is_noted_before_a_sequel_is_complete() -> None:
    """The daemon's next start would not carry it out where this one is killed before."""
    for sequel in (Sequel.REBOOT, Sequel.DELETE):
        assert end._NOTED[sequel] == {}
    assert "volatile.last_state.power" not in end._NOTED[Sequel.BACK]


def test_an_init_that_has_just_ended_is_asked_to_stop_without_a_fault() -> None:
    assert signals.heard_signal(NOBODY) == signal.SIGPWR


async def test_a_process_that_is_gone_gets_no_signal() -> None:
    gone = Process(NOBODY)
    gone.send_signal(signal.SIGKILL)
    await asyncio.wait_for(gone.wait(), 1)
    gone.close()


@pytest.mark.processes
async def test_a_held_process_is_told_from_a_later_one_with_its_id() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        held = Process(child.pid)
        waiting = asyncio.create_task(held.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        held.send_signal(signal.SIGTERM)
        await asyncio.wait_for(waiting, 5)
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


async def test_a_container_that_is_killed_while_it_is_frozen_is_thawed_to_die() -> None:
    container = a_running()
    helper = Frozen(lambda: setattr(container, "forced", True))
    with pytest.raises(InvalidRequest, match="being stopped"):
        await stop.freeze(a_context(helper, container), "default", "c1")
    assert helper.asked == ["freeze", "unfreeze"]
    assert not container.frozen


async def test_all_are_stopped_by_rank_and_late_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    last = a_running("last")
    first = a_running("first", **{"boot.stop.priority": "5"})
    late = a_running("late", **{"boot.stop.priority": "9"})
    ctx = a_context(None, last, first)
    order: list[str] = []

    async def stopped(_ctx: object, _project: str, name: str, **_: object) -> None:
        order.append(name)
        ctx.runtime.remove(next(r for r in (last, first, late) if r.name == name))
        if name == "first":
            ctx.runtime.add(late)  # its start was under way

    monkeypatch.setattr(stop, "stop", stopped)
    await shutdown.shutdown_all(ctx, force=False)
    assert order == ["first", "late", "last"]


async def test_one_that_cannot_be_stopped_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, other = a_running("stuck"), a_running("other")
    ctx = a_context(None, stuck, other)

    async def stopped(_ctx: object, _project: str, name: str, **_: object) -> None:
        if name == "stuck":
            raise stop.NotStoppedInTime("no")
        ctx.runtime.remove(other)

    async def killed(*_: object) -> None:
        raise stop.NotStoppedInTime("no")

    monkeypatch.setattr(stop, "stop", stopped)
    monkeypatch.setattr(stop, "kill", killed)
    async with asyncio.timeout(2):
        await shutdown.shutdown_all(ctx, force=False)
    assert ctx.runtime.all() == [stuck]


async def test_a_stop_waits_for_a_reboot_that_it_comes_into_and_keeps_it_from_starting() -> None:
    """Between an end and the start that follows, the instance is not among the running ones."""
    ctx = SimpleNamespace(runtime=RuntimeTable(), locks=NamedLocks())
    manager = InstanceManager(cast(Any, ctx), cast(Any, None))
    key = ("default", "c1")
    started = False

    async def reboot() -> None:
        nonlocal started
        with ctx.runtime.coming_back(key) as comeback:
            await asyncio.sleep(0.05)
            async with ctx.locks.hold("instance", *key):
                started = not comeback.abandoned

    rebooting = asyncio.create_task(reboot())
    await asyncio.sleep(0)
    await manager.stop(*key, force=True, seconds=-1)
    await asyncio.wait_for(rebooting, 0.01)
    assert not started
    assert not ctx.runtime.abandon(key)
    with pytest.raises(InvalidRequest, match="already stopped"):
        await manager.stop(*key, force=True, seconds=-1)


def test_a_later_restart_is_not_abandoned_with_an_earlier_one() -> None:
    runtime, key = RuntimeTable(), ("default", "c1")
    with runtime.coming_back(key) as first:
        assert runtime.abandon(key) == [first]
        assert not runtime.comes_back(key)
        with runtime.coming_back(key) as second:
            assert runtime.comes_back(key)
            assert (first.abandoned, second.abandoned) == (True, False)
    assert second.over.is_set()
    assert not runtime.comes_back(key)
