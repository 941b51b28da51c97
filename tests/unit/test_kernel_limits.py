"""The kernel's limits that containers share: what is judged, raised, and told by the daemon."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.open_warnings import OpenWarnings
from utsuwa.daemon.host_watch import HostWatch
from utsuwa.host.system import kernel_limits, near_limits, sysctl_file
from utsuwa.host.system.sysctl_file import Setting, plan

INSTANCES = "fs.inotify.max_user_instances"
KEYS = "kernel.keys.maxkeys"
BEFORE, AFTER = Path("/usr/lib/sysctl.d/30-lxc-inotify.conf"), Path("/etc/sysctl.d/99-mine.conf")


class Host:
    """/proc/sys and sysctl.d of a test's own; every limit has the value 1."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.etc, self.lib = folder / "sys", folder / "etc", folder / "lib"
        self.etc.mkdir()
        self.lib.mkdir()
        self.file = self.etc / "60-utsuwa.conf"
        self.set(dict.fromkeys(kernel_limits.WANTED, 1))

    def set(self, values: dict[str, int]) -> None:
        for key, value in values.items():
            path = self.proc.joinpath(*key.split("."))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")

    def written(self) -> dict[str, int]:
        lines = [line for line in self.file.read_text().splitlines() if not line.startswith("#")]
        return {key.strip(): int(value) for key, _, value in (line.partition("=") for line in lines)}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    monkeypatch.setattr(kernel_limits, "_SYSCTL", host.proc)
    monkeypatch.setattr(sysctl_file, "FILE", host.file)
    monkeypatch.setattr(sysctl_file, "_FOLDERS", (host.etc, host.lib))
    return host


def test_limits_are_raised_now_and_at_boot_once(host: Host) -> None:
    said, done = sysctl_file.raise_limits()
    assert done
    assert kernel_limits.current() == host.written() == kernel_limits.WANTED
    assert f"raised {INSTANCES} from 1 to {kernel_limits.WANTED[INSTANCES]}" in said
    assert said[-1] == f"{host.file} sets limits at each boot"
    assert host.file.stat().st_mode & 0o777 == 0o644
    assert sysctl_file.raise_limits() == ([], True)
    assert host.written() == kernel_limits.WANTED


def test_higher_values_are_kept(host: Host) -> None:
    """Set by the kernel for a large memory, by an administrator by hand, or by a file."""
    high = kernel_limits.WANTED[INSTANCES] * 10
    host.set({INSTANCES: high})
    (host.lib / "10-keys.conf").write_text(f"# mine\n-kernel/keys/maxkeys = {high}\nkernel.hostname=x\n")
    sysctl_file.raise_limits()
    assert kernel_limits.read(INSTANCES) == high
    assert INSTANCES not in host.written()
    assert KEYS not in host.written()
    host.set(dict.fromkeys(kernel_limits.WANTED, 2**40))
    assert sysctl_file.raise_limits() == ([f"removed {host.file}: all values are set elsewhere"], True)
    assert not host.file.exists()


def test_a_file_of_debian_that_sets_less_is_overridden_and_an_administrators_is_not(host: Host) -> None:
    (host.lib / BEFORE.name).write_text(f"{INSTANCES} = 1024\n")
    (host.etc / AFTER.name).write_text(f"{KEYS} = 300\n")
    said, done = sysctl_file.raise_limits()
    assert host.written()[INSTANCES] == kernel_limits.WANTED[INSTANCES]
    assert KEYS not in host.written()
    assert kernel_limits.read(KEYS) == 1
    assert f"{KEYS} is still 300, as set in {host.etc / AFTER.name}: raise it there" in said
    assert not done


def test_a_file_hides_that_of_its_name_in_a_later_folder(host: Host) -> None:
    (host.lib / AFTER.name).write_text(f"{KEYS} = 300\n")
    (host.etc / AFTER.name).write_text("")
    assert sysctl_file.raise_limits()[1]
    assert KEYS in host.written()


