"""Messages of docs/errors.md about hosts that lack something, and the table itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import error_table
from tests.system import test_explained_errors as system
from utsuwa.core.errors import HostError, InvalidConfig, ProcessFailed
from utsuwa.host import lxc
from utsuwa.host.cgroups.limits import LimitFacts
from utsuwa.instances.confinement import limits, nvidia
from utsuwa.instances.lifecycle.start_remedies import remedy
from utsuwa.security import idmap
from utsuwa.security.apparmor import Mode, Profiles, Support

HERE = frozenset(
    {
        "a limit whose cgroup controller is missing",
        "a size of swap without swap accounting",
        "no range of ids for root in subuid",
        "a rule of raw.apparmor that cannot be parsed",
        "lxc is not installed",
        "NVIDIA's libraries on a host without NVIDIA's program",
    }
)
"""Rows that the tests below are about."""


def expected(cause: str, **values: str) -> str:
    assert cause in HERE
    return error_table.message(cause, values)


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    assert set(error_table.documented()) == system.CASES.keys() | system.ELSEWHERE | HERE


def test_every_value_of_a_case_is_in_its_message() -> None:
    for cause, case in system.CASES.items():
        pattern = error_table.documented()[cause]
        used = {name for name in case.values if f"<{name}>" in pattern}
        assert error_table.message(cause, {name: case.values[name] for name in used}), cause


def test_readme_and_docs_name_the_page() -> None:
    assert "docs/errors.md" in (error_table.PAGE.parents[1] / "README.md").read_text()


# ---- what the host lacks


def test_missing_cgroup_controller() -> None:
    with pytest.raises(InvalidConfig) as raised:
        limits.check({"limits.memory": "1GiB"}, LimitFacts(cpus=frozenset({0}), swap=True))
    cause = "a limit whose cgroup controller is missing"
    assert raised.value.message == expected(cause, key="limits.memory", controller="memory")


def test_missing_swap_accounting() -> None:
    facts = LimitFacts(cpus=frozenset({0}), controllers={"memory": 2})
    with pytest.raises(InvalidConfig) as raised:
        limits.check({"limits.memory.swap": "1GiB"}, facts)
    assert raised.value.message == expected("a size of swap without swap accounting")


async def test_missing_program_of_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utsuwa.instances.confinement.nvidia.shutil.which", lambda name, path: None)
    with pytest.raises(InvalidConfig) as raised:
        await nvidia.check_host({"nvidia.runtime": "true"})
    assert raised.value.message == expected("NVIDIA's libraries on a host without NVIDIA's program")


@pytest.mark.parametrize(
    "line", ["", "root:100000:1000", "root:100000", "someone:100000:65536", "root:x:65536"]
)
def test_no_usable_range_in_subuid(tmp_path: Path, line: str) -> None:
    (tmp_path / "subuid").write_text(f"{line}\n")
    (tmp_path / "subgid").write_text("root:100000:65536\n")
    ids = idmap.read_host_ids(tmp_path, Path("/proc/self"))
    with pytest.raises(HostError) as raised:
        idmap.choose({}, ids)
    assert raised.value.message == expected("no range of ids for root in subuid")


@pytest.mark.processes
async def test_apparmor_rule_that_cannot_be_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser names the line of the generated file, in whose path users are not interested."""
    parser = tmp_path / "apparmor_parser"
    parser.write_text(
        "#!/bin/sh\n"
        "for file; do :; done\n"
        'echo "AppArmor parser error in $file at line 93: syntax error, unexpected TOK_ID" >&2\n'
        "exit 1\n"
    )
    parser.chmod(0o755)
    monkeypatch.setattr("utsuwa.host.processes.run.PATH", f"{tmp_path}:/bin")
    (tmp_path / "profiles").mkdir()
    profiles = Profiles(tmp_path, "utsuwa", Support(Mode.OWN, stacking=False))
    with pytest.raises(InvalidConfig) as raised:
        await profiles.load("web", privileged=False, nesting=False, raw="no such rule")
    assert raised.value.message == expected(
        "a rule of raw.apparmor that cannot be parsed",
        reason="AppArmor parser error at line 93: syntax error, unexpected TOK_ID",
    )
    with pytest.raises(ProcessFailed, match="syntax error"):
        await profiles.load("web", privileged=False, nesting=False)


async def test_lxc_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utsuwa.host.lxc.PATH", str(tmp_path))
    with pytest.raises(HostError) as raised:
        await lxc.start("web", tmp_path, tmp_path / "conf", tmp_path / "log")
    assert raised.value.message == expected("lxc is not installed")


# ---- remedies


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ('Permission denied - Failed to exec "/init"', "which has /init,"),
        (
            'Failed to run lxc.hook.start-host for container "web"',
            "the line lxc.hook.start-host in 'raw.lxc'",
        ),
        ("Failed to setup sysctl parameters kernel.x_y to 1", "unset linux.sysctl.kernel.x_y,"),
        ("Failed to exec {0} {name}", "`utsuwa info web --show-log`"),
        ("", "look at its console (`utsuwa console --show-log web`)"),
    ],
)
def test_remedies_for_reasons_of_liblxc(reason: str, words: str) -> None:
    assert words in remedy(reason, "web")
