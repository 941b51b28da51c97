from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import cgroup_host
from tests.support.cgroup_host import Host
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.cgroups.usage import Meter, Usage
from utsuwa.host.helper.cgroups import container_path


@pytest.mark.parametrize(
    ("path", "own", "expected"),
    [
        ("/utsuwa-1/lxc.payload.c1", "/", "/utsuwa-1/lxc.payload.c1"),
        ("/utsuwa-1/lxc.payload.c1/init.scope", "/system.slice/utsuwa.service", "/utsuwa-1/lxc.payload.c1"),
        ("/utsuwa-1/lxc.payload.c1/lxc.payload.x/a", "/", "/utsuwa-1/lxc.payload.c1"),
        ("/lxc.payload.a/u/lxc.payload.b/init.scope", "/lxc.payload.a/x", "/lxc.payload.a/u/lxc.payload.b"),
        ("/lxc/c1/init.scope", "/", "/lxc/c1"),
        ("/lxc/c1", "/", "/lxc/c1"),
        ("/", "/", "/"),
        ("/init.scope", "/", "/"),
    ],
)
def test_the_containers_own_folder(path: str, own: str, expected: str) -> None:
    assert container_path(path, own) == expected


@given(st.text(alphabet="ab/.payload", max_size=40), st.text(alphabet="ab/.payload", max_size=40))
def test_container_path_is_an_ancestor(path: str, own: str) -> None:
    found = container_path("/" + path, "/" + own)
    assert found == "/" or ("/" + path).startswith(found)


def usage(host: Host) -> Usage:
    return Meter(7, host.proc).read()


@pytest.fixture
def v2(tmp_path: Path) -> Host:
    return cgroup_host.with_v2(tmp_path)


@pytest.fixture
def v1(tmp_path: Path) -> Host:
    return cgroup_host.with_v1(tmp_path)


@pytest.fixture(autouse=True)
def _plain_mountinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups._hierarchies.cache_clear()


def test_usage_on_v2(v2: Host) -> None:
    files = {
        "cpu.stat": "usage_usec 1500\nuser_usec 1000\n",
        "memory.current": "4096\n",
        "memory.peak": "8192\n",
        "memory.swap.current": "1\n",
        "memory.swap.peak": "2\n",
        "pids.current": "3\n",
    }
    v2.write("cg", "u/lxc.payload.c", files)
    assert usage(v2) == Usage(1_500_000, 4096, 8192, 1, 2, 3)


def test_usage_where_the_kernel_is_older_or_accounting_is_off(v2: Host) -> None:
    v2.write("cg", "u/lxc.payload.c", {"memory.current": "max\n"})
    assert usage(v2) == Usage()


def test_usage_on_v1(v1: Host) -> None:
    v1.write("cpu", "u/lxc.payload.c", {"cpuacct.usage": "77\n"})
    memory = {"memory.usage_in_bytes": "100", "memory.max_usage_in_bytes": "300"}
    swap = {"memory.memsw.usage_in_bytes": "150", "memory.memsw.max_usage_in_bytes": "310"}
    v1.write("mem", "u/lxc.payload.c", memory | swap)
    v1.write("pids", "u/lxc.payload.c", {"pids.current": "9"})
    assert usage(v1) == Usage(77, 100, 300, 50, 10, 9)


def test_swap_accounting_off_on_v1(v1: Host) -> None:
    v1.write("mem", "u/lxc.payload.c", {"memory.usage_in_bytes": "100", "memory.max_usage_in_bytes": "300"})
    assert usage(v1) == Usage(memory=100, memory_peak=300)


@pytest.mark.parametrize(("text", "frozen"), [("FROZEN\n", True), ("FREEZING\n", True), ("THAWED\n", False)])
def test_frozen_on_v1(v1: Host, text: str, frozen: bool) -> None:
    v1.write("fr", "u/lxc.payload.c", {"freezer.state": text})
    assert cgroups.frozen(7, v1.proc) is frozen


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_on_v2(v2: Host, frozen: bool) -> None:
    v2.write("cg", "u/lxc.payload.c", {"cgroup.events": f"populated 1\nfrozen {int(frozen)}\n"})
    assert cgroups.frozen(7, v2.proc) is frozen


