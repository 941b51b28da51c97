"""What metrics show of a container, read from the files of both versions of cgroups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import cgroup_host
from tests.support.cgroup_host import OWN, Host
from utsuwa.host.cgroups import accounting
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.cgroups.accounting import Accounting, Accounts, CpuTime, Disk, Memory

MIB = 2**20
HOST_MEMORY = 512 * MIB


@pytest.fixture(autouse=True)
def _nothing_cached() -> None:
    cgroups._hierarchies.cache_clear()


@pytest.fixture(params=["v1", "v2"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    made = cgroup_host.with_v1(tmp_path) if request.param == "v1" else cgroup_host.with_v2(tmp_path)
    (made.proc / "meminfo").write_text(f"MemTotal:  {HOST_MEMORY // 1024} kB\nMemFree: 1 kB\n")
    return made


@pytest.fixture
def v1(tmp_path: Path) -> Host:
    return cgroup_host.with_v1(tmp_path)


@pytest.fixture
def v2(tmp_path: Path) -> Host:
    return cgroup_host.with_v2(tmp_path)


def read(host: Host) -> Accounting:
    return Accounts(7, host.proc).read()


def test_a_host_without_accounting_shows_its_memory_alone(host: Host) -> None:
    assert read(host) == Accounting(memory=Memory(total=HOST_MEMORY))


def test_who_has_ended_has_no_accounts(host: Host) -> None:
    with pytest.raises(ProcessLookupError):
        Accounts(8, host.proc)


def test_cpu_time_of_v1_is_per_processor(v1: Host) -> None:
    text = "cpu user system\n0 1500000000 250000000\n1 0 1000000\n"
    v1.write("cpu", OWN, {"cpuacct.usage_all": text})
    assert read(v1).cpus == {0: CpuTime(1.5, 0.25), 1: CpuTime(0, 0.001)}


def test_cpu_time_of_v2_is_one_sum(v2: Host) -> None:
    v2.write("cg", OWN, {"cpu.stat": "usage_usec 3500000\nuser_usec 3000000\nsystem_usec 500000\n"})
    assert read(v2).cpus == {0: CpuTime(3, 0.5)}


def test_memory_of_v1_counts_what_is_in_cgroups_below(v1: Host) -> None:
    stat = {
        "cache": 1,
        "hierarchical_memory_limit": 64 * MIB,
        "total_cache": 10,
        "total_rss": 20,
        "total_shmem": 3,
        "total_mapped_file": 4,
        "total_dirty": 5,
        "total_writeback": 6,
        "total_swap": 7,
        "total_inactive_anon": 8,
        "total_active_anon": 9,
        "total_inactive_file": 11,
        "total_active_file": 12,
        "total_unevictable": 13,
    }
    files = {
        "memory.stat": "".join(f"{name} {value}\n" for name, value in stat.items()),
        "memory.usage_in_bytes": "30\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    }
    (v1.proc / "meminfo").write_text(f"MemTotal: {HOST_MEMORY // 1024} kB\n")
    v1.write("mem", OWN, files)
    memory = read(v1).memory
    assert memory == Memory(64 * MIB, 30, 20, 10, 3, 4, 5, 6, 9, 12, 8, 11, 13, 7, 2)
    assert (memory.free, memory.available) == (64 * MIB - 30, 64 * MIB - 30 + 10 - 3)


def test_memory_of_v2(v2: Host) -> None:
    stat = {
        "anon": 20,
        "file": 10,
        "shmem": 3,
        "file_mapped": 4,
        "file_dirty": 5,
        "file_writeback": 6,
        "inactive_anon": 8,
        "active_anon": 9,
        "inactive_file": 11,
        "active_file": 12,
        "unevictable": 13,
    }
    files = {
        "memory.stat": "".join(f"{name} {value}\n" for name, value in stat.items()),
        "memory.current": "30\n",
        "memory.swap.current": "7\n",
        "memory.max": "max\n",
        "memory.events": "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n",
    }
    (v2.proc / "meminfo").write_text(f"MemTotal: {HOST_MEMORY // 1024} kB\n")
    v2.write("cg", OWN, files)
    assert read(v2).memory == Memory(HOST_MEMORY, 30, 20, 10, 3, 4, 5, 6, 9, 12, 8, 11, 13, 7, 1)


@pytest.mark.parametrize(("limit", "total"), [(f"{64 * MIB}\n", 64 * MIB), (f"{2**60}\n", HOST_MEMORY)])
def test_memory_is_limited_by_the_lower_of_limit_and_host(v2: Host, limit: str, total: int) -> None:
    (v2.proc / "meminfo").write_text(f"MemTotal: {HOST_MEMORY // 1024} kB\n")
    v2.write("cg", OWN, {"memory.max": limit})
    assert read(v2).memory.total == total


def test_more_used_than_allowed_leaves_nothing_free() -> None:
    """The kernel may exceed a limit for a moment."""
    memory = Memory(total=100, used=120, cached=50, shared=10)
    assert (memory.free, memory.available) == (0, 40)


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "devices"
    folder.mkdir()
    (folder / "8:0").symlink_to("../../devices/pci/block/sda")
    monkeypatch.setattr(accounting, "_BLOCK_DEVICES", folder)
    accounting._device_name.cache_clear()


@pytest.mark.usefixtures("devices")
def test_disks_of_v1(v1: Host) -> None:
    files = {
        "blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 512\n8:0 Total 4608\n"
        "9:7 Read 1\nTotal 4609\n",
        "blkio.throttle.io_serviced_recursive": "8:0 Read 2\n8:0 Write 1\n8:0 Sync 3\nTotal 3\n",
    }
    v1.write("blk", OWN, files)
    assert read(v1).disks == {"sda": Disk(4096, 512, 2, 1), "9:7": Disk(1)}


@pytest.mark.usefixtures("devices")
def test_disks_of_v2(v2: Host) -> None:
    lines = "8:0 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n9:7 rbytes=1\n"
    v2.write("cg", OWN, {"io.stat": lines})
    assert read(v2).disks == {"sda": Disk(4096, 512, 2, 1), "9:7": Disk(1)}


@pytest.mark.parametrize(("make", "mount"), [(cgroup_host.with_v1, "pids"), (cgroup_host.with_v2, "cg")])
def test_processes(tmp_path: Path, make: Callable[[Path], Host], mount: str) -> None:
    host = make(tmp_path)
    host.write(mount, OWN, {"pids.current": "5\n"})
    assert read(host).processes == 5
