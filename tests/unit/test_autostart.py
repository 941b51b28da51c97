"""Starting what should run by itself: once, again where the host was not ready, and until nobody wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from utsuwa.core import clock
from utsuwa.core.errors import HostError, NotFound, StartFailed
from utsuwa.db.instances import InstanceRow
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.instances.lifecycle import autostart
from utsuwa.instances.lifecycle.autostart import Autostart, still_wanted
from utsuwa.instances.model import Loaded, RuntimeTable

NIC = {"eth0": {"type": "nic", "nictype": "bridged", "parent": "br7"}}


def an_instance(name: str, config: dict[str, str] | None = None, **own: str) -> Loaded:
    row = InstanceRow(
        id=hash(name),
        project="default",
        name=name,
        architecture="x86_64",
        ephemeral=False,
        stateful=False,
        description="",
        created_at=clock.now(),
        last_used_at=None,
        config=own,
        devices={},
        profiles=[],
        state="ready",
    )
    return Loaded(row, {"boot.autostart": "true", **(config or {})}, NIC)


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
        context: Any = SimpleNamespace(runtime=RuntimeTable(), patch_config=self.patch)
        self.autostart = Autostart(context, self.links, self.start)

    async def load(self, ctx: Any, project: str, name: str) -> Loaded:
        if name not in self.instances:
            raise NotFound("gone")
        return self.instances[name]

    async def start(self, project: str, name: str) -> None:
        self.tried.append(name)
        if name in self.failures:
            raise self.failures[name]

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
    monkeypatch.setattr(autostart, "_WAITS", (0.01,))
    monkeypatch.setattr(autostart, "_REST", 0.001)
    return made


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def test_all_are_started_in_order_and_once(world: World) -> None:
    world.begin("b", "a")
    await until(world.idle)
    assert world.tried == ["b", "a"]


async def test_one_that_cannot_start_yet_is_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """And told of once, in one line, as long as the reason is the same (lxd#4054, lxd#2001)."""
    world.begin("a", failure=HostError("no bridge br7"))
    await until(lambda: len(world.tried) > 3)
    assert [r.getMessage() for r in caplog.records] == [
        "instance 'a' does not start by itself yet: no bridge br7; it is tried again until somebody stops it"
    ]
    world.failures["a"] = HostError("no pool")
    await until(lambda: "no pool" in caplog.text)
    del world.failures["a"]
    await until(world.idle)
    assert not any(record.exc_info for record in caplog.records)


async def test_an_interface_that_appears_is_not_waited_for_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autostart, "_WAITS", (100.0,))
    world.begin("a", failure=HostError("no bridge br7"))
    await until(lambda: world.links.heard is not None)
    world.failures.clear()
    world.links.heard("veth1234")
    await asyncio.sleep(0.02)
    assert world.tried == ["a"]
    world.links.heard("br7")
    await until(world.idle)
    assert world.tried == ["a", "a"]


async def test_a_container_that_liblxc_cannot_start_is_given_up_with_a_word(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.begin("a", failure=StartFailed("no init"))
    await until(world.idle)
    assert len(world.tried) == 3
    assert "instance 'a' did not start by itself, and is not tried again: no init" in caplog.text


async def test_a_fault_of_ours_is_told_with_its_traceback(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.begin("a", "b")
    world.failures["a"] = ValueError("a fault")
    await until(world.idle)
    assert world.tried == ["a", "b"]
    assert "ValueError: a fault" in caplog.text


async def test_what_somebody_stops_is_left_alone(world: World) -> None:
    world.begin("a", failure=HostError("no"))
    await until(lambda: len(world.tried) > 1)
    await world.autostart.forget("default", "a")
    await until(world.idle)
    assert world.patched == [{"volatile.last_state.power": "STOPPED"}]
    await world.autostart.forget("default", "a")
    assert len(world.patched) == 1


async def test_what_is_deleted_runs_or_is_no_longer_wanted_is_left_alone(world: World) -> None:
    world.begin("deleted", "unset", "started", "renamed", failure=HostError("no"))
    await until(lambda: world.tried.count("renamed") > 1)
    del world.instances["deleted"]
    world.instances["unset"] = an_instance("unset", {"boot.autostart": "false"})
    world.autostart.started("default", "started")
    world.failures["new"] = HostError("no")
    world.instances["new"] = world.instances.pop("renamed")
    world.autostart.renamed("default", "renamed", "new")
    await asyncio.sleep(0.03)
    world.tried.clear()
    await until(lambda: len(world.tried) > 2)
    assert set(world.tried) == {"new"}
    world.failures.clear()
    await until(world.idle)


async def test_the_end_of_the_daemon(world: World) -> None:
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
def test_who_is_wanted(setting: str, power: str, wanted: bool) -> None:
    found = an_instance("a", {"boot.autostart": setting})
    row = replace(found.row, config={"volatile.last_state.power": power})
    assert still_wanted(replace(found, row=row)) == wanted
