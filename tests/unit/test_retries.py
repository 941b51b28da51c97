"""What the host was not ready for is tried again, until it succeeds or is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.open_warnings import OpenWarnings
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.operations import retries as module
from utsuwa.operations.retries import Retries


class Links(LinkEvents):
    def __init__(self) -> None:
        self.heard: Any = None
        self.refusal: OSError | None = None

    def listen(self, listener: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.heard = listener

    def leave(self, listener: Any) -> None:
        self.heard = None


class World:
    def __init__(self) -> None:
        self.links = Links()
        self.warnings = OpenWarnings()
        self.retries = Retries(self.links, self.warnings)
        self.ready: set[str] = set()
        self.tried: list[str] = []

    def add(self, name: str, *interfaces: str) -> None:
        async def attempt() -> bool:
            self.tried.append(name)
            return name in self.ready

        self.retries.add(name, attempt, lambda: interfaces)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "_WAITS", (0.005, 0.01))
    monkeypatch.setattr(module, "_REST", 0.001)
    made = World()
    yield made
    await made.retries.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


async def test_an_attempt_is_repeated_until_it_succeeds(world: World) -> None:
    world.add("a")
    await until(lambda: len(world.tried) > 3)
    world.ready.add("a")
    await until(lambda: "a" not in world.retries)
    assert world.links.heard is None
    tried = len(world.tried)
    await asyncio.sleep(0.03)
    assert len(world.tried) == tried


async def test_one_that_is_dropped_is_not_repeated(world: World) -> None:
    world.add("a")
    world.add("b")
    await until(lambda: world.tried.count("a") > 1)
    world.retries.drop("a")
    world.retries.drop("a")
    await asyncio.sleep(0.02)
    tried = world.tried.count("a")
    await until(lambda: world.tried.count("b") > 5)
    assert world.tried.count("a") == tried
    world.add("a")
    await until(lambda: world.tried.count("a") > tried)


async def test_an_interface_or_a_success_ends_the_pause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAITS", (100.0,))
    world.add("a", "br7")
    world.add("b")
    world.links.heard("veth0")
    await asyncio.sleep(0.02)
    assert world.tried == []
    world.links.heard("br7")
    await until(lambda: world.tried == ["a"])
    world.ready.add("a")
    world.links.heard("br7")
    await until(lambda: "a" not in world.retries)
    await until(lambda: world.tried == ["a", "a", "b"])
    world.links.heard(None)
    await until(lambda: world.tried == ["a", "a", "b", "b"])


async def test_one_that_hangs_does_not_delay_others(world: World) -> None:
    ended = asyncio.Event()

    async def hang() -> bool:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return False

    world.retries.add("hangs", hang)
    world.add("a")
    await until(lambda: len(world.tried) > 3)
    await world.retries.stop()
    assert ended.is_set()


async def test_a_fault_of_ours_ends_the_attempts_with_its_traceback(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def fault() -> bool:
        raise ValueError("a fault")

    world.retries.add("a", fault)
    await until(lambda: "a" not in world.retries)
    assert "ValueError: a fault" in caplog.text


async def test_a_host_without_link_events_is_warned_of(world: World) -> None:
    world.links.refusal = OSError("no netlink")
    world.add("a")
    assert "no netlink" in world.warnings.messages["Changes of network interfaces noticed late"]
    await until(lambda: len(world.tried) > 1)
    world.retries.drop("a")
    world.links.refusal = None
    world.add("b")
    assert world.warnings.messages == {}
