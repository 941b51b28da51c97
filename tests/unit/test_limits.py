from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidConfig
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups.limits import LimitFacts
from utsuwa.host.system import descriptors
from utsuwa.instances.confinement import limits
from utsuwa.instances.confinement.limits import cpu_share, plan, rlimits, start_lines

NAMES = ("cpu", "cpuset", "memory", "pids", "hugetlb", "blkio")
V1 = LimitFacts(
    cpus=frozenset(range(4)),
    nodes={0: frozenset(range(4))},
    memory=2**30,
    controllers=dict.fromkeys(NAMES, 1),
    swap=True,
    huge_pages=frozenset({"2MB"}),
)
V2 = replace(V1, controllers={name: 2 for name in ("cpu", "cpuset", "memory", "pids", "hugetlb", "io")})
MIB = 2**20


def lines(facts: LimitFacts, **config: str) -> dict[str, str]:
    named = {f"limits.{key}": value for key, value in config.items()}
    return dict(start_lines(named, facts))


def test_without_limits_there_are_no_lines() -> None:
    assert lines(V1) == lines(V2) == {}
    assert lines(V1, memory="", processes="") == {}
    assert lines(V2, **{"memory.enforce": "soft", "memory.swap": "true", "cpu.allowance": "100%"}) == {}


@pytest.mark.parametrize(
    ("config", "v1", "v2"),
    [
        (
            {"memory": "64MiB"},
            {"limit_in_bytes": 64 * MIB, "memsw.limit_in_bytes": 64 * MIB},
            {"max": 64 * MIB, "swap.max": 64 * MIB},
        ),
        (
            {"memory": "25%"},
            {"limit_in_bytes": 256 * MIB, "memsw.limit_in_bytes": 256 * MIB},
            {"max": 256 * MIB, "swap.max": 256 * MIB},
        ),
        (
            {"memory": "64MiB", "memory.enforce": "soft"},
            {"soft_limit_in_bytes": 64 * MIB},
            {"low": 64 * MIB},
        ),
        (
            {"memory": "64MiB", "memory.swap": "false"},
            {"limit_in_bytes": 64 * MIB, "memsw.limit_in_bytes": 64 * MIB, "swappiness": 0},
            {"max": 64 * MIB, "swap.max": 0},
        ),
        (
            {"memory": "64MiB", "memory.swap": "16MiB"},
            {"limit_in_bytes": 64 * MIB, "memsw.limit_in_bytes": 80 * MIB},
            {"max": 64 * MIB, "swap.max": 16 * MIB},
        ),
        ({"memory.swap": "false"}, {"swappiness": 0}, {"swap.max": 0}),
        ({"memory.swap.priority": "3"}, {"swappiness": 67}, {}),
    ],
)
def test_memory(config: dict[str, str], v1: dict[str, int], v2: dict[str, int]) -> None:
    assert lines(V1, **config) == {f"lxc.cgroup.memory.{name}": str(value) for name, value in v1.items()}
    assert lines(V2, **config) == {f"lxc.cgroup2.memory.{name}": str(value) for name, value in v2.items()}


def test_memory_without_accounting_of_swap() -> None:
    assert lines(replace(V1, swap=False), memory="1MiB") == {"lxc.cgroup.memory.limit_in_bytes": str(MIB)}
    assert lines(replace(V2, swap=False), memory="1MiB") == {"lxc.cgroup2.memory.max": str(MIB)}


@pytest.mark.parametrize(
    ("config", "v1", "v2"),
    [
        ({"cpu.allowance": "50%"}, {"shares": "512"}, {"weight": "50"}),
        (
            {"cpu.allowance": "25ms/200ms"},
            {"cfs_period_us": "200000", "cfs_quota_us": "25000"},
            {"max": "25000 200000"},
        ),
        ({"cpu.allowance": "200ms/100ms"}, {"cfs_quota_us": "200000"}, {"max": "200000 100000"}),
        ({"cpu.priority": "0"}, {"shares": "93"}, {"weight": "9"}),
        ({"cpu.allowance": "1%", "cpu.priority": "0"}, {"shares": "2"}, {"weight": "1"}),
    ],
)
def test_cpu_time(config: dict[str, str], v1: dict[str, str], v2: dict[str, str]) -> None:
    assert lines(V1, **config) == {f"lxc.cgroup.cpu.{name}": value for name, value in v1.items()}
    assert lines(V2, **config) == {f"lxc.cgroup2.cpu.{name}": value for name, value in v2.items()}


