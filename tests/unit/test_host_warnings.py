"""What a host lacks is a warning, one for each cause."""

from __future__ import annotations

import grp
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.open_warnings import OpenWarnings
from utsuwa.core.errors import HostError
from utsuwa.daemon import host_warnings, serving
from utsuwa.daemon.host_warnings import HostWarnings, Lacks, troubles
from utsuwa.host.cgroups import limits
from utsuwa.host.cgroups.limits import LimitFacts
from utsuwa.instances.confinement import host_facts
from utsuwa.instances.confinement.host_facts import HostFacts
from utsuwa.security import idmap
from utsuwa.security.apparmor import Mode
from utsuwa.security.idmap import HostIds, HostRange

V1 = ("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "pids")
V2 = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")
MANY = (HostRange(1_000_000, 1_000_000_000),)


def facts(names: tuple[str, ...], version: int, *, swap: bool = True) -> LimitFacts:
    return LimitFacts(frozenset({0}), controllers=dict.fromkeys(names, version), swap=swap)


WHOLE = Lacks(limits=facts(V2, 2), ids=HostIds(MANY, MANY))


def raised(host: Lacks) -> dict[str, str]:
    return {kind.text: message for kind, message in troubles(host) if message}


@pytest.mark.parametrize("host", [WHOLE, replace(WHOLE, limits=facts(V1, 1))])
def test_complete_host_has_no_warnings(host: Lacks) -> None:
    assert raised(host) == {}
    kinds = [kind for kind, _ in troubles(host)]
    assert len(kinds) == len(set(kinds)) == 15


@pytest.mark.parametrize(
    ("lacking", "text", "words"),
    [
        ({"disk_weights": False}, "Couldn't find the CGroup blkio.weight", "limits.disk.priority"),
        ({"apparmor": Mode.OFF}, "AppArmor support has been disabled", "no AppArmor"),
        ({"apparmor": Mode.INHERIT}, "AppArmor support has been disabled", "policy"),
        ({"lxcfs": False}, "Instances see the resources of the whole host", "install lxcfs"),
        ({"idmapped_mounts": False}, "Idmapped mounts not available", "shifted"),
        ({"ids": HostIds((), MANY)}, "No ids for unprivileged instances", "root:1000000:1000000000"),
        ({"ids": HostIds(MANY, (HostRange(5, 9),))}, "No ids for unprivileged instances", "/etc/subgid"),
        (
            {"limits": facts(V2, 2, swap=False)},
            "Couldn't find the CGroup memory swap accounting",
            "limits.memory.swap",
        ),
        ({"limits": facts(V2[1:], 2)}, "Couldn't find the CGroup CPU controller", "limits.cpu.allowance"),
        ({"limits": facts(V1[1:], 1)}, "Couldn't find the CGroup blkio", "no cgroup controller blkio"),
    ],
)
def test_missing_requirements_are_named(lacking: dict[str, object], text: str, words: str) -> None:
    found = raised(replace(WHOLE, **lacking))  # type: ignore[arg-type]
    assert words in found[text]
    assert "\n" not in found[text]


async def test_a_warning_is_resolved_when_the_host_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not counted again meanwhile."""
    monkeypatch.setattr(host_warnings, "look", lambda _: replace(WHOLE, lxcfs=False))
    warnings, has_lxcfs = OpenWarnings(), False

    def facts_of_host() -> HostFacts:
        return HostFacts(cgroup_namespaces=True, lxcfs=tmp_path if has_lxcfs else None)

    monkeypatch.setattr(host_facts, "read_host_facts", facts_of_host)
    monkeypatch.setattr(idmap, "read_host_ids", lambda: HostIds(MANY, MANY))
    judged = HostWarnings(warnings, tmp_path)
    assert not await judged.judge()
    assert list(warnings.messages) == ["Instances see the resources of the whole host"]
    warnings.reported.clear()
    assert not await judged.judge()
    assert warnings.reported == []
    has_lxcfs = True
    assert await judged.judge()
    assert warnings.messages == {}


def test_disk_weights_are_those_of_any_group(tmp_path: Path) -> None:
    """The root has none; with no group below it nothing is known."""
    mount = tmp_path / "cgroup"
    mount.mkdir()
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    (proc / "mountinfo").write_text(f"1 1 0:1 / {mount} rw - cgroup2 cgroup2 rw\n")
    (mount / "cgroup.controllers").write_text("io memory\n")
    assert limits.has_disk_weights(tmp_path / "proc")
    (mount / "system.slice").mkdir()
    assert not limits.has_disk_weights(tmp_path / "proc")
    (mount / "system.slice/io.weight").touch()
    assert limits.has_disk_weights(tmp_path / "proc")
    (mount / "cgroup.controllers").write_text("memory\n")
    assert not limits.has_disk_weights(tmp_path / "proc")


def test_a_hidden_mount_has_no_disk_weights(tmp_path: Path) -> None:
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    (proc / "mountinfo").write_text(f"1 1 0:1 / {tmp_path}/gone rw - cgroup cgroup rw,blkio\n")
    assert not limits.has_disk_weights(tmp_path / "proc")


async def test_unreadable_host_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> NoReturn:
        raise FileNotFoundError

    warnings = OpenWarnings()
    judged = HostWarnings(warnings, tmp_path)
    monkeypatch.setattr(host_warnings, "look", fail)
    assert not await judged.judge()
    assert warnings.messages == {}
    monkeypatch.setattr(host_warnings, "look", lambda _: WHOLE)
    assert await judged.judge()


def test_this_host_can_be_checked(tmp_path: Path) -> None:
    assert host_warnings.look(tmp_path).limits.cpus


async def test_a_group_that_is_created_later_may_use_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile it is root's alone, and a warning says why."""
    monkeypatch.setattr(serving, "DEFAULT_GROUP", "nix")
    socket, warnings = tmp_path / "unix.socket", OpenWarnings()
    socket.touch(0o600)
    assert not await serving.judge_group(warnings, socket, None)
    assert "the group 'nix' does not exist" in warnings.messages["Only root can use the unix socket"]
    assert socket.stat().st_mode & 0o777 == 0o600
    assert not await serving.judge_group(warnings, socket, None)
    assert len(warnings.reported) == 1
    monkeypatch.setattr(serving, "DEFAULT_GROUP", "nogroup")
    assert await serving.judge_group(warnings, socket, None)
    assert warnings.messages == {}
    found = socket.stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o660, grp.getgrnam("nogroup").gr_gid)
    with pytest.raises(HostError, match="does not exist"):
        await serving.judge_group(warnings, socket, "nix")