def test_no_file_is_written_if_limits_cannot_be_set(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: str, value: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", key)

    monkeypatch.setattr(kernel_limits, "write", refuse)
    said, done = sysctl_file.raise_limits()
    assert not done
    assert not host.file.exists()
    (line,) = said
    assert line.startswith(
        "cannot be set here (Permission denied), set it on the machine that this system runs on"
    )
    assert all(f" {key}={value}" in line for key, value in kernel_limits.WANTED.items())


def test_a_kernel_without_some_of_them(host: Host) -> None:
    host.proc.joinpath(*KEYS.split(".")).unlink()
    said, done = sysctl_file.raise_limits()
    assert done
    assert KEYS not in host.written()
    assert KEYS not in " ".join(said)


NUMBERS = st.integers(1, 100)
FILES = st.sampled_from((BEFORE, AFTER))


@given(
    wanted=NUMBERS,
    current=NUMBERS,
    own=st.none() | NUMBERS,
    other=st.none() | st.builds(Setting, NUMBERS, FILES),
)
def test_limits_are_never_lowered(wanted: int, current: int, own: int | None, other: Setting | None) -> None:
    made = plan(
        {KEYS: wanted},
        {KEYS: current},
        {} if own is None else {KEYS: own},
        {} if other is None else {KEYS: other},
    )
    assert made.now.get(KEYS, current) >= current
    boot = made.at_boot.get(KEYS)
    if boot is not None:
        assert boot == wanted
        assert current <= wanted
        assert other is None or other.value < wanted
    if not made.kept_low and other is None and current < wanted:
        assert boot == made.now[KEYS] == wanted
    again = plan(
        {KEYS: wanted},
        {KEYS: made.now.get(KEYS, current)},
        dict(made.at_boot),
        {KEYS: other} if other else {},
    )
    assert again.at_boot == made.at_boot
    assert not again.now


# ---- near a limit


def test_keys_of_each_user() -> None:
    text = "    0:    22 21/21 16/1000000 270/25000000\n1000000:   183 183/183 183/200 3372/20000\n"
    assert list(near_limits.keys(text)) == [
        ("kernel.keys.root_maxkeys", 16, 1000000, " by the user 0"),
        ("kernel.keys.root_maxbytes", 270, 25000000, " by the user 0"),
        ("kernel.keys.maxkeys", 183, 200, " by the user 1000000"),
        ("kernel.keys.maxbytes", 3372, 20000, " by the user 1000000"),
    ]
    assert list(near_limits.keys("")) == []


def test_entries_of_neighbour_tables_and_all_threads() -> None:
    assert near_limits.neighbours("entries  allocs\n0000005b 00000085\n0000005b 00000001\n") == 0x5B
    assert near_limits.neighbours("") is None
    assert near_limits.threads("0.13 0.20 0.10 1/324 2546\n") == 324
    assert near_limits.threads("") is None


def test_limits_nearly_reached(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = tmp_path / "proc"
    (proc / "self/fd").mkdir(parents=True)
    (proc / "key-users").write_text("1000000: 1 1/1 160/200 100/20000\n5: 1 1/1 170/200 1/20000\n")
    monkeypatch.setattr(near_limits, "_PROC", proc)
    monkeypatch.setattr(near_limits, "_inotify_instances_left", lambda count: False)
    host.set({INSTANCES: 128, "kernel.pty.max": 100, "kernel.pty.reserve": 50, "kernel.pty.nr": 40})
    host.set({"fs.aio-nr": 7, "fs.aio-max-nr": 10})
    assert near_limits.check() == {
        INSTANCES: "fewer than 24 of 128 are left",
        KEYS: "160 of 200 are used by the user 1000000",
        "kernel.pty.max": "40 of 50 are used",
    }


async def test_the_daemon_warns_when_a_limit_is_nearly_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again when only the usage changes; the warning is resolved when the limit has been raised."""
    found = {KEYS: "160 of 200 are used"}
    monkeypatch.setattr(near_limits, "check", lambda: found)
    warnings = OpenWarnings()
    watch = HostWatch(lambda: True, warnings)
    await watch.check()
    first = warnings.messages["Host near its limits"]
    assert f"{KEYS}: 160 of 200 are used" in first
    found[KEYS] = "161 of 200 are used"
    await watch.check()
    assert warnings.messages["Host near its limits"] == first
    found[INSTANCES] = "none is left"
    await watch.check()
    assert f"{INSTANCES}: none is left; {KEYS}" in warnings.messages["Host near its limits"]
    found.clear()
    await watch.check()
    assert warnings.messages == {}
