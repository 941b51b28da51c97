"""Starting what should run by itself: once, again where the host was not ready, and until nobody wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.instances import instance_row, ref
from tests.support.open_warnings import OpenWarnings
from utsuwa.core.errors import HostError, NotFound, StartFailed
from utsuwa.core.refs import InstanceRef
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.instances.lifecycle import autostart
from utsuwa.instances.lifecycle.autostart import Autostart, should_run
from utsuwa.instances.model import Loaded, RuntimeTable
from utsuwa.operations import retries
from utsuwa.operations.retries import Retries
from utsuwa.profiles.expand import Expanded
from utsuwa.projects.restrictions import Restrictions

FAILED = "Failed to autostart instance"
NIC = {"eth0": {"type": "nic", "nictype": "bridged", "parent": "br7"}}


def an_instance(name: str, config: dict[str, str] | None = None, **own: str) -> Loaded:
    row = instance_row(name, id=hash(name), state="ready", config=own)
    expanded = Expanded({"boot.autostart": "true", **(config or {})}, NIC)
    return Loaded(row, expanded, Restrictions("default"))


class Links(LinkEvents):
    def __init__(self) -> None:
        self.heard: Any = None

    def listen(self, listener: Any) -> None:
        self.heard = listener

    def leave(self, listener: Any) -> None:
        self.heard = None


class World:
    """Instances, what their starts fail with, and what was tried."""

    def __init__(self) -> None:
        self.instances: dict[str, Loaded] = {}
        self.failures: dict[str, Exception] = {}
        self.tried: list[str] = []
        self.patched: list[Any] = []
        self.links = Links()
        self.warnings = OpenWarnings()
        self.retries = Retries(self.links, self.warnings)
        context: Any = SimpleNamespace(
            runtime=RuntimeTable(), patch_config=self.patch, warnings=self.warnings
        )
        self.autostart = Autostart(context, self.retries, self.start)

    async def load(self, ctx: Any, ref: InstanceRef) -> Loaded:
        if ref.name not in self.instances:
            raise NotFound("gone")
        return self.instances[ref.name]

    async def start(self, ref: InstanceRef) -> None:
        self.tried.append(ref.name)
        if ref.name in self.failures:
            raise self.failures[ref.name]

    async def patch(self, row_id: int, changes: Any) -> None:
        self.patched.append(changes)

    def begin(self, *names: str, failure: Exception | None = None) -> None:
        for name in names:
            self.instances[name] = an_instance(name)
            if failure is not None:
                self.failures[name] = failure
        self.autostart.begin([self.instances[name] for name in names])

    def idle(self) -> bool:
        return not self.autostart._waiting and self.links.heard is None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(autostart, "load", made.load)
    monkeypatch.setattr(retries, "_WAITS", (0.01,))
    monkeypatch.setattr(retries, "_REST", 0.001)
    return made


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


async def test_instances_are_started_once_in_order(world: World) -> None:
    world.begin("b", "a")
    await until(world.idle)
    assert world.tried == ["b", "a"]


async def test_all_are_tried_before_the_delay_of_the_last_one(world: World) -> None:
    """Failed ones, too: they are retried later."""
    world.instances["a"] = an_instance("a")
    world.instances["b"] = an_instance("b", {"boot.autostart.delay": "1000"})
    world.failures["a"] = HostError("no bridge br7")
    world.autostart.begin(list(world.instances.values()))
    assert not world.autostart.tried
    await until(lambda: world.autostart.tried)
    assert world.tried[:2] == ["a", "b"]


async def test_forgotten_during_a_delay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)
        if seconds:
            await world.autostart.forget(ref("b"))

    world.instances["a"] = an_instance("a", {"boot.autostart.delay": "30"})
    world.instances["b"] = an_instance("b")
    with monkeypatch.context() as patch:
        patch.setattr(autostart, "asyncio", SimpleNamespace(sleep=sleep, create_task=asyncio.create_task))
        world.autostart.begin([world.instances["a"], world.instances["b"]])
        await until(lambda: world.autostart.tried)
    assert (world.tried, delays) == (["a"], [0, 30])


async def test_nothing_to_start(world: World) -> None:
    world.autostart.begin([])
    assert world.autostart.tried


async def test_failed_starts_are_retried(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning, logged in one line as long as the reason is the same (lxd#4054, lxd#2001)."""
    world.begin("a", failure=HostError("no bridge br7"))
    await until(lambda: len(world.tried) > 3)
    assert [r.getMessage() for r in caplog.records] == [
        "autostart of instance 'a' failed: no bridge br7; it is retried until the instance is stopped"
    ]
    world.failures["a"] = HostError("no pool")
    await until(lambda: "no pool" in caplog.text)
    assert "no pool" in world.warnings.messages[FAILED]
    del world.failures["a"]
    await until(world.idle)
    assert world.warnings.messages == {}
    assert not any(record.exc_info for record in caplog.records)


