from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.instances import ref, running_container
from tests.support.open_warnings import OpenWarnings
from utsuwa.core.locks import NamedLocks
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups.limits import LimitFacts
from utsuwa.instances.confinement import cpu_balance
from utsuwa.instances.confinement.cpu_balance import Cpus, assign, balance, least_busy_node
from utsuwa.instances.model import CpuWish, RuntimeTable

A, B = ref("a", "p"), ref("b", "p")

hosts = st.frozensets(st.integers(0, 63), min_size=1, max_size=16)
names = st.builds(InstanceRef, st.just("default"), st.text("abcdefgh", min_size=1, max_size=3))
numbers = st.dictionaries(names, st.integers(1, 20), max_size=12)


def loads(cpus: Cpus, found: dict[InstanceRef, Cpus]) -> list[int]:
    return [sum(cpu in held for held in found.values()) for cpu in cpus]


@given(hosts, numbers)
def test_each_has_the_configured_number_of_cpus(cpus: Cpus, wanted: dict[InstanceRef, int]) -> None:
    found = balance(dict.fromkeys(wanted, cpus), wanted, {}, {})
    assert found.keys() == wanted.keys()
    for name, number in wanted.items():
        assert found[name] <= cpus
        assert len(found[name]) == min(number, len(cpus))


@given(hosts, numbers)
def test_instances_are_spread_evenly(cpus: Cpus, wanted: dict[InstanceRef, int]) -> None:
    spread = loads(cpus, balance(dict.fromkeys(wanted, cpus), wanted, {}, {}))
    assert max(spread) - min(spread) <= 1


@given(hosts, numbers, st.data())
def test_a_balanced_assignment_is_stable(
    cpus: Cpus, wanted: dict[InstanceRef, int], data: st.DataObject
) -> None:
    sets = data.draw(
        st.dictionaries(
            st.builds(InstanceRef, st.just("pinned"), st.sampled_from("abc")),
            st.frozensets(st.sampled_from(sorted(cpus)), min_size=1),
        )
    )
    pools = dict.fromkeys(wanted, cpus)
    found = balance(pools, wanted, sets, {})
    assert balance(pools, wanted, sets, found) == found


@given(hosts, numbers, st.dictionaries(names, hosts))
def test_instances_are_spread_evenly_from_any_assignment(
    cpus: Cpus, wanted: dict[InstanceRef, int], now: dict[InstanceRef, Cpus]
) -> None:
    spread = loads(cpus, balance(dict.fromkeys(wanted, cpus), wanted, {}, now))
    assert max(spread) - min(spread) <= 1


def test_numbers_avoid_the_cpus_of_sets() -> None:
    facts = LimitFacts(cpus=frozenset(range(4)))
    found = assign({A: CpuWish("2"), B: CpuWish("0-1")}, {}, facts)
    assert found == {A: {2, 3}, B: {0, 1}}


def test_only_necessary_moves() -> None:
    facts = LimitFacts(cpus=frozenset(range(4)))
    now = {A: frozenset({3}), B: frozenset({1})}
    assert assign({A: CpuWish("1"), B: CpuWish("1")}, now, facts) == now


def test_isolated_cpus_are_for_sets() -> None:
    facts = LimitFacts(cpus=frozenset(range(4)), isolated=frozenset({2, 3}))
    found = assign({A: CpuWish("4"), B: CpuWish("2-3")}, {}, facts)
    assert found == {A: {0, 1}, B: {2, 3}}
    alone = LimitFacts(cpus=frozenset({0}), isolated=frozenset({0}))
    assert assign({A: CpuWish("1")}, {}, alone) == {A: {0}}


def test_cpus_that_no_longer_exist() -> None:
    facts = LimitFacts(cpus=frozenset({0, 1}))
    found = assign({A: CpuWish("1-3"), B: CpuWish("4-5")}, {}, facts)
    assert found == {A: {1}, B: {0, 1}}


def test_instances_without_a_limit_are_omitted() -> None:
    assert assign({A: CpuWish("")}, {A: frozenset({0})}, LimitFacts(cpus=frozenset({0}))) == {}


TWO_NODES = LimitFacts(
    cpus=frozenset(range(8)),
    isolated=frozenset({3}),
    nodes={0: frozenset(range(4)), 1: frozenset(range(4, 8)), 2: frozenset()},
    memory_nodes=frozenset({0, 1}),
)


