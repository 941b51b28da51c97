"""Turns to run Docker on the public site: how many there are, who is next, and when they end."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.long import LONG, amount
from utsuwa.tryit.metrics import Metrics
from utsuwa.tryit.turns import UNSEEN_SECONDS, Place, Turns

MOST = 2
SECONDS = 300.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def turns(clock: Clock, metrics: Metrics) -> Turns:
    return Turns(MOST, SECONDS, metrics, clock)


def test_the_first_ones_have_their_turn_and_others_wait_in_order(turns: Turns) -> None:
    assert [turns.ask(name) for name in "abcd"] == [
        Place(True, seconds=300),
        Place(True, seconds=300),
        Place(False, ahead=0),
        Place(False, ahead=1),
    ]
    assert (turns.now, turns.waiting) == (2, 2)


def test_asking_again_changes_nothing(turns: Turns, clock: Clock) -> None:
    for name in "abcd":
        turns.ask(name)
    clock.now += 10
    for _ in range(100):
        assert turns.ask("d") == Place(False, ahead=1)
        assert turns.ask("a") == Place(True, seconds=290)
    assert (turns.now, turns.waiting) == (2, 2)


def test_the_next_one_has_its_turn_when_one_leaves(turns: Turns, metrics: Metrics, clock: Clock) -> None:
    for name in "abcd":
        turns.ask(name)
    clock.now += 50
    turns.leave("c", "left")
    turns.leave("a", "done")
    assert "d" in turns
    assert turns.ask("d") == Place(True, seconds=300)
    assert dict(metrics.turns_ended) == {"done": 1}
    assert (metrics.turn_waits.count, metrics.turn_waits.total) == (3, 50)
    turns.leave("nobody", "left")
    assert (turns.now, turns.waiting) == (2, 0)


def test_nobody_has_a_turn_for_ever(turns: Turns, metrics: Metrics, clock: Clock) -> None:
    """Whoever goes on asking comes after those who wait."""
    for name in "abc":
        turns.ask(name)
    for _ in range(int(SECONDS // 30)):
        clock.now += 30
        for name in "abc":
            turns.ask(name)
    assert turns.ask("c").has_turn
    assert [turns.ask(name) for name in "ab"].count(Place(False, ahead=0)) == 1
    assert metrics.turns_ended == {"time": 2}


def test_a_turn_goes_on_with_a_new_one_if_nobody_waits(turns: Turns, clock: Clock) -> None:
    seconds = []
    for _ in range(7):
        seconds.append(turns.ask("a").seconds)
        clock.now += 50
    assert seconds == [300, 250, 200, 150, 100, 50, 300]


def test_whoever_no_longer_asks_loses_the_turn_and_the_place(
    turns: Turns, metrics: Metrics, clock: Clock
) -> None:
    for name in "abcd":
        turns.ask(name)
    clock.now += UNSEEN_SECONDS - 1
    for name in "bd":
        turns.ask(name)
    clock.now += 1
    turns.look()
    assert [name for name in "abcd" if name in turns] == ["b", "d"]
    assert turns.waiting == 0
    assert metrics.turns_ended == {"unseen": 1}


def test_those_whose_visitors_left_while_waiting_get_no_turn(turns: Turns, clock: Clock) -> None:
    for name in "abcd":
        turns.ask(name)
    clock.now += UNSEEN_SECONDS
    turns.look()
    assert (turns.now, turns.waiting) == (0, 0)


class Visits(RuleBasedStateMachine):
    """Visitors who come, ask, leave and forget to, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.turns = Turns(MOST, SECONDS, Metrics(), self.clock)
        self.queue: list[str] = []
        """Those who wait, in the order in which they came."""
        self.since: dict[str, float] = {}
        """When the turns have begun."""

    names = st.sampled_from("abcdef")

    @rule(name=names)
    def ask(self, name: str) -> None:
        self.follow()
        place = self.turns.ask(name)
        if name not in self.since and name not in self.queue:
            self.queue.append(name)
        self.follow()
        if place.has_turn:
            assert 0 <= place.seconds <= SECONDS
        else:
            assert self.queue.index(name) == place.ahead

    @rule(name=names)
    def leave(self, name: str) -> None:
        self.turns.leave(name, "left")
        self.queue = [other for other in self.queue if other != name]
        self.since.pop(name, None)
        self.follow()

    @rule(seconds=st.sampled_from([1.0, 40.0, UNSEEN_SECONDS - 1]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        for name in [*self.since, *self.queue]:
            self.turns.ask(name)
        self.resync()

    @rule()
    def stay_away(self) -> None:
        self.clock.now += UNSEEN_SECONDS
        self.turns.look()
        self.queue, self.since = [], {}

    def follow(self) -> None:
        """Note whose turns have begun: those of the ones that came first."""
        begun = [name for name in self.queue if name in self.turns]
        assert begun == self.queue[: len(begun)], "someone was passed over"
        self.queue = self.queue[len(begun) :]
        self.since |= dict.fromkeys(begun, self.clock.now)

    def resync(self) -> None:
        """Note whose turns are over, after all have asked again: they come after those who waited."""
        over = [name for name, since in self.since.items() if self.clock.now >= since + SECONDS]
        for name in over:
            del self.since[name]
        self.queue += over
        self.follow()

    @invariant()
    def few_have_turns_and_no_turn_is_wasted(self) -> None:
        assert self.turns.now <= MOST
        assert self.turns.now == MOST or self.turns.waiting == 0

    @invariant()
    def each_is_where_it_should_be(self) -> None:
        assert self.turns.waiting == len(self.queue)
        assert {name for name in "abcdef" if name in self.turns} == set(self.since)


TestVisits = Visits.TestCase
TestVisits.settings = settings(
    max_examples=amount(50, long=500), stateful_step_count=30, derandomize=not LONG
)
