from __future__ import annotations

from pathlib import Path

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.host.processes import oom_scores

MOUNT = "25 30 0:23 / {mount} rw - cgroup2 none rw\n"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A container with the init 10, whose processes 11 and 13 have its score, and 12 one of its own."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cg"
    put(proc / "self/mountinfo", MOUNT.format(mount=cgroups))
    put(proc / "self/cgroup", "0::/\n")
    put(proc / "10/cgroup", "0::/lxc.payload.c1/init.scope\n")
    put(cgroups / "lxc.payload.c1/cgroup.procs", "")
    put(cgroups / "lxc.payload.c1/init.scope/cgroup.procs", "10\n")
    put(cgroups / "lxc.payload.c1/system.slice/cgroup.procs", "11\n12\n13\n14\n")  # 14 has ended
    for pid, score in ((10, 0), (11, 0), (12, -900), (13, 0), (20, 0)):
        put(proc / f"{pid}/oom_score_adj", f"{score}\n")
    return proc


def scores(proc: Path) -> list[int]:
    return [int((proc / f"{pid}/oom_score_adj").read_text()) for pid in (10, 11, 12, 13, 20)]


def test_processes_with_a_score_of_their_own_keep_it(proc: Path) -> None:
    assert oom_scores.change(10, 300, proc) == 0
    assert scores(proc) == [300, 300, -900, 300, 0]
    assert oom_scores.change(10, 300, proc) == 300
    assert oom_scores.change(10, 0, proc) == 300
    assert scores(proc) == [0, 0, -900, 0, 0]


def test_a_container_that_has_ended(proc: Path) -> None:
    assert oom_scores.change(15, 300, proc) is None


def test_a_refused_score_is_named(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(InvalidConfig, match=r"Cannot set 'limits.memory.oom_priority' to -5: Permission"):
        oom_scores.change(10, -5, proc)


@pytest.mark.parametrize(
    ("uid_map", "capabilities", "lowest"),
    [
        ("0 0 4294967295", "000001ffffffffff", -1000),
        ("0 0 4294967295", "00000000fecfffff", -17),
        ("0 100000 65536", "000001ffffffffff", -17),
        (None, "000001ffffffffff", -1000),
    ],
)
def test_the_lowest_score(tmp_path: Path, uid_map: str | None, capabilities: str, lowest: int) -> None:
    put(tmp_path / "self/oom_score_adj", "-17\n")
    put(tmp_path / "self/status", f"CapPrm:\t{capabilities}\nCapEff:\t{capabilities}\n")
    if uid_map is not None:
        put(tmp_path / "self/uid_map", f"{uid_map}\n")
    assert oom_scores.lowest(tmp_path) == lowest
