"""Writes to cgroups, on trees of plain files; the kernel's refusals are played."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidConfig
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.cgroups.limits import Knob, LimitFacts, cpu_list
from utsuwa.host.system.facts import parse_cpu_list

PID = 7


class Host:
    """A /proc, a /sys, hierarchies, and one container with a folder of its own in each."""

    def __init__(self, root: Path, mounts: dict[str, str]) -> None:
        self.root, self.proc, self.sys = root, root / "proc", root / "sys"
        lines, paths = [], []
        for number, (name, kind) in enumerate(mounts.items(), 30):
            lines.append(f"{number} 1 0:{number} / {root / name} rw - {kind}")
            controllers = "" if kind.startswith("cgroup2") else kind.split()[-1]
            paths.append(f"{0 if not controllers else number}:{controllers}:/u/lxc.payload.c/init.scope")
        for pid in ("self", str(PID)):
            self.put(f"proc/{pid}/cgroup", "\n".join(paths) if pid != "self" else "")
        self.put("proc/self/mountinfo", "\n".join(lines))

    def put(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def own(self, mount: str, **files: str) -> None:
        """Files of the container's own folder; `__` stands for a dot."""
        for name, text in files.items():
            self.put(f"{mount}/u/lxc.payload.c/{name.replace('__', '.')}", text)

    def has(self, mount: str, name: str) -> str:
        return (self.root / mount / "u/lxc.payload.c" / name).read_text()


@pytest.fixture(autouse=True)
def _plain_mountinfo() -> None:
    cgroups._hierarchies.cache_clear()


@pytest.fixture
def v2(tmp_path: Path) -> Host:
    host = Host(tmp_path / "v2", {"cg": "cgroup2 none rw"})
    host.put("cg/cgroup.controllers", "cpuset cpu io memory hugetlb pids\n")
    host.own("cg", cgroup__controllers="cpu\n", memory__max="max\n", memory__high="max\n")
    host.own("cg", memory__current="1000\n", pids__current="5\n", pids__max="max\n", cpuset__cpus="\n")
    return host


