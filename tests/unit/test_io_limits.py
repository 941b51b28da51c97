"""Limits of requests to disks: their lines in lxc.conf and the files of a running container's cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.host.cgroups import io_limits
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.cgroups.io_limits import IoLimit

LIMITS = {"8:0": IoLimit(read_bytes=1000, write_requests=5)}


def host(monkeypatch: pytest.MonkeyPatch, folder: Path, version: int) -> None:
    """A host that has the controller of this version, 0 for none; the container's cgroup is `folder`."""
    found = {1: {"blkio": (1, folder)}, 2: {"io": (2, folder)}, 0: {}}[version]
    monkeypatch.setattr(cgroups, "controllers", lambda _proc: found)
    monkeypatch.setattr(cgroups, "folders_of", lambda _pid, _proc: {"blkio": folder, "": folder})


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            1,
            [
                ("lxc.cgroup.blkio.throttle.read_bps_device", "8:0 1000"),
                ("lxc.cgroup.blkio.throttle.write_iops_device", "8:0 5"),
            ],
        ),
        (2, [("lxc.cgroup2.io.max", "8:0 rbps=1000 riops=max wbps=max wiops=5")]),
    ],
)
def test_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: int, expected: list[tuple[str, str]]
) -> None:
    host(monkeypatch, tmp_path, version)
    assert io_limits.lines(LIMITS) == expected
    assert io_limits.lines({}) == []


def test_a_host_without_the_controller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host(monkeypatch, tmp_path, 0)
    assert io_limits.lines({}) == []
    with pytest.raises(InvalidConfig, match=r"Cannot enforce 'limits.read'.*no cgroup controller"):
        io_limits.lines(LIMITS)
    io_limits.change(1, LIMITS, {})


def test_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[str] = []
    monkeypatch.setattr(cgroups, "write", lambda path, text: written.append(f"{path.name}: {text}"))
    host(monkeypatch, tmp_path, 2)
    io_limits.change(1, LIMITS, {"8:16": IoLimit(read_bytes=7)})
    assert written == [
        "io.max: 8:0 rbps=max riops=max wbps=max wiops=max",
        "io.max: 8:16 rbps=7 riops=max wbps=max wiops=max",
    ]
    written.clear()
    host(monkeypatch, tmp_path, 1)
    io_limits.change(1, LIMITS, LIMITS)
    assert written == []
    io_limits.change(1, LIMITS, {})
    assert written == [
        f"blkio.throttle.{name}_device: 8:0 0"
        for name in ("read_bps", "read_iops", "write_bps", "write_iops")
    ]


def test_a_value_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is set is an error; one that is removed may be of a disk that is gone."""

    def refuse(path: Path, text: str) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(cgroups, "write", refuse)
    host(monkeypatch, tmp_path, 2)
    io_limits.change(1, LIMITS, {})
    with pytest.raises(InvalidConfig, match=r"disk 8:0 cannot be limited.*io\.max \(No such device\)"):
        io_limits.change(1, {}, LIMITS)


def test_devices_on_one_disk_get_the_average() -> None:
    found = io_limits.merged(
        [
            ("8:0", IoLimit(read_bytes=1000, read_requests=3)),
            ("8:16", IoLimit(write_bytes=5)),
            ("8:0", IoLimit(read_bytes=3000)),
        ]
    )
    assert found == {"8:0": IoLimit(read_bytes=2000, read_requests=3), "8:16": IoLimit(write_bytes=5)}
