from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.idmap import IdMap
from utsuwa.core.locks import NamedLocks
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups.limits import LimitFacts
from utsuwa.instances.confinement import cpu_balance
from utsuwa.instances.confinement.cpu_balance import Cpus, assign, balance
from utsuwa.instances.model import Running, RuntimeTable

Name = tuple[str, str]

hosts = st.frozensets(st.integers(0, 63), min_size=1, max_size=16)
names = st.tuples(st.just("default"), st.text("abcdefgh", min_size=1, max_size=3))
numbers = st.dictionaries(names, st.integers(1, 20), max_size=12)


def loads(cpus: Cpus, found: dict[Name, Cpus]) -> list[int]:
    return [sum(cpu in held for held in found.values()) for cpu in cpus]


@given(hosts, numbers)
def test_each_gets_as_many_as_it_asks_for(cpus: Cpus, wanted: dict[Name, int]) -> None:
    found = balance(cpus, wanted, {}, {})
    assert found.keys() == wanted.keys()
    for name, number in wanted.items():
        assert found[name] <= cpus
        assert len(found[name]) == min(number, len(cpus))


@given(hosts, numbers)
def test_no_cpu_has_two_more_than_another(cpus: Cpus, wanted: dict[Name, int]) -> None:
    spread = loads(cpus, balance(cpus, wanted, {}, {}))
    assert max(spread) - min(spread) <= 1


@given(hosts, numbers, st.data())
def test_what_is_balanced_stays(cpus: Cpus, wanted: dict[Name, int], data: st.DataObject) -> None:
    sets = data.draw(
        st.dictionaries(
            st.tuples(st.just("pinned"), st.sampled_from("abc")),
            st.frozensets(st.sampled_from(sorted(cpus)), min_size=1),
        )
    )
    found = balance(cpus, wanted, sets, {})
    assert balance(cpus, wanted, sets, found) == found


@given(hosts, numbers, st.dictionaries(names, hosts))
def test_spread_wherever_they_are_now(cpus: Cpus, wanted: dict[Name, int], now: dict[Name, Cpus]) -> None:
    spread = loads(cpus, balance(cpus, wanted, {}, now))
    assert max(spread) - min(spread) <= 1


def test_numbers_keep_away_from_sets() -> None:
    facts = LimitFacts(cpus=frozenset(range(4)))
    found = assign({("p", "a"): "2", ("p", "b"): "0-1"}, {}, facts)
    assert found == {("p", "a"): {2, 3}, ("p", "b"): {0, 1}}


def test_only_what_must_moves() -> None:
    facts = LimitFacts(cpus=frozenset(range(4)))
    now = {("p", "a"): frozenset({3}), ("p", "b"): frozenset({1})}
    assert assign({("p", "a"): "1", ("p", "b"): "1"}, now, facts) == now


def test_isolated_cpus_are_for_sets() -> None:
    facts = LimitFacts(cpus=frozenset(range(4)), isolated=frozenset({2, 3}))
    found = assign({("p", "a"): "4", ("p", "b"): "2-3"}, {}, facts)
    assert found == {("p", "a"): {0, 1}, ("p", "b"): {2, 3}}
    alone = LimitFacts(cpus=frozenset({0}), isolated=frozenset({0}))
    assert assign({("p", "a"): "1"}, {}, alone) == {("p", "a"): {0}}


def test_cpus_that_have_gone() -> None:
    facts = LimitFacts(cpus=frozenset({0, 1}))
    found = assign({("p", "a"): "1-3", ("p", "b"): "4-5"}, {}, facts)
    assert found == {("p", "a"): {1}, ("p", "b"): {0, 1}}


def test_who_has_no_limit_is_not_named() -> None:
    assert assign({("p", "a"): ""}, {("p", "a"): frozenset({0})}, LimitFacts(cpus=frozenset({0}))) == {}


async def test_a_host_that_cannot_be_read_fails_no_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable() -> LimitFacts:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cgroup_limits, "read_limit_facts", unreadable)
    runtime = RuntimeTable()
    runtime.add(Running(1, "default", "c1", 2**22 + 1, None, {}, {"limits.cpu": "1"}, IdMap()))
    ctx: Any = SimpleNamespace(locks=NamedLocks(), runtime=runtime)
    with pytest.raises(OSError, match="Input/output error"):
        await cpu_balance.rebalance(ctx)
    await cpu_balance.try_to_rebalance(ctx)
    assert "CPUs were not handed out anew" in caplog.text