@pytest.mark.parametrize(
    ("limit", "nodes", "cpus"),
    [
        ("", "1", {4, 5, 6, 7}),
        ("", "0-1", set(range(8))),
        ("2", "1", {4, 5}),
        ("6", "1", {4, 5, 6, 7}),  # no more than the nodes have
        ("4", "0", {0, 1, 2}),  # without isolated ones
        ("0-1", "1", {0, 1}),  # a set takes precedence
        ("1", "2", {0}),  # a node without CPUs does not restrict them
        ("1", "7", {0}),  # nor does one that no longer exists
    ],
)
def test_cpus_of_numa_nodes(limit: str, nodes: str, cpus: set[int]) -> None:
    assert assign({A: CpuWish(limit, nodes)}, {}, TWO_NODES) == {A: cpus}


def test_instances_that_may_use_all_nodes_avoid_those_of_one() -> None:
    found = assign({A: CpuWish("4", "1"), B: CpuWish("3")}, {}, TWO_NODES)
    assert found == {A: {4, 5, 6, 7}, B: {0, 1, 2}}


def test_the_least_busy_node() -> None:
    assert least_busy_node([], TWO_NODES) == "0"
    assert least_busy_node([], TWO_NODES, now="1") == "1"
    assert least_busy_node([CpuWish(nodes="0")], TWO_NODES) == "1"
    assert least_busy_node([CpuWish(nodes="0-1"), CpuWish("2"), CpuWish(nodes="1")], TWO_NODES, "1") == "0"
    assert least_busy_node([], LimitFacts(cpus=frozenset({0}))) == ""


async def test_a_container_moves_to_the_memory_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[tuple[object, str]] = []

    def pin(pid: int, numbers: object, file: str = "cpuset.cpus") -> None:
        pinned.append((numbers, file))

    monkeypatch.setattr(cgroup_limits, "read_limit_facts", lambda: TWO_NODES)
    monkeypatch.setattr(cgroup_limits, "pin", pin)
    runtime, warnings, undo = RuntimeTable(), OpenWarnings(), Rollback()
    moved = running_container(pid=2**22 + 1)
    runtime.add(moved)
    runtime.add(running_container("c2", pid=2**22 + 2, **{"limits.cpu.nodes": "0"}))
    ctx: Any = SimpleNamespace(locks=NamedLocks(), runtime=runtime, warnings=warnings)
    await cpu_balance.rebalance(ctx)
    pinned.clear()
    balanced = {"limits.cpu.nodes": "balanced"}
    assert await cpu_balance.change_wish(ctx, moved, balanced, undo) == {"volatile.cpu.nodes": "1"}
    await cpu_balance.rebalance(ctx)
    assert pinned == [({4, 5, 6, 7}, "cpuset.cpus"), ({1}, "cpuset.mems")]
    pinned.clear()
    moved.config = {**balanced, "volatile.cpu.nodes": "1"}
    changed = {"volatile.cpu.nodes": "1"}
    assert await cpu_balance.change_wish(ctx, moved, changed, undo) == {"volatile.cpu.nodes": None}
    await cpu_balance.rebalance(ctx)
    assert pinned == [(None, "cpuset.cpus"), (None, "cpuset.mems")]


async def test_a_container_that_stays_on_its_cpus_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the next change succeeds."""

    def fails(pid: int, cpus: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(cgroup_limits, "read_limit_facts", lambda: LimitFacts(frozenset({0, 1})))
    monkeypatch.setattr(cgroup_limits, "pin", fails)
    runtime, warnings = RuntimeTable(), OpenWarnings()
    runtime.add(running_container(pid=2**22 + 1, **{"limits.cpu": "1"}))
    ctx: Any = SimpleNamespace(locks=NamedLocks(), runtime=runtime, warnings=warnings)
    await cpu_balance.rebalance(ctx)
    assert warnings.messages == {
        "CPUs of an instance not assigned": "cannot move instance 'c1' to other CPUs: Permission denied"
    }
    monkeypatch.setattr(cgroup_limits, "pin", lambda pid, cpus: None)
    await cpu_balance.rebalance(ctx)
    assert warnings.messages == {}


async def test_an_unreadable_host_does_not_prevent_a_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable() -> LimitFacts:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cgroup_limits, "read_limit_facts", unreadable)
    runtime = RuntimeTable()
    runtime.add(running_container(pid=2**22 + 1, **{"limits.cpu": "1"}))
    ctx: Any = SimpleNamespace(locks=NamedLocks(), runtime=runtime)
    with pytest.raises(OSError, match="Input/output error"):
        await cpu_balance.rebalance(ctx)
    await cpu_balance.try_to_rebalance(ctx)
    assert "cannot reassign CPUs" in caplog.text