async def test_a_new_interface_triggers_a_retry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_WAITS", (100.0,))
    world.begin("a", failure=HostError("no bridge br7"))
    await until(lambda: world.links.heard is not None)
    world.failures.clear()
    world.links.heard("veth1234")
    await asyncio.sleep(0.02)
    assert world.tried == ["a"]
    world.links.heard("br7")
    await until(world.idle)
    assert world.tried == ["a", "a"]


async def test_repeated_failures_of_liblxc_end_the_retries(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.begin("a", failure=StartFailed("no init"))
    await until(world.idle)
    assert len(world.tried) == 3
    assert "autostart of instance 'a' failed and is not retried: no init" in caplog.text
    assert "no init" in world.warnings.messages[FAILED]


async def test_an_internal_error_is_logged_with_its_traceback(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.begin("a", "b")
    world.failures["a"] = ValueError("a fault")
    await until(world.idle)
    assert world.tried == ["a", "b"]
    assert "ValueError: a fault" in caplog.text


async def test_a_stop_request_ends_the_retries(world: World) -> None:
    world.begin("a", failure=HostError("no"))
    await until(lambda: len(world.tried) > 1)
    await world.autostart.forget(ref("a"))
    await until(world.idle)
    assert world.patched == [{"volatile.last_state.power": "STOPPED"}]
    assert world.warnings.messages == {}
    await world.autostart.forget(ref("a"))
    assert len(world.patched) == 1


async def test_retries_end_when_deleted_started_or_unset(world: World) -> None:
    world.begin("deleted", "unset", "started", "renamed", failure=HostError("no"))
    await until(lambda: world.tried.count("renamed") > 1)
    del world.instances["deleted"]
    world.instances["unset"] = an_instance("unset", {"boot.autostart": "false"})
    world.autostart.started(ref("started"))
    world.failures["new"] = HostError("no")
    world.instances["new"] = world.instances.pop("renamed")
    world.autostart.renamed(ref("renamed"), ref("new"))
    await asyncio.sleep(0.03)
    world.tried.clear()
    await until(lambda: len(world.tried) > 2)
    assert set(world.tried) == {"new"}
    world.failures.clear()
    await until(world.idle)


async def test_retries_end_with_the_daemon(world: World) -> None:
    await world.autostart.end()
    world.begin("a", failure=HostError("no"))
    await until(lambda: len(world.tried) > 1)
    await world.autostart.end()
    tried = len(world.tried)
    await asyncio.sleep(0.03)
    assert len(world.tried) == tried
    assert world.links.heard is None


@pytest.mark.parametrize(
    ("setting", "power", "wanted"),
    [("true", "STOPPED", True), ("false", "RUNNING", False), ("", "RUNNING", True), ("", "STOPPED", False)],
)
def test_which_instances_are_autostarted(setting: str, power: str, wanted: bool) -> None:
    found = an_instance("a", {"boot.autostart": setting})
    row = found.row.with_config({"volatile.last_state.power": power})
    assert should_run(replace(found, row=row)) == wanted