@given(st.integers(1, 100), st.integers(0, 10))
def test_shares_grow_with_allowance_and_priority(percent: int, priority: int) -> None:
    share = cpu_share(f"{percent}%", str(priority))
    assert 0 < share <= 1
    assert priority == 10 or share < cpu_share(f"{percent}%", str(priority + 1))
    assert percent == 100 or share < cpu_share(f"{percent + 1}%", str(priority))
    for facts in (V1, V2):
        values = lines(facts, **{"cpu.allowance": f"{percent}%", "cpu.priority": str(priority)})
        assert all(int(value) >= 1 for value in values.values())


def test_processes() -> None:
    assert lines(V1, processes="7") == {"lxc.cgroup.pids.max": "7"}
    assert lines(V2, processes="7") == {"lxc.cgroup2.pids.max": "7"}
    assert lines(V2, processes=str(10**9)) == {}


def test_huge_pages() -> None:
    assert lines(V1, **{"hugepages.2MB": "8MiB"}) == {"lxc.cgroup.hugetlb.2MB.limit_in_bytes": str(8 * MIB)}
    assert lines(V2, **{"hugepages.2MB": "8MiB"}) == {"lxc.cgroup2.hugetlb.2MB.max": str(8 * MIB)}


def test_cpuset_lines() -> None:
    assert limits.cpuset_lines(None, None, V1) == []
    assert limits.cpuset_lines(frozenset({0, 1, 3}), None, V1) == [("lxc.cgroup.cpuset.cpus", "0-1,3")]
    found = limits.cpuset_lines(frozenset({2}), frozenset({0, 1}), V2)
    assert found == [("lxc.cgroup2.cpuset.cpus", "2"), ("lxc.cgroup2.cpuset.mems", "0-1")]


def test_numa_nodes_of_the_host() -> None:
    numa, uniform = replace(V2, nodes={0: frozenset({0}), 1: frozenset({1})}), replace(V2, nodes={})
    limits.check({"limits.cpu.nodes": "0-1"}, numa)
    limits.check({"limits.cpu.nodes": "balanced"}, numa)
    with pytest.raises(InvalidConfig, match="this host has no NUMA node 2-3; it has 0-1"):
        limits.check({"limits.cpu.nodes": "1-3"}, numa)
    for value in ("0", "balanced"):
        with pytest.raises(InvalidConfig, match="does not support NUMA"):
            limits.check({"limits.cpu.nodes": value}, uniform)


def test_a_score_that_the_daemon_may_not_set() -> None:
    limits.check({"limits.memory.oom_priority": "-1000"}, V2)
    with pytest.raises(InvalidConfig, match="must be at least -5 here"):
        limits.check({"limits.memory.oom_priority": "-6"}, replace(V2, lowest_oom_score=-5))


def test_a_plan_always_contains_the_same_files() -> None:
    """So that what is unset is written back to the kernel's default."""
    config = {"limits.memory": "1GiB", "limits.cpu.allowance": "10ms/100ms", "limits.processes": "5"}
    for facts in (V1, V2):
        assert plan(config, facts).keys() == plan({}, facts).keys()


# ---- what a host cannot hold


