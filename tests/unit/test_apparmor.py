"""AppArmor profiles: their text, what the kernel offers, and the files of the parser."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.security import apparmor
from utsuwa.security.apparmor import Mode, Profiles, ProfileSpec, Support

ABI = Path("/etc/apparmor.d/abi/3.0")


def spec(**changes: Any) -> ProfileSpec:
    plain = ProfileSpec(name="u_c1", privileged=False, nesting=False, stacked=False)
    return replace(plain, **changes)


def kernel(root: Path, **files: str) -> Path:
    """A file system with what a kernel with AppArmor shows."""
    contents = {
        "sys/module/apparmor/parameters/enabled": "Y\n",
        "sys/kernel/security/apparmor/features/domain/stack": "yes\n",
        "proc/self/attr/apparmor/current": "unconfined\n",
    } | files
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "sys/kernel/security/apparmor/policy/namespaces").mkdir(parents=True)
    return root


def test_support_of_the_kernel_is_detected(tmp_path: Path) -> None:
    assert apparmor.probe(tmp_path / "none") == Support(Mode.OFF)
    assert apparmor.probe(kernel(tmp_path / "a")) == Support(Mode.OWN, stacking=True)
    stack = {"sys/kernel/security/apparmor/features/domain/stack": "no"}
    assert apparmor.probe(kernel(tmp_path / "b", **stack)) == Support(Mode.OWN, stacking=False)
    confined = {"proc/self/attr/apparmor/current": "u_c1//&:u_c1:unconfined (enforce)"}
    assert apparmor.probe(kernel(tmp_path / "c", **confined)) == Support(Mode.INHERIT)
    off = {"sys/module/apparmor/parameters/enabled": "N\n"}
    assert apparmor.probe(kernel(tmp_path / "d", **off)) == Support(Mode.OFF)
    shutil.rmtree(tmp_path / "a/sys/kernel")
    assert apparmor.probe(tmp_path / "a") == Support(Mode.INHERIT)


def test_unprivileged_containers_mount_what_their_namespace_allows() -> None:
    text = apparmor.profile_text(spec())
    assert 'profile "u_c1" flags=(attach_disconnected,mediate_deleted) {' in text
    assert "\n  mount,\n" in text
    assert "deny @{PROC}/sysrq-trigger rwklx," in text
    assert "deny /sys/kernel/security/** wklx," in text
    assert "change_profile" not in text


def denied(rule: str) -> tuple[str, re.Pattern[str] | None]:
    """The condition of a mount rule that privileged containers are denied, and the paths it is denied at."""
    text = apparmor.profile_text(spec(privileged=True))
    [(condition, target)] = re.findall(rf"deny mount ({rule}[^\n]*?)(?: -> ([^\n]*))?,\n", text)
    return condition, _as_regex(target) if target else None


def _as_regex(pattern: str) -> re.Pattern[str]:
    """A pattern of AppArmor that has no braces within braces, as a regular expression."""
    for theirs, ours in (
        (".", r"\."),
        ("**", "\0"),
        ("*", "[^/]*"),
        ("?", "[^/]"),
        ("{", "(?:"),
        ("}", ")"),
        (",", "|"),
        ("\0", ".*"),
    ):
        pattern = pattern.replace(theirs, ours)
    return re.compile(pattern)


@pytest.mark.parametrize("nesting", [False, True])
def test_privileged_containers_can_mount_all_types_except_denied_ones(nesting: bool) -> None:
    text = apparmor.profile_text(spec(privileged=True, nesting=nesting))
    assert "\n  mount,\n" in text
    for rule in ("deny mount", "deny pivot_root", "deny umount"):
        assert (rule in text) is not nesting


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        *((kind, True) for kind in ("proc", "tmpfs", "cgroup", "cgroup2", "overlay", "fuse", "fuse.sshfs")),
        *((kind, False) for kind in ("ext4", "xfs", "debugfs", "securityfs", "bpf", "9p", "cgroup3", "f")),
        *((kind, False) for kind in ("tmpfs2", "fuseblk", "fuse_x", "sys", "sysfs.", "btrfs", "P", "over")),
    ],
)
def test_file_systems_that_privileged_containers_may_mount(kind: str, allowed: bool) -> None:
    condition, _ = denied(r"fstype=\(\[")
    names = condition.removeprefix("fstype=(").removesuffix(")").split(", ")
    assert any(_as_regex(name).fullmatch(kind) for name in names) is not allowed
    # to a kernel the type of a bind mount is an empty name
    assert not any(_as_regex(name).fullmatch("") for name in names)


@pytest.mark.parametrize(
    ("rule", "path", "allowed"),
    [
        *((r"fstype=\(proc", path, True) for path in ("/proc/", "/sys/", "/run/systemd/unit-root/proc/")),
        *((r"fstype=\(proc", path, False) for path in ("/mnt/", "/pro/", "/proc/bus/", "/procs/", "/")),
        *((r"fstype=\(proc", path, False) for path in ("/run/systemd/unit-root/", "/run/systemd/unit/")),
        *(
            (rule, "/run/systemd/unit-root/", True)
            for rule in (r"options=\(rw, bind", r"options=\(rw, rbind")
        ),
        *((r"options=\(rw, rbind", path, True) for path in ("/run/systemd/mount-rootfs/x/y/",)),
        *((r"options=\(rw, rbind", path, False) for path in ("/mnt/", "/", "/run/", "/run/systemd/x/", "/r")),
    ],
)
def test_where_privileged_containers_show_proc_and_sysfs(rule: str, path: str, allowed: bool) -> None:
    _, target = denied(rule)
    assert target is not None
    assert (target.fullmatch(path) is None) is allowed


def test_nested_policy() -> None:
    assert 'change_profile -> "u_c1",' in apparmor.profile_text(spec(nesting=True))
    stacked = apparmor.profile_text(spec(nesting=True, stacked=True))
    assert 'change_profile -> ":u_c1://*",' in stacked
    assert 'change_profile -> "u_c1",' not in stacked


def test_raw_rules_are_in_the_profile() -> None:
    text = apparmor.profile_text(spec(raw='/x{a,b} r,\nprofile inner {\n  deny "/}" r, # }\n}'))
    assert text.endswith(
        '\n  # raw.apparmor\n  /x{a,b} r,\n  profile inner {\n    deny "/}" r, # }\n  }\n}\n'
    )


@pytest.mark.parametrize("raw", ["}\nprofile other {", "}", "profile x {", "a\0b", "a\rb"])
def test_raw_rules_that_leave_the_profile(raw: str) -> None:
    with pytest.raises(InvalidConfig, match=r"raw\.apparmor"):
        apparmor.profile_text(spec(raw=raw))


async def test_the_file_of_all_profiles_is_written_once(
    tmp_path: Path, parsed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first of several instances that are started at the same time."""
    root = kernel(tmp_path / "root", **{"etc/apparmor.d/abi/3.0": FEATURES})
    profiles = Profiles(folder(tmp_path / "aa"), "u", Support(Mode.OWN), root)
    written: list[str] = []
    another = threading.Event()

    def replace_file(path: Path, text: str) -> None:
        if path.name == "abi":
            written.append(text)
            if len(written) > 1:
                another.set()
            another.wait(0.2)  # for another one, which must not come
        path.write_text(text)

    monkeypatch.setattr(apparmor, "replace_file", replace_file)
    await asyncio.gather(*(profiles.load(f"c{n}", privileged=False, nesting=False) for n in range(3)))
    assert written == [apparmor.without_network(FEATURES)]