@pytest.fixture
def v1(tmp_path: Path) -> Host:
    names = ("memory", "pids", "cpuset")
    host = Host(tmp_path / "v1", {name: f"cgroup none {name}" for name in names} | {"uni": "cgroup2 none rw"})
    host.put("uni/cgroup.controllers", "hugetlb\n")
    host.own("memory", memory__limit_in_bytes="500", memory__memsw__limit_in_bytes="500")
    host.own("pids", pids__current="5", pids__max="max")
    return host


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every write in its order, as it is carried out."""
    seen: list[tuple[str, str]] = []
    write = cgroups.write

    def record(path: Path, value: str) -> None:
        seen.append((path.name, value))
        write(path, value)

    monkeypatch.setattr(cgroups, "write", record)
    return seen


Refuse = Callable[[str, int], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """`refuse("memory.max", errno.EBUSY)`: the kernel refuses writes to that file."""
    write = cgroups.write

    def arrange(name: str, number: int) -> None:
        def refusing(path: Path, value: str) -> None:
            if path.name == name:
                raise OSError(number, os.strerror(number), str(path))
            write(path, value)

        monkeypatch.setattr(cgroups, "write", refusing)

    return arrange


def knob(file: str, version: int = 2, key: str = "limits.x") -> Knob:
    return Knob(key, file.split(".")[0], version, file)


# ---- the host


def test_a_v2_host(v2: Host) -> None:
    v2.put("sys/devices/system/cpu/online", "0-7\n")
    v2.put("sys/devices/system/cpu/isolated", "6-7\n")
    v2.put("cg/cpuset.cpus.effective", "0-3,6\n")
    v2.put("cg/cpuset.mems.effective", "0\n")
    v2.put("sys/devices/system/node/online", "0-1\n")
    v2.put("sys/devices/system/node/has_memory", "0-1\n")
    v2.put("sys/devices/system/node/node0/cpulist", "0-2\n")
    v2.put("sys/devices/system/node/node1/cpulist", "3-7\n")
    v2.put("proc/self/uid_map", "         0    1000000    1000000000\n")
    v2.put("proc/self/oom_score_adj", "-7\n")
    v2.put("proc/self/status", "CapEff:\t000001ffffffffff\n")
    v2.put("proc/meminfo", "MemTotal:  2048 kB\nMemFree: 1 kB\n")
    v2.put("proc/sys/vm/swappiness", "10\n")
    v2.put("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0")
    v2.put("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0")
    v2.put("sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages", "0")
    v2.put("cg/system.slice/memory.max", "max")
    v2.put("cg/system.slice/memory.swap.max", "max")
    assert cgroup_limits.read_limit_facts(v2.proc, v2.sys) == LimitFacts(
        cpus=frozenset({0, 1, 2, 3, 6}),
        isolated=frozenset({6, 7}),
        nodes={0: frozenset({0, 1, 2}), 1: frozenset({3, 6})},
        memory_nodes=frozenset({0}),
        lowest_oom_score=-7,
        memory=2 * 2**20,
        controllers=dict.fromkeys(("cpuset", "cpu", "io", "memory", "hugetlb", "pids"), 2),
        swap=True,
        swappiness=10,
        huge_pages=frozenset({"64KB", "2MB", "1GB"}),
    )


def test_a_v2_host_that_does_not_account_for_swap(v2: Host) -> None:
    v2.put("cg/system.slice/memory.max", "max")
    assert not cgroup_limits.read_limit_facts(v2.proc, v2.sys).swap


def test_swap_accounting_without_delegated_memory_controller(v2: Host) -> None:
    assert not cgroup_limits.read_limit_facts(v2.proc, v2.sys).swap
    v2.put("proc/swaps", "Filename\n")
    assert cgroup_limits.read_limit_facts(v2.proc, v2.sys).swap


def test_a_v1_host_whose_v2_is_left_alone(v1: Host) -> None:
    v1.put("sys/devices/system/cpu/online", "0-1\n")
    v1.put("cpuset/cpuset.cpus", "0-1\n")
    v1.put("memory/memory.memsw.limit_in_bytes", "1\n")
    facts = cgroup_limits.read_limit_facts(v1.proc, v1.sys)
    assert facts.controllers == {"memory": 1, "pids": 1, "cpuset": 1}
    assert facts.cpus == {0, 1}
    assert facts.swap


def test_a_v1_hierarchy_without_controllers_does_not_count(tmp_path: Path) -> None:
    host = Host(tmp_path, {"cg": "cgroup2 none rw", "sd": "cgroup none rw,xattr,name=systemd"})
    host.put("cg/cgroup.controllers", "cpu memory\n")
    assert cgroup_limits.read_limit_facts(host.proc, host.sys).controllers == {"cpu": 2, "memory": 2}


def test_a_host_without_cgroups(tmp_path: Path) -> None:
    host = Host(tmp_path, {})
    assert cgroup_limits.read_limit_facts(host.proc, host.sys) == LimitFacts(cpus=frozenset({0}))


# ---- a change


def test_a_change_and_its_undoing(v2: Host) -> None:
    plan = {knob("pids.max"): "9", knob("memory.max"): "4096"}
    written = cgroup_limits.change(PID, plan, v2.proc)
    assert (v2.has("cg", "pids.max"), v2.has("cg", "memory.max")) == ("9", "4096")
    cgroup_limits.restore(written)
    assert (v2.has("cg", "pids.max"), v2.has("cg", "memory.max")) == ("max", "max")


def test_the_containers_own_folder_is_written_and_not_that_of_its_init(v2: Host) -> None:
    inner = v2.put("cg/u/lxc.payload.c/init.scope/pids.max", "max")
    cgroup_limits.change(PID, {knob("pids.max"): "9"}, v2.proc)
    assert inner.read_text() == "max"


@pytest.mark.parametrize("failure", [errno.EINVAL, errno.EPERM])
def test_refused_value_reverts_earlier_changes(v2: Host, refuse: Refuse, failure: int) -> None:
    refuse("memory.max", failure)
    plan = {knob("pids.max"): "9", knob("memory.max", key="limits.memory"): "4096"}
    with pytest.raises(InvalidConfig, match=r"limits\.memory.*4096"):
        cgroup_limits.change(PID, plan, v2.proc)
    assert v2.has("cg", "pids.max") == "max"


def test_a_file_that_is_missing(v2: Host) -> None:
    with pytest.raises(InvalidConfig, match=r"limits\.y.*io\.weight"):
        cgroup_limits.change(PID, {knob("io.weight", key="limits.y"): "100"}, v2.proc)


def test_a_controller_that_is_missing(v1: Host) -> None:
    with pytest.raises(InvalidConfig, match=r"limits\.y.*no cpu controller"):
        cgroup_limits.change(PID, {knob("cpu.shares", 1, "limits.y"): "100"}, v1.proc)


def test_a_container_that_has_ended(v2: Host, refuse: Refuse) -> None:
    assert cgroup_limits.change(8, {knob("pids.max"): "9"}, v2.proc) == []
    refuse("pids.max", errno.ENODEV)
    cgroup_limits.change(PID, {knob("pids.max"): "9"}, v2.proc)
    cgroup_limits.restore([(v2.root / "gone/pids.max", "1")])


def test_the_cgroup_of_an_init_that_is_ending_is_not_the_root(v1: Host) -> None:
    """Where version 1 shows it: the limits would be those of the host."""
    for path in ("/", "/../.."):
        (v1.proc / str(PID) / "cgroup").write_text(f"1:cpu,cpuacct:{path}\n2:memory:{path}\n0::/u\n")
        limit = v1.put("mem/memory.limit_in_bytes", "9223372036854771712")
        assert cgroup_limits.change(PID, {knob("memory.limit_in_bytes", 1): "4096"}, v1.proc) == []
        assert limit.read_text() == "9223372036854771712"


def test_fewer_processes_than_there_are(v1: Host, v2: Host) -> None:
    for host, version in ((v1, 1), (v2, 2)):
        cgroups._hierarchies.cache_clear()
        with pytest.raises(InvalidConfig, match="has 5 processes"):
            cgroup_limits.change(PID, {knob("pids.max", version): "4"}, host.proc)
        cgroup_limits.change(PID, {knob("pids.max", version): "5"}, host.proc)


# ---- memory


def test_limit_below_usage_is_set_if_memory_can_be_reclaimed(
    v2: Host, monkeypatch: pytest.MonkeyPatch, writes: list[tuple[str, str]]
) -> None:
    write = cgroups.write

    def reclaiming(path: Path, value: str) -> None:
        write(path, value)
        if path.name == "memory.high" and value.isdecimal():
            v2.own("cg", memory__current=str(min(1000, int(value))))

    monkeypatch.setattr(cgroups, "write", reclaiming)
    cgroup_limits.change(PID, {knob("memory.max"): "600"}, v2.proc)
    assert writes == [("memory.high", "600"), ("memory.high", "max"), ("memory.max", "600")]


def test_limit_below_usage_does_not_kill_processes(v2: Host, writes: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidConfig, match="uses 1000 bytes"):
        cgroup_limits.change(PID, {knob("memory.max"): "600"}, v2.proc)
    assert writes == [("memory.high", "600"), ("memory.high", "max")]


def test_memory_that_v1_does_not_take(v1: Host, refuse: Refuse) -> None:
    v1.own("memory", memory__usage_in_bytes="400")
    refuse("memory.limit_in_bytes", errno.EBUSY)
    with pytest.raises(InvalidConfig, match="uses 400 bytes"):
        cgroup_limits.change(PID, {knob("memory.limit_in_bytes", 1): "100"}, v1.proc)


@given(st.integers(1, 1000), st.integers(0, 500), st.booleans())
def test_memory_alone_never_has_the_higher_limit(new: int, more: int, unlimited: bool) -> None:
    """The kernel refuses that, also for the moment between two writes."""
    has = {"memory.limit_in_bytes": 500.0, "memory.memsw.limit_in_bytes": 500.0}
    values = ["-1", "-1"] if unlimited else [str(new), str(new + more)]
    plan = {knob(name, 1): value for name, value in zip(has, values, strict=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroup_limits, "_text", lambda path: str(int(has[path.name])))
        for step, _path, value in cgroup_limits._in_order(plan, {"memory": Path("m")}):
            has[step.file] = float("inf") if value == "-1" else int(value)
            assert has["memory.limit_in_bytes"] <= has["memory.memsw.limit_in_bytes"]


# ---- CPUs


def test_cpus_on_v2(v2: Host) -> None:
    assert cgroup_limits.pinned(PID, proc=v2.proc) == frozenset()
    cgroup_limits.pin(PID, frozenset({0, 2}), proc=v2.proc)
    assert v2.has("cg", "cpuset.cpus") == "0,2"
    assert cgroup_limits.pinned(PID, proc=v2.proc) == {0, 2}
    cgroup_limits.pin(PID, None, proc=v2.proc)
    assert v2.has("cg", "cpuset.cpus") == "\n"


def test_cpus_on_v1(v1: Host) -> None:
    v1.put("cpuset/u/cpuset.cpus", "0-3")
    v1.own("cpuset", cpuset__cpus="0-3")
    inner = v1.put("cpuset/u/lxc.payload.c/docker/cpuset.cpus", "1-2")
    deeper = v1.put("cpuset/u/lxc.payload.c/docker/x/cpuset.cpus", "1")
    cgroup_limits.pin(PID, frozenset({2, 3}), proc=v1.proc)
    assert v1.has("cpuset", "cpuset.cpus") == "2-3"
    assert (inner.read_text(), deeper.read_text()) == ("2", "2")
    cgroup_limits.pin(PID, None, proc=v1.proc)
    assert v1.has("cpuset", "cpuset.cpus") == "0-3"


def test_cpus_that_the_kernel_refuses(v2: Host, refuse: Refuse) -> None:
    refuse("cpuset.cpus", errno.EINVAL)
    with pytest.raises(OSError, match="Invalid"):
        cgroup_limits.pin(PID, frozenset({9}), proc=v2.proc)
    refuse("cpuset.cpus", errno.ENODEV)
    cgroup_limits.pin(PID, frozenset({9}), proc=v2.proc)
    cgroup_limits.pin(8, frozenset({9}), proc=v2.proc)


@given(st.frozensets(st.integers(0, 300)))
def test_lists_are_read_as_they_are_written(cpus: frozenset[int]) -> None:
    assert parse_cpu_list(cpu_list(cpus)) == cpus


# ---- disks


def test_disk_weights(v2: Host) -> None:
    assert cgroup_limits.disk_weights(PID, v2.proc) == []
    v2.own("cg", io__weight="default 100\n", io__bfq__weight="default 100\n")
    assert [file for _, _, file, _ in cgroup_limits.disk_weights(PID, v2.proc)] == [
        "io.weight",
        "io.bfq.weight",
    ]
    written = cgroup_limits.change(PID, {knob("io.weight"): "20"}, v2.proc)
    cgroup_limits.restore(written)
    assert v2.has("cg", "io.weight") == "default 100"


# ---- resource limits


def test_the_kernels_numbers() -> None:
    names = [name.removeprefix("RLIMIT_").lower() for name in dir(resource) if name.startswith("RLIMIT_")]
    known = {name: getattr(resource, f"RLIMIT_{name.upper()}") for name in names if name != "ofile"}
    assert {name: number for name, number in cgroup_limits._RLIMITS.items() if name in known} == known


def test_resource_limits_are_set_completely_or_not_at_all() -> None:
    own = cgroup_limits.rlimits(os.getpid(), ["nofile", "core"])
    assert own["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(InvalidConfig, match=r"limits\.kernel\.nofile"):
        cgroup_limits.set_rlimits(os.getpid(), {"core": (0, own["core"][1]), "nofile": (20, 10)})
    assert cgroup_limits.rlimits(os.getpid(), ["nofile", "core"]) == own


def test_resource_limits_of_who_has_ended() -> None:
    nobody = 2**22 + 1
    assert cgroup_limits.rlimits(nobody, ["nofile"]) == {}
    assert cgroup_limits.set_rlimits(nobody, {"nofile": (1, 1)}) == {}
