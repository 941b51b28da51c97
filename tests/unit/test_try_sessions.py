"""The ends of visitors' sessions, whatever their browsers and the site's own parts do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from utsuwa.core.errors import Unavailable
from utsuwa.tryit import sessions as sessions_module
from utsuwa.tryit.inside import Inside
from utsuwa.tryit.metrics import Metrics
from utsuwa.tryit.records import Records
from utsuwa.tryit.rest import Rest
from utsuwa.tryit.sessions import Session, Sessions
from utsuwa.tryit.settings import Settings
from utsuwa.tryit.terminal import Terminal
from utsuwa.tryit.tour import Look, Step, Verdict
from utsuwa.tryit.visitors import Container, Visitors

SECONDS = 30


class NoDaemon:
    """A daemon that runs no command."""

    async def execute(self, *_arguments: object, **_options: object) -> None:
        raise Unavailable("there is none")


class Containers:
    """Those of visitors; `failures` questions fail unexpectedly."""

    def __init__(self) -> None:
        self.left: set[str] = set()
        self.failures = 0
        self.questions = 0
        """One for each session at each look at which sessions are over."""

    async def take(self) -> Container:
        name = f"visitor-{len(self.left)}"
        self.left.add(name)
        return Container(name, images=frozenset(), profiles=frozenset())

    def exists(self, name: str) -> bool:
        self.questions += 1
        if self.failures:
            self.failures -= 1
            raise KeyError(name)
        return name in self.left

    def remove(self, name: str) -> None:
        self.left.discard(name)


@pytest.fixture
def containers() -> Containers:
    return Containers()


@pytest.fixture
async def sessions(
    containers: Containers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sessions]:
    for name in ("_LOOK_SECONDS", "_CHECK_SECONDS", "_PAUSE_SECONDS"):
        monkeypatch.setattr(sessions_module, name, 0.01)
    records = Records(tmp_path)
    found = Sessions(cast("Rest", NoDaemon()), Settings(), cast("Visitors", containers), records, Metrics())
    found.start()
    yield found
    await found.stop()
    records.close()


async def begin(sessions: Sessions, network: str) -> Session:
    session, _ = await sessions.begin(network, "en")
    return session


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def some_looks(sessions: Sessions, containers: Containers) -> None:
    """Wait until all sessions have been looked at some times."""
    seen = containers.questions + 10 * sessions.now
    await until(lambda: containers.questions > seen)


async def none_left(sessions: Sessions) -> None:
    await until(lambda: not sessions.now)


async def test_sessions_whose_browsers_do_not_answer_end_together(
    sessions: Sessions, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = asyncio.Barrier(3)
    silent = asyncio.Event()

    async def close(_terminal: Terminal) -> None:
        await met.wait()
        await silent.wait()

    monkeypatch.setattr(Terminal, "close", close)
    begun = [await begin(sessions, f"192.0.2.{number}") for number in range(3)]
    for session in begun:
        session.expires_at = session.expires_at.replace(year=2000)
    await none_left(sessions)
    assert containers.left == set()
    silent.set()


async def test_a_turn_ends_with_its_session(sessions: Sessions) -> None:
    first = await begin(sessions, "192.0.2.1")
    place = sessions.ask_turn(first)
    assert place is not None
    assert place.has_turn
    await sessions.end(first, "visitor")
    assert (sessions.turns.now, sessions.turns.waiting) == (0, 0)


async def test_whoever_has_done_the_step_needs_no_turn(sessions: Sessions) -> None:
    first = await begin(sessions, "192.0.2.1")
    first.done.append("docker")
    assert sessions.ask_turn(first) is None
    assert sessions.turns.now == 0


async def test_whoever_has_done_the_step_does_not_wait_any_more(sessions: Sessions) -> None:
    """It can be done without a turn."""
    visitors = [await begin(sessions, f"192.0.2.{number}") for number in range(Settings().docker_at_once + 1)]
    for visitor in visitors:
        sessions.ask_turn(visitor)
    assert sessions.turns.waiting == 1
    visitors[-1].done.append("docker")
    assert sessions.ask_turn(visitors[-1]) is None
    assert sessions.turns.waiting == 0


async def has_done_it(sessions: Sessions) -> Session:
    """Return a visitor with a turn who has done the step, and then deleted an instance."""
    session = await begin(sessions, "192.0.2.1")
    sessions.ask_turn(session)
    session.done.append("docker")
    session.watch.deletions += 1
    return session


async def test_a_turn_lasts_while_the_daemon_does_not_say_whether_docker_is_there(
    sessions: Sessions, containers: Containers, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked for that some times after each deletion, and no more."""
    with caplog.at_level(logging.INFO):
        first = await has_done_it(sessions)
        for deletions in (1, 2):
            await until(lambda: first.deletions == first.watch.deletions)
            await some_looks(sessions, containers)
            asked = caplog.text.count("still has Docker")
            assert asked == deletions * sessions_module._MOST_ATTEMPTS
            first.watch.deletions += 1
    assert first.id in sessions.turns


async def test_a_turn_ends_when_the_daemon_says_it_after_a_while(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Exception] = [Unavailable("it starts"), ValueError("unexpected")]

    async def docker_instances(_inside: Inside) -> list[Any]:
        if answers:
            raise answers.pop()
        return []

    monkeypatch.setattr(sessions_module, "docker_instances", docker_instances)
    first = await has_done_it(sessions)
    await until(lambda: first.id not in sessions.turns)
    assert answers == []


async def test_a_visitor_who_deletes_instances_all_the_time_is_asked_one_question_at_a_time(
    sessions: Sessions, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = asyncio.Event()
    asked: list[str] = []
    still = [{"name": "box"}]

    async def docker_instances(_inside: Inside) -> list[Any]:
        asked.append("docker")
        await answer.wait()
        return still

    async def check(_look: Look) -> Verdict:
        asked.append("step")
        return Verdict(False)

    monkeypatch.setattr(sessions_module, "docker_instances", docker_instances)
    first = await has_done_it(sessions)
    await until(lambda: asked)
    checked = asyncio.create_task(sessions.check(first, Step("x", check, commands=())))
    for _ in range(5):
        first.watch.deletions += 1
        await some_looks(sessions, containers)
    assert asked == ["docker"]
    answer.set()
    await checked
    await until(lambda: first.deletions == first.watch.deletions)
    assert asked == ["docker", "step", "docker"]
    assert first.id in sessions.turns
    still.clear()
    first.watch.deletions += 1
    await until(lambda: first.id not in sessions.turns)


async def test_all_sessions_end_together_with_the_site(
    sessions: Sessions, containers: Containers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    met = asyncio.Barrier(3)

    async def close(_terminal: Terminal) -> None:
        await met.wait()

    monkeypatch.setattr(Terminal, "close", close)
    for number in range(3):
        await begin(sessions, f"192.0.2.{number}")
    async with asyncio.timeout(SECONDS):
        await sessions.stop()
    assert containers.left == set()
    assert (tmp_path / "statistics.jsonl").read_text().count('"end":"shutdown"') == 3


async def test_sessions_end_after_unexpected_errors(
    sessions: Sessions,
    containers: Containers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = await begin(sessions, "192.0.2.1")

    async def close() -> None:
        raise ValueError("unexpected")

    monkeypatch.setattr(failing.terminal, "close", close)
    with caplog.at_level(logging.ERROR):
        containers.failures = 2
        containers.left.clear()
        await none_left(sessions)
        await sessions.stop()
    assert {record.message for record in caplog.records} == {
        "cannot see which sessions are over",
        f"the end of session {failing.id} failed",
    }