FEATURES = """\
caps {mask {chown kill
}
}
network {af_unix {yes
}
af_mask {unix inet
}
}
network_v8 {af_mask {unix inet
}
}
file {mask {create lock
}
}
"""


def test_features_without_those_for_sockets() -> None:
    assert apparmor.without_network(FEATURES) == (
        "caps {mask {chown kill\n}\n}\nfile {mask {create lock\n}\n}\n"
    )
    assert apparmor.without_network("") == ""


@pytest.mark.processes
@pytest.mark.skipif(
    shutil.which("apparmor_parser") is None or not ABI.exists(), reason="apparmor_parser is not installed"
)
def test_parser_accepts_features_without_those_for_sockets(tmp_path: Path) -> None:
    (tmp_path / "abi").write_text(apparmor.without_network(ABI.read_text()))
    text = apparmor.profile_text(spec(abi=f'"{tmp_path}/abi"'))
    argv = ["apparmor_parser", "-Q", "-K", "--skip-kernel-load", "--kernel-features", str(ABI)]
    done = subprocess.run(argv, input=text.encode(), capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("raw", "mediated"),
    [
        ("", False),
        ("deny /x r,", False),
        ("deny network inet,", True),
        ("/x r,\ndeny unix (send) type=dgram,", True),
    ],
)
async def test_sockets_are_mediated_for_raw_rules_about_them(
    tmp_path: Path, parsed: list[list[str]], raw: str, mediated: bool
) -> None:
    root = kernel(tmp_path / "root", **{"etc/apparmor.d/abi/3.0": FEATURES})
    profiles = Profiles(folder(tmp_path / "aa"), "u", Support(Mode.OWN), root)
    await profiles.load("c1", privileged=False, nesting=False, raw=raw)
    abi = "<abi/3.0>" if mediated else f'"{tmp_path}/aa/abi"'
    assert (tmp_path / "aa/profiles/u_c1").read_text().startswith(f"abi {abi},\n")
    assert (tmp_path / "aa/abi").exists() is not mediated


