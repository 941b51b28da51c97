"""Seccomp policies: the default, what config adds, and what is no policy."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.host import bpf
from utsuwa.host.cgroups import tree
from utsuwa.host.interception import support
from utsuwa.host.system import facts
from utsuwa.security import interception, seccomp


def text(config: dict[str, str], machine: str = "x86_64") -> str:
    policy = seccomp.policy(config, machine)
    assert policy is not None
    return policy


def test_the_default_refuses_the_kernels_doors() -> None:
    lines = text({}).splitlines()
    assert lines[:4] == ["2", "denylist", "reject_force_umount", "[all]"]
    for call in ("kexec_load", "open_by_handle_at", "init_module", "finit_module", "delete_module", "iopl"):
        assert f"{call} errno 38" in lines
    assert "[all]" not in lines[4:]


def test_without_defaults_there_is_no_filter() -> None:
    assert seccomp.policy({"security.syscalls.deny_default": "false"}, "x86_64") is None


def test_detached_mounts_are_refused_to_privileged_instances_that_do_not_nest() -> None:
    privileged = {"security.privileged": "true"}
    assert text({**privileged}).splitlines()[-3:] == [*seccomp.DETACHED]
    for config in ({}, {**privileged, "security.nesting": "true"}, {"security.nesting": "true"}):
        assert "fsopen" not in text(config)
    assert seccomp.policy({**privileged, "security.syscalls.deny_default": "false"}, "x86_64") is None


def test_denied_calls_get_an_errno_where_they_name_no_action() -> None:
    config = {
        "security.syscalls.deny_default": "no",
        "security.syscalls.deny": "\n mkdir \nmount errno 1\nchown [0,1]\nkill kill [1,9,SCMP_CMP_EQ]\n"
        "[x86_64]\nptrace",
    }
    assert text(config).splitlines() == [
        "2",
        "denylist",
        "[all]",
        "mkdir errno 38",
        "mount errno 1",
        "chown [0,1]",
        "kill kill [1,9,SCMP_CMP_EQ]",
        "[x86_64]",
        "ptrace errno 38",
    ]


def test_compat_calls_are_of_32_bit_programs_alone() -> None:
    config = {"security.syscalls.deny_compat": "true"}
    assert "mmap2 errno 38" in text(config)
    assert "mmap2" not in text(config, "aarch64")
    assert not {"mmap", "execve", "ioctl", "clone", "read"} & set(seccomp.COMPAT_DENIED)


def test_allow_lists() -> None:
    assert text({"security.syscalls.allow": "read\nwrite"}) == "2\nallowlist\n[all]\nread\nwrite\n"


def test_raw_replaces_all() -> None:
    assert text({"raw.seccomp": "2\nallowlist\nread\n\n"}) == "2\nallowlist\nread\n"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"security.syscalls.allow": "read", "security.syscalls.deny": "write"},
            "excludes 'security.syscalls.deny'",
        ),
        ({"security.syscalls.allow": "read", "security.syscalls.deny_default": "true"}, "deny_default"),
        ({"raw.seccomp": "2\n", "security.syscalls.deny": "write"}, "'raw.seccomp' replaces"),
        ({"raw.seccomp": "denylist"}, "first line"),
        ({"raw.seccomp": "2\ndeny\x07"}, "control characters"),
        ({"raw.seccomp": "2\r\n"}, "control characters"),
        ({"security.syscalls.deny": "mkdir rmdir"}, "Invalid line"),
        ({"security.syscalls.deny": "mkdir errno"}, "Invalid line"),
        ({"security.syscalls.deny": "mkdir notify"}, "Invalid line"),
        ({"security.syscalls.deny": "[bogus]"}, "Invalid line"),
        ({"security.syscalls.deny": "[x32]"}, "Invalid line"),
        ({"security.syscalls.allow": "read\x00"}, "Invalid line"),
        ({"security.syscalls.allow": "read\n" * 20000}, "too long"),
    ],
)
def test_invalid_settings_are_rejected(config: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        seccomp.check(config)
    with pytest.raises(InvalidConfig, match=message):
        seccomp.policy(config, "x86_64")


def test_files_are_written_and_removed(tmp_path: Path) -> None:
    path = seccomp.write(tmp_path, "c1", "2\n")
    assert path == tmp_path / "c1"
    seccomp.write(tmp_path, "c1", "2\ndenylist\n")
    assert path.read_text() == "2\ndenylist\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    seccomp.remove(tmp_path, "c1")
    seccomp.remove(tmp_path, "c1")
    assert list(tmp_path.iterdir()) == []


# ---- interception

MKNOD = [
    "mknod notify [1,8192,SCMP_CMP_MASKED_EQ,61440]",
    "mknodat notify [2,8192,SCMP_CMP_MASKED_EQ,61440]",
]


def test_intercepted_calls_notify() -> None:
    off = {"security.syscalls.deny_default": "false"}
    mknod = {"security.syscalls.intercept.mknod": "true"}
    assert text({**off, **mknod}).splitlines() == ["2", "denylist", "[all]", *MKNOD]
    assert seccomp.notifies(text(mknod))
    assert not seccomp.notifies(text({}))
    denied = text({**off, **mknod, "security.syscalls.deny": "mknod"}).splitlines()
    assert denied == ["2", "denylist", "[all]", MKNOD[1], "[all]", "mknod errno 38"]
    allowed = text({**mknod, "security.syscalls.allow": "read"}).splitlines()
    assert allowed == ["2", "allowlist", "[all]", *MKNOD, "read"]


def test_new_mounts_are_intercepted_only() -> None:
    config = {"security.syscalls.deny_default": "false", "security.syscalls.intercept.mount": "true"}
    assert text(config).splitlines()[3:] == [
        "mount notify [3,0,SCMP_CMP_MASKED_EQ,1978400]",
        "mount notify [3,3236757504,SCMP_CMP_MASKED_EQ,4294914080]",
        "fsopen notify",
    ]


def test_privileged_instances_need_no_interception() -> None:
    config = {"security.syscalls.intercept.sysinfo": "true", "security.privileged": "true"}
    assert "notify" not in text(config)


def test_a_raw_policy_excludes_interception() -> None:
    config = {"raw.seccomp": "2\ndenylist", "security.syscalls.intercept.sysinfo": "true"}
    with pytest.raises(InvalidConfig, match=r"excludes 'security\.syscalls\.intercept\.sysinfo'"):
        seccomp.check(config)
    seccomp.check({**config, "security.syscalls.intercept.sysinfo": "false"})


def test_interception_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"security.syscalls.intercept.setxattr": "true"}
    monkeypatch.setattr(support, "obstacle", lambda: "the kernel cannot")
    with pytest.raises(
        InvalidConfig, match="'security.syscalls.intercept.setxattr' cannot be .*: the kernel cannot"
    ):
        interception.check(config)
    interception.check({"security.syscalls.intercept.setxattr": "false"})
    interception.check({**config, "security.privileged": "true"})


DEVICE_PROGRAMS = {f"security.syscalls.intercept.{name}": "true" for name in ("bpf", "bpf.devices")}


def test_bpf_is_intercepted_with_both_keys() -> None:
    off = {"security.syscalls.deny_default": "false"}
    found = text({**off, **DEVICE_PROGRAMS}).splitlines()[3:]
    assert found == [f"bpf notify [0,{command},SCMP_CMP_MASKED_EQ,65535]" for command in (5, 8, 9, 28, 29)]
    for key in DEVICE_PROGRAMS:
        config = {"security.syscalls.intercept.sysinfo": "true", **DEVICE_PROGRAMS, key: "false"}
        assert "bpf" not in text(config)


def test_bpf_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "bpf_obstacle", lambda: "the kernel has none")
    for config in (DEVICE_PROGRAMS, {"security.syscalls.intercept.bpf": "true"}):
        with pytest.raises(
            InvalidConfig, match=r"'security\.syscalls\.intercept\.bpf' .*: the kernel has none"
        ):
            interception.check(config)
    interception.check({"security.syscalls.intercept.bpf.devices": "true"})
    interception.check({**DEVICE_PROGRAMS, "security.privileged": "true"})
    interception.check({"security.syscalls.intercept.mknod": "true"})


def test_what_keeps_the_host_from_device_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    obstacle = support.bpf_obstacle.__wrapped__
    monkeypatch.setattr(tree, "unified_mount", lambda: None)
    assert obstacle() == support.obstacle() or "the unified hierarchy is not mounted" in obstacle()


@pytest.mark.parametrize("release", ["5.8.18-1", "5.9.0", "6.1.0-13-amd64", "10.0"])
def test_device_programs_need_a_kernel_that_gives_descriptors(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    host = replace(facts.host_facts(), kernel_version=release)
    monkeypatch.setattr(facts, "host_facts", lambda: host)
    monkeypatch.setattr(support, "obstacle", lambda: "")
    monkeypatch.setattr(tree, "unified_mount", lambda: Path("/cgroup"))
    monkeypatch.setattr(bpf, "lacking", lambda: "")
    found = support.bpf_obstacle.__wrapped__()
    assert ("5.8.18-1, is older than 5.9" in found) if release.startswith("5.8") else not found
