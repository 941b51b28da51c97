from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.cgroups import tree as cgroups


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[Path]:
    """A /proc in which this process and a container, pid 7, are in cgroups of version 2 below `cg`."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/7").mkdir()
    (tmp_path / "proc/self/mountinfo").write_text(f"30 1 0:3 / {tmp_path}/cg rw - cgroup2 none rw\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/u/daemon\n")
    (tmp_path / "proc/7/cgroup").write_text("0::/u/lxc.payload.c1-2/init.scope\n")
    for folder in ("u/daemon", "u/lxc.payload.c1-2"):
        (tmp_path / "cg" / folder).mkdir(parents=True)
    cgroups._hierarchies.cache_clear()
    yield tmp_path / "proc"
    cgroups._hierarchies.cache_clear()


def test_a_move_to_where_this_process_is(proc: Path) -> None:
    members = proc.parent / "cg/u/daemon/cgroup.procs"
    members.write_text("")
    cgroup_moves.warm(proc)
    assert members.read_text() == "0"


@pytest.mark.parametrize("text", ["", "0::/gone\n", "5:pids:/u/daemon\n"])
def test_move_is_skipped_if_it_is_not_possible(proc: Path, text: str) -> None:
    (proc / "self/cgroup").write_text(text)
    cgroup_moves.warm(proc)
    assert not list((proc.parent / "cg").glob("**/cgroup.procs"))


async def test_moves_ahead_are_not_heaped_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[None] = []
    monkeypatch.setattr(cgroup_moves, "warm", lambda: made.append(None))
    monkeypatch.setattr(cgroup_moves, "_warmed", -1e9)
    cgroup_moves.warm_soon()
    await _all_moved()
    assert made == [None]
    monkeypatch.setattr(cgroup_moves, "_warmed", 1e18)
    cgroup_moves.warm_soon()
    await _all_moved()
    assert made == [None]


async def _all_moved() -> None:
    """Wait for the one thread that moves."""
    await cgroup_moves._mover.run(int)


async def test_a_move_by_others_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[None] = []
    monkeypatch.setattr(cgroup_moves, "warm", lambda: made.append(None))
    monkeypatch.setattr(cgroup_moves, "_warmed", -1e9)
    cgroup_moves.moved()
    cgroup_moves.warm_soon()
    await _all_moved()
    assert not made


def test_container_folder_is_returned_for_its_own_container_only(proc: Path) -> None:
    assert cgroup_moves.container_folder(7, "c1", proc) == proc.parent / "cg/u/lxc.payload.c1-2"
    for other in ("c", "c1-2-3", "p_c1", "daemon"):
        assert cgroup_moves.container_folder(7, other, proc) is None
    assert cgroup_moves.container_folder(8, "c1", proc) is None
    (proc / "7/cgroup").write_text("0::/u/daemon\n")
    assert cgroup_moves.container_folder(7, "daemon", proc) is None


def test_all_of_a_cgroup_are_killed_where_the_kernel_can(proc: Path) -> None:
    folder = proc.parent / "cg/u/lxc.payload.c1-2"
    cgroup_moves.kill_all(folder)
    assert not list(folder.iterdir())
    (folder / "cgroup.kill").write_text("")
    cgroup_moves.kill_all(folder)
    assert (folder / "cgroup.kill").read_text() == "1"