def test_names_are_plain_and_distinct() -> None:
    assert apparmor.profile_name("utsuwa-1", "p_c1") == "utsuwa-1_p_c1"
    odd = [apparmor.profile_name("u", name) for name in ("a{b", "a[b", "a%7b.b", "äb", "a+b")]
    assert len(set(odd)) == len(odd)
    assert all(name.isascii() and not set(name) & set('{}[]*?"/ ') for name in odd)


@pytest.mark.processes
@pytest.mark.skipif(
    shutil.which("apparmor_parser") is None or not ABI.exists(), reason="apparmor_parser is not installed"
)
@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("nesting", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_parser_accepts_every_profile(privileged: bool, nesting: bool, stacked: bool) -> None:
    text = apparmor.profile_text(spec(privileged=privileged, nesting=nesting, stacked=stacked, raw="/x r,"))
    argv = ["apparmor_parser", "-Q", "-K", "--skip-kernel-load", "-M", str(ABI)]
    done = subprocess.run(argv, input=text.encode(), capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The calls of apparmor_parser, which does nothing."""
    calls: list[list[str]] = []

    async def run(argv: list[str], **_: Any) -> None:
        calls.append(argv)

    monkeypatch.setattr(apparmor, "run", run)
    return calls


def folder(root: Path) -> Path:
    for name in ("profiles", "cache/x"):
        (root / name).mkdir(parents=True)
    return root


async def test_loading_and_removing(tmp_path: Path, parsed: list[list[str]]) -> None:
    root = kernel(tmp_path / "root")
    profiles = Profiles(folder(tmp_path / "aa"), "u", Support(Mode.OWN, stacking=True), root)
    file, namespace = (
        tmp_path / "aa/profiles/u_c1",
        root / "sys/kernel/security/apparmor/policy/namespaces/u_c1",
    )
    lines = await profiles.load("c1", privileged=False, nesting=False)
    assert lines == [("lxc.apparmor.profile", "u_c1//&:u_c1:")]
    assert "u_c1" in file.read_text()
    assert namespace.is_dir()
    written = file.stat().st_mtime_ns
    await profiles.load("c1", privileged=False, nesting=False)
    assert file.stat().st_mtime_ns == written
    assert await profiles.load("c1", privileged=True, nesting=False) == [("lxc.apparmor.profile", "u_c1")]
    (tmp_path / "aa/cache/x/u_c1").touch()
    await profiles.unload("c1")
    assert file.exists()
    assert not namespace.exists()
    await profiles.unload("c1")
    for _ in range(2):
        profiles.remove_files("c1")
    assert not file.exists()
    assert list((tmp_path / "aa/cache/x").iterdir()) == []
    assert [argv[1] for argv in parsed] == ["--replace"] * 3 + ["--remove"] * 2
    assert parsed[0][-1] == str(file)


async def test_hosts_without_apparmor(tmp_path: Path, parsed: list[list[str]]) -> None:
    for mode, expected in ((Mode.OFF, []), (Mode.INHERIT, [("lxc.apparmor.profile", "unchanged")])):
        profiles = Profiles(tmp_path, "u", Support(mode))
        assert await profiles.load("c1", privileged=False, nesting=False) == expected
        await profiles.unload("c1")
        profiles.remove_files("c1")
    assert parsed == []
