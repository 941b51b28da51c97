"""Freezing by the cgroup alone, on both versions, with files in place of cgroupfs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from utsuwa.core.errors import HostError
from utsuwa.host.cgroups.freezer import frozen


class _Host:
    """A /proc with one container, pid 7, in one hierarchy."""

    def __init__(self, root: Path, kind: str, controller: str, files: dict[str, str]) -> None:
        self.proc = root / "proc"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "7").mkdir()
        (self.proc / "self/mountinfo").write_text(f"30 1 0:30 / {root}/cg rw - {kind} rw,{controller}\n")
        (self.proc / "self/cgroup").write_text(f"3:{controller}:/\n")
        (self.proc / "7/cgroup").write_text(f"3:{controller}:/u/lxc.payload.c\n")
        self.folder = root / "cg/u/lxc.payload.c"
        self.folder.mkdir(parents=True)
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def v1(tmp_path: Path) -> _Host:
    """What is written to its state is what it is."""
    return _Host(tmp_path, "cgroup cgroup", "freezer", {"freezer.state": "THAWED"})


@pytest.fixture
def v2(tmp_path: Path) -> _Host:
    return _Host(tmp_path, "cgroup2 none", "", {"cgroup.freeze": "0", "cgroup.events": "frozen 0\n"})


async def test_v1_is_frozen_and_thawed(v1: _Host) -> None:
    async with frozen(7, "c", v1.proc):
        assert v1.read("freezer.state") == "FROZEN"
    assert v1.read("freezer.state") == "THAWED"


async def test_v2_is_entered_when_the_kernel_says_so(v2: _Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            (v2.folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")

    monkeypatch.setattr(asyncio, "sleep", pause)
    async with frozen(7, "c", v2.proc):
        assert len(pauses) == 3
        assert v2.read("cgroup.freeze") == "1"
    assert v2.read("cgroup.freeze") == "0"


async def test_what_cannot_be_frozen_in_time_runs_on(v2: _Host) -> None:
    with pytest.raises(HostError, match="could not be frozen within 0 s: one of them waits for a disk"):
        async with frozen(7, "c", v2.proc, patience=0.001):
            raise AssertionError
    assert v2.read("cgroup.freeze") == "0"


async def test_a_cancelled_wait_thaws(v2: _Host) -> None:
    async def hold() -> None:
        async with frozen(7, "c", v2.proc):
            raise AssertionError

    task = asyncio.create_task(hold())
    while v2.read("cgroup.freeze") != "1":
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert v2.read("cgroup.freeze") == "0"


async def test_an_error_inside_thaws(v1: _Host) -> None:
    with pytest.raises(ZeroDivisionError):
        async with frozen(7, "c", v1.proc):
            raise ZeroDivisionError
    assert v1.read("freezer.state") == "THAWED"


@pytest.mark.parametrize(("pid", "name"), [(8, "c"), (7, "other")])
async def test_another_process_is_never_frozen(v1: _Host, pid: int, name: str) -> None:
    with pytest.raises(HostError, match="it has ended, or the host has no cgroup freezer"):
        async with frozen(pid, name, v1.proc):
            raise AssertionError
    assert v1.read("freezer.state") == "THAWED"


async def test_a_cgroup_without_the_file_is_reported(v1: _Host) -> None:
    (v1.folder / "freezer.state").unlink()
    with pytest.raises(HostError, match="cannot be frozen: No such file"):
        async with frozen(7, "c", v1.proc):
            raise AssertionError
    assert not (v1.folder / "freezer.state").exists()