@pytest.mark.parametrize(
    ("key", "value", "controller"),
    [
        ("limits.cpu", "2", "cpuset"),
        ("limits.cpu.allowance", "10%", "cpu"),
        ("limits.cpu.nodes", "0", "cpuset"),
        ("limits.cpu.priority", "1", "cpu"),
        ("limits.disk.priority", "1", "io"),
        ("limits.memory", "1GiB", "memory"),
        ("limits.memory.swap", "false", "memory"),
        ("limits.processes", "5", "pids"),
    ],
)
@pytest.mark.parametrize("facts", [V1, V2])
def test_a_missing_controller(facts: LimitFacts, key: str, value: str, controller: str) -> None:
    limits.check({key: value}, facts)
    without = {k: v for k, v in facts.controllers.items() if k not in (controller, "blkio")}
    poorer = replace(facts, controllers=without)
    with pytest.raises(InvalidConfig, match=f"{key}.*{controller}"):
        limits.check({key: value}, poorer)
    limits.check({key: ""}, poorer)
    assert start_lines({key: value}, poorer) == []


def test_missing_cpus() -> None:
    limits.check({"limits.cpu": "0-3"}, V1)
    limits.check({"limits.cpu": "64"}, V1)  # a number means at most so many
    with pytest.raises(InvalidConfig, match=r"no CPU 4-5,7; it has 0-3"):
        limits.check({"limits.cpu": "3-5,7"}, V1)


def test_swap_in_bytes_without_accounting_of_swap() -> None:
    with pytest.raises(InvalidConfig, match="swap"):
        limits.check({"limits.memory.swap": "1GiB"}, replace(V2, swap=False))
    limits.check({"limits.memory.swap": "false"}, replace(V2, swap=False))


def test_missing_sizes_of_huge_pages() -> None:
    limits.check({"limits.hugepages.2MB": "8MiB"}, V2)
    with pytest.raises(InvalidConfig, match=r"limits\.hugepages\.1GB.*2MB"):
        limits.check({"limits.hugepages.1GB": "1GiB"}, V2)
    with pytest.raises(InvalidConfig, match="none"):
        limits.check({"limits.hugepages.2MB": "8MiB"}, replace(V2, controllers={}))


# ---- resource limits


def test_resource_limits() -> None:
    config = {
        "limits.kernel.nofile": "100:200",
        "limits.kernel.core": "unlimited",
        "limits.kernel.nice": "5:unlimited",
        "limits.kernel.cpu": "",
        "limits.memory": "1GiB",
    }
    assert rlimits(config) == {"nofile": (100, 200), "core": (-1, -1), "nice": (5, -1)}


# ---- disks


@pytest.mark.parametrize(
    ("priority", "weights"),
    [("", ["500", "100"]), ("5", ["500", "100"]), ("0", ["10", "2"]), ("10", ["1000", "200"])],
)
def test_disk_weights(monkeypatch: pytest.MonkeyPatch, priority: str, weights: list[str]) -> None:
    files = [(1, "blkio", "blkio.weight", 500), (1, "blkio", "blkio.bfq.weight", 100)]
    monkeypatch.setattr(cgroup_limits, "disk_weights", lambda _pid: files)
    found = limits.disk_plan({"limits.disk.priority": priority}, 7)
    assert [(knob.file, value) for knob, value in found.items()] == [
        ("blkio.weight", weights[0]),
        ("blkio.bfq.weight", weights[1]),
    ]


def test_a_disk_priority_without_weights_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_limits, "disk_weights", lambda _pid: [])
    assert limits.disk_plan({}, 7) == {}
    with pytest.raises(InvalidConfig, match=r"limits\.disk\.priority"):
        limits.disk_plan({"limits.disk.priority": "5"}, 7)


def test_containers_have_the_original_limit_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "original_limit", lambda: (1024, -1))
    assert rlimits({}) == {"nofile": (1024, -1)}
    assert rlimits({"limits.kernel.nofile": "5:6", "limits.kernel.core": "0"}) == {
        "nofile": (5, 6),
        "core": (0, 0),
    }
    assert limits.with_kernel_defaults({"a": "b"}) == {"a": "b", "limits.kernel.nofile": "1024:unlimited"}
    monkeypatch.setattr(descriptors, "original_limit", lambda: None)
    assert rlimits({}) == {}