def test_who_has_ended_uses_nothing(v2: Host) -> None:
    with pytest.raises(ProcessLookupError):
        Meter(8, v2.proc)
    assert not cgroups.frozen(8, v2.proc)


def test_hierarchy_mounted_below_its_root(tmp_path: Path) -> None:
    host = Host(tmp_path, {"cg": "cgroup2 none"}, ["0::/outer/u/lxc.payload.c"], ["0::/outer"])
    info = host.proc / "self/mountinfo"
    info.write_text(info.read_text().replace("0:30 / ", "0:30 /outer "))
    assert cgroups.folders_of(7, host.proc) == {"": host.mounts["cg"] / "u/lxc.payload.c"}


def test_the_root_is_no_cgroup_of_a_container(tmp_path: Path) -> None:
    """Version 1 shows a process there that is ending: all of the host would be killed for the container."""
    lines = ["3:memory:/", "2:pids:/../..", "0::/u/lxc.payload.c/init.scope"]
    mounts = {"mem": "cgroup cgroup rw,memory", "pids": "cgroup cgroup rw,pids", "cg": "cgroup2 none"}
    host = Host(tmp_path, mounts, lines, ["3:memory:/", "2:pids:/", "0::/"])
    assert cgroups.folders_of(7, host.proc) == {"": host.mounts["cg"] / "u/lxc.payload.c"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web", "web"),
        ("web-2", "web"),
        ("web-1", "web-1"),
        ("web-1-1", "web-1"),
        ("web-1-1-1", None),
        ("x", None),
    ],
)
def test_a_cgroup_belongs_to_the_container_of_just_its_name(name: str, expected: str | None) -> None:
    folder = Path("/cg/u") / f"lxc.payload.{name}"
    assert cgroups.container_of(folder, {"web", "web-1"}) == expected


def test_unused_cgroups_are_removed_and_used_ones_kept(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    own = "/system/utsuwa.service"
    (proc / "self/mountinfo").write_text(
        f"30 20 0:1 / {mount}/memory rw - cgroup cgroup rw,memory\n"
        f"31 20 0:2 / {mount}/unified rw - cgroup2 cgroup2 rw\n"
    )
    (proc / "self/cgroup").write_text(f"4:memory:{own}\n0::/\n")
    unused = [mount / "memory/u-1", mount / f"memory{own}/u-1"]
    for folder in unused:
        (folder / "lxc.pivot").mkdir(parents=True)
    used = mount / "unified/u-1/lxc.payload.c1"
    used.mkdir(parents=True)
    (used / "cgroup.procs").write_text("7\n")  # keeps the folder here, as the process does in a cgroup
    (used / "system.slice").mkdir()  # init watches the empty cgroups of its units
    other = mount / "memory/u-2/lxc.pivot"
    other.mkdir(parents=True)
    cgroups.remove_unused("u-1", proc)
    assert [folder for folder in unused if folder.exists()] == []
    assert (used / "system.slice").is_dir()
    assert other.is_dir()
    cgroups.remove_unused("u-1", proc)  # safe to repeat


def test_leftover_cgroups_of_a_container_are_removed(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text(f"30 20 0:1 / {mount} rw - cgroup2 cgroup2 rw\n")
    (proc / "self/cgroup").write_text("0::/\n")
    left = [mount / "u-1" / name for name in ("lxc.monitor.c1", "lxc.monitor.c1-1", "lxc.payload.c1/inner")]
    others = [mount / "u-1" / name for name in ("lxc.monitor.c10", "lxc.monitor.c1-web", "lxc.pivot")]
    for folder in left + others:
        folder.mkdir(parents=True)
    cgroups.remove_unused("u-1", proc, container="c1")
    assert sorted((mount / "u-1").iterdir()) == sorted(others)
